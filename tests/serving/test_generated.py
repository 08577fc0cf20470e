"""The committed stubs are what `make proto` generates, and the contract keeps its conventions."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.v1 import retrieval_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("retrieval_pb2.py", "retrieval_pb2.pyi", "retrieval_pb2_grpc.py")


def test_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    protos = sorted(str(path) for path in (ROOT / "protos/serving/v1").glob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *outputs, *protos]
    subprocess.run(command, check=True, capture_output=True)
    made = sorted(path.name for path in (tmp_path / "serving/v1").iterdir())
    assert made == sorted(NAMES)
    for name in NAMES:
        committed = (ROOT / "serving/v1" / name).read_text()
        assert (tmp_path / "serving/v1" / name).read_text() == committed, f"{name} is stale; run `make proto`"


@pytest.mark.parametrize("name", pb.DESCRIPTOR.enum_types_by_name)
def test_zero_of_every_enum_is_unspecified(name: str) -> None:
    zero = pb.DESCRIPTOR.enum_types_by_name[name].values_by_number[0]
    assert zero.name.endswith("_UNSPECIFIED")


def test_every_call_has_messages_of_its_own() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "recsys.serving.v1.CandidateRetrievalService"
    for method in service.methods:
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"


def test_scores_are_packed() -> None:
    fields = pb.RetrieveResponse.DESCRIPTOR.fields_by_name
    assert all(fields[name].is_packed for name in ("scores", "sources"))

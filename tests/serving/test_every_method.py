"""Every table method, trained, exported and served through `Score`: the scores are the offline ones.

The server runs in a process of its own, in which torchrec and fbgemm cannot be imported. World "small".
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from features.batch import Batch
from features.prepared import Prepared
from features.worlds import generate
from recsys.cli.bundles import export_runs
from recsys.cli.data import prepared_of
from recsys.compression import COMPRESSIONS
from recsys.config import RunConfig, load_config
from recsys.laws.table import CASES
from recsys.models.interface import Ranker
from recsys.run import Run
from tests.recsys.small_project import write_project

COLUMNS = ("user", "item", "device", "hour")
SERVER = """
import importlib.abc, json, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torchrec", "fbgemm_gpu"):
            raise ModuleNotFoundError(f"no module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())

from recsys.bundle import BundleStore
from serving.client import Client
from serving.pipeline import Pipeline
from serving.server import Settings, running

columns = json.load(sys.stdin)
for store in sys.argv[1:]:
    with running(lambda: Pipeline.load(BundleStore(store).open()), Settings(port=0)) as address:
        with Client(address, timeout_s=60.0) as client:
            print(json.dumps(client.score(columns=columns).scores[:, 0].tolist()))
assert "torchrec" not in sys.modules and "fbgemm_gpu" not in sys.modules
"""


def options_of(method: str) -> dict[str, Any]:
    """The settings of the method's case in the laws."""
    spec = next(spec for spec in CASES.values() if type(spec) is COMPRESSIONS[method])
    return spec.model_dump(mode="json", exclude_defaults=True)


def config_of(folder: Path, method: str, precision: str) -> RunConfig:
    base = load_config(folder / "ctr.toml")
    section = {"method": method, "precision": precision, **options_of(method)}
    tables = {"backend": "fused", "ids": section}
    return RunConfig.model_validate({**base.model_dump(mode="json"), "tables": tables})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("methods"))


@pytest.fixture(scope="module")
def prepared(project: Path) -> Prepared:
    return prepared_of(load_config(project / "ctr.toml"), project, None, project / "prepared")


def requests() -> pd.DataFrame:
    """Some last events of the log."""
    events = generate("small").events.to_pandas().sort_values("timestamp", kind="stable")
    return events.tail(200)[list(COLUMNS)]


def trained(project: Path, prepared: Prepared, method: str, precision: str = "float32") -> Run:
    run = Run.create(config_of(project, method, precision), project / "runs" / f"{method}_{precision}", prepared)
    run.train()
    return run


def offline(run: Run, rows: pd.DataFrame) -> torch.Tensor:
    prepared, model, view = run.prepared, run.model(), run.seen_before("test")
    assert isinstance(model, Ranker)
    assert prepared.users is not None
    assert prepared.items is not None
    users, items = prepared.users.positions(rows.user.tolist()), prepared.items.positions(rows.item.tolist())
    context = prepared.encoder.encode(pa.Table.from_pandas(rows[["device", "hour"]]), ["device", "hour"])
    features = dict(view.user_batch(users).features) | dict(view.item_batch(items).features) | context
    with torch.no_grad():
        return model.logits(Batch(features=features)).sigmoid()


def served(stores: list[str], rows: pd.DataFrame) -> list[torch.Tensor]:
    columns = {name: rows[name].tolist() for name in COLUMNS}
    command = [sys.executable, "-c", SERVER, *stores]
    done = subprocess.run(command, input=json.dumps(columns), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.tensor(json.loads(line)) for line in done.stdout.splitlines()]


def test_every_method_serves_its_offline_scores_without_torchrec(project: Path, prepared: Prepared) -> None:
    runs = [trained(project, prepared, method) for method in COMPRESSIONS]
    runs += [trained(project, prepared, "unified", precision) for precision in ("float16", "int8", "int4")]
    stores = [str(project / "stores" / run.name) for run in runs]
    for run, store in zip(runs, stores, strict=True):
        export_runs([run], store, "stable")
    rows = requests()
    for run, scores in zip(runs, served(stores, rows), strict=True):
        assert_close(scores, offline(run, rows), rtol=0, atol=1e-5, msg=run.name)
        assert scores.std() > 0, f"{run.name} gives one score to all"

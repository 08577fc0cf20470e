"""The tables and the trainer on a GPU against the same on the CPU; skipped, with the reason, where there is none.

    make test-gpu

Needs torch with CUDA and the package itself. The fused and sharded cells need the CUDA builds of fbgemm-gpu and
torchrec as well; where these do not import, the tests say that they are left out.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import SGD, Adagrad, RowWiseAdagrad, TableOptimizer
from recsys.embedding.precision import PRECISIONS, Precision, pack, read_rows, unpack
from recsys.laws.small_schema import encoder, flat, names_of, small_batch
from recsys.laws.table import CASES
from tests.recsys.small_project import write_project

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
OPTIMIZERS: dict[str, TableOptimizer] = {
    "sgd": SGD(lr=0.1),
    "adagrad": Adagrad(lr=0.1),
    "rowwise_adagrad": RowWiseAdagrad(lr=0.1),
}


def trained(case: str, optimizer: str, device: str, backend: str = "plain") -> Tensor:
    """The vectors of the laws' batch after three steps."""
    collection = EmbeddingCollection(
        encoder(), {"ids": CASES[case]}, backend=backend, optimizer=OPTIMIZERS[optimizer]  # type: ignore[arg-type]
    ).to(device)  # fmt: skip
    batch, names = small_batch().to(device), names_of(collection)
    for _ in range(3):
        vectors = flat(collection(batch), names)
        pull = torch.linspace(-1, 1, len(vectors), device=device)
        penalty = collection.penalty()
        loss = (vectors * pull).sum()
        (loss if penalty is None else loss + penalty).backward()
        collection.on_step()
    with torch.no_grad():
        return flat(collection.eval()(batch), names).cpu()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_plain_tables_on_the_gpu_are_those_of_the_cpu(case: str, optimizer: str) -> None:
    torch.testing.assert_close(trained(case, optimizer, "cuda"), trained(case, optimizer, "cpu"), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="left out: fbgemm-gpu is not installed")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_fused_tables_on_the_gpu_are_those_of_the_cpu(case: str, optimizer: str) -> None:
    found = trained(case, optimizer, "cuda", backend="fused")
    torch.testing.assert_close(found, trained(case, optimizer, "cpu"), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="left out: fbgemm-gpu is not installed")
def test_fused_tables_larger_than_their_share_of_the_gpu_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.embedding.fused.SHARE_OF_GPU", 1e-7)
    found = trained("dense", "rowwise_adagrad", "cuda", backend="fused")
    torch.testing.assert_close(found, trained("dense", "rowwise_adagrad", "cpu"), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="left out: torchrec is not installed")
def test_sharded_tables_on_one_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    from recsys import distributed

    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1
    )  # fmt: skip
    try:
        assert distributed.world_size() == 1
        found = trained("dense", "rowwise_adagrad", "cuda", backend="sharded")
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, trained("dense", "rowwise_adagrad", "cpu"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_served_rows_on_the_gpu_are_those_of_the_cpu(precision: Precision) -> None:
    packed = pack(torch.randn(50, 10, generator=torch.Generator().manual_seed(0)), precision)
    rows = torch.arange(0, 50, 3)
    found = read_rows(packed.cuda(), rows.cuda(), precision, 10).cpu()
    torch.testing.assert_close(found, unpack(packed, precision, 10)[rows], atol=1e-6, rtol=1e-5)


def test_frozen_tables_on_the_gpu_are_those_of_the_cpu() -> None:
    collection = EmbeddingCollection(encoder(), {"ids": DenseTable(embedding_dim=6, precision="int4")}, backend="plain")
    frozen, names = collection.freeze(), names_of(collection)
    expected = flat(frozen(small_batch()), names)
    torch.testing.assert_close(flat(frozen.to("cuda")(small_batch().to("cuda")), names).cpu(), expected)


def test_a_run_on_the_gpu_ends_where_one_on_the_cpu_does(tmp_path: Path) -> None:
    from recsys.cli.data import prepared_of
    from recsys.config import load_config
    from recsys.run import Run

    project, metrics = write_project(tmp_path), {}
    for device in ("cpu", "cuda"):
        config = load_config(project / "ctr.toml", ["tables.backend=plain", f"training.device={device}"])
        run = Run.create(config, project / device, prepared_of(config, project, None, project / "prepared"))
        run.train()
        metrics[device] = run.evaluate("test").metrics["auc"]
    assert metrics["cuda"] == pytest.approx(metrics["cpu"], abs=1e-3)

"""A cell is an ordinary run, and what is measured of it is what stands on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from features.prepared import Prepared
from recsys.config import RunConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.models.interface import Ranker
from recsys.run import Run
from recsys.sweep.cell import BATCH, Task, measure_lookup, run_cell, run_task, sample_ids
from recsys.sweep.outcome import Outcome
from recsys.sweep.plan import Cell, cell_config
from tests.recsys.sweep.small_sweep import small_sweep

Made = tuple[RunConfig, Prepared]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return small_sweep(tmp_path_factory.mktemp("cells"))


def run(made: Made, folder: Path, **cell: object) -> tuple[RunConfig, Outcome, list[str]]:
    config, prepared = made
    wanted = Cell(**({"method": "hash", "budget": "20%", "precision": "float32", "seed": 1} | cell))  # type: ignore[arg-type]
    derived = cell_config(wanted, config, prepared.schema)
    told: list[str] = []
    return derived, run_cell(derived, config, folder / wanted.name, prepared, told.append), told


def test_cell_finds_what_training_and_evaluating_by_hand_finds(made: Made, tmp_path: Path) -> None:
    config, outcome, told = run(made, tmp_path, precision="int8")
    by_hand = Run.create(config, tmp_path / "by hand", made[1])
    by_hand.train()
    model = by_hand.model()
    assert isinstance(model, Ranker)
    assert outcome.status == "finished"
    assert dict(outcome.test) == dict(by_hand.evaluate("test").metrics)
    assert dict(outcome.validation) == dict(by_hand.evaluate("validation").metrics)
    assert outcome.sizes is not None
    tensors = {name: tensor.contiguous() for name, tensor in model.collection.state_dict().items()}
    (tmp_path / "tables").write_bytes(save(tensors))
    assert outcome.sizes.served == (tmp_path / "tables").stat().st_size
    assert outcome.sizes.tensors == sum(tensor.nbytes for tensor in tensors.values())
    assert told[-2:] == ["evaluating", "measuring lookups"]


def test_cell_that_is_finished_is_read_again(made: Made, tmp_path: Path) -> None:
    _, first, _ = run(made, tmp_path)
    _, again, _ = run(made, tmp_path)
    assert (first.peak_bytes or 0) > 0
    assert again.peak_bytes is None  # this process did not train
    assert (again.test, again.sizes, again.seconds) == (first.test, first.sizes, first.seconds)


def test_rounded_collisionless_rows_are_those_of_the_float32_training(made: Made, tmp_path: Path) -> None:
    config, prepared = made
    cells = {p: Cell(method="dense", budget="", precision=p, seed=1) for p in ("float32", "int4")}
    assert cells["int4"].trained_as == cells["float32"]
    assert cells["float32"].trained_as is None
    _, alone, _ = run(made, tmp_path / "alone", method="dense", budget="", precision="int4")
    _, first, _ = run(made, tmp_path, method="dense", budget="")
    rounded = cell_config(cells["int4"], config, prepared.schema)
    task = Task(
        config=rounded.to_json(),
        sweep_config=config.to_json(),
        prepared=str(prepared.path),
        folder=str(tmp_path / "int4"),
        trained=str(tmp_path / cells["float32"].name),
    )
    found = run_task(task, lambda note: None)
    assert found.test == alone.test != first.test
    assert found.peak_bytes is None  # nothing was trained


def test_cell_out_of_reach_says_the_minimum(made: Made, tmp_path: Path) -> None:
    _, outcome, _ = run(made, tmp_path, budget="3B")
    assert outcome.status == "unreachable"
    assert "budget 3B is too small, the minimum is" in outcome.reason
    assert not list(tmp_path.iterdir())


def test_sample_is_of_every_id_feature(made: Made) -> None:
    _, prepared = made
    ids = sample_ids(prepared)
    assert set(ids) == {spec.name for spec in prepared.schema.inputs if spec.is_id}
    assert 0 < len(ids["user"]) <= BATCH
    assert all(values.ndim == 1 for values in ids.values())


def test_lookup_is_measured_in_turns_on_one_thread(made: Made) -> None:
    _, prepared = made
    narrow, wide = (
        EmbeddingCollection(prepared.encoder, {"ids": DenseTable(embedding_dim=width)}, backend="plain")
        for width in (1, 512)
    )
    before = torch.get_num_threads()
    found = measure_lookup(wide, narrow, sample_ids(prepared))
    assert found.us_per_id > found.dense_us_per_id > 0
    assert torch.get_num_threads() == before

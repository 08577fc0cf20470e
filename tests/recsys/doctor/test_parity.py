"""A cell, run: equal where it should be, and caught where it is not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recsys.compression import COMPRESSIONS
from recsys.doctor import parity
from recsys.doctor.cells import Cell
from recsys.embedding.optimizers import OPTIMIZERS, RowWiseAdagrad
from recsys.embedding.precision import PRECISIONS, Precision, pack, unpack

PLAIN = Cell(
    method="dense", backend="plain", num_ranks=1, sharding="", optimizer="rowwise_adagrad", precision="float32"
)


def measured(cell: Cell, folder: Path) -> dict[str, object]:
    return parity.measure(json.dumps({"cell": cell.to_json(), "folder": str(folder)}))


def off(cell: Cell, folder: Path) -> float:
    found = measured(cell, folder)
    assert "refused" not in found, found
    return float(str(found["difference"]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parity_plain_is_the_naive_definition(optimizer: str, tmp_path: Path) -> None:
    assert off(replace(PLAIN, optimizer=optimizer), tmp_path) <= 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parity_of_served_rows(precision: str, tmp_path: Path) -> None:
    found = measured(replace(PLAIN, method="unified", precision=precision), tmp_path)
    assert float(str(found["difference"])) <= 1e-6
    assert (found["served"] == 0) == (precision == "float32")


def test_parity_fused_equals_what_plain_has_left(tmp_path: Path) -> None:
    measured(PLAIN, tmp_path)
    assert off(replace(PLAIN, backend="fused"), tmp_path) <= 1e-6


def test_parity_training_moves_every_store(tmp_path: Path) -> None:
    trained = parity._trained(parity._collection(PLAIN))
    before = parity._collection(PLAIN).backend.weights()
    assert all(float((trained[f"store {name}"] - weight).abs().max()) > 0.05 for name, weight in before.items())


def test_parity_sees_a_wrong_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row-wise Adagrad that averages over padded rows without making up for it."""
    monkeypatch.setattr(RowWiseAdagrad, "on_padded_rows", lambda self, embedding_dim: (self.lr, self.eps))
    assert off(PLAIN, tmp_path) > 100 * parity.CLOSE


def test_parity_sees_served_rows_that_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = "recsys.embedding.collection.pack"
    monkeypatch.setattr(coarse, lambda values, precision, what="": pack((values * 8).round() / 8, precision))
    found = measured(replace(PLAIN, precision="int8"), tmp_path)
    assert str(found["where"]).startswith("served")
    assert float(str(found["difference"])) > parity.CLOSE


def test_parity_sees_rows_beyond_their_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recsys.embedding.collection.pack", "recsys.doctor.parity.pack"):
        monkeypatch.setattr(name, lambda values, precision, what="": pack((values * 8).round() / 8, precision))
    assert measured(replace(PLAIN, precision="float16"), tmp_path)["where"] == "rows beyond their rounding"


def test_parity_says_why_a_cell_is_refused(tmp_path: Path) -> None:
    found = measured(replace(PLAIN, backend="fused", optimizer="adam"), tmp_path)
    assert "has no Adam" in str(found["refused"])
    assert found["one_rank"] == ""


def test_parity_asks_every_method_for_its_ranks() -> None:
    reasons = {method: parity.one_rank(method) for method in COMPRESSIONS}
    assert reasons["dense"] == reasons["unified"] == ""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_parity_rounding_stays_within_the_stated_bound(precision: Precision, scale: float) -> None:
    values = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * scale + scale
    error = (unpack(pack(values, precision), precision, 7) - values).abs()
    bound = parity.rounding_bound(values, precision).expand_as(error)
    assert bool((error <= bound).all())
    assert float(bound.max()) <= {"float32": 0, "float16": 1e-2, "int8": 0.1, "int4": 1.0}[precision] * 3 * scale


def test_parity_differences_name_what_one_side_lacks() -> None:
    ones, two = torch.ones(2), torch.ones(3)
    found = parity._differences({"a": ones, "b": ones, "c": ones}, {"a": ones, "b": two, "d": ones})
    assert found == {"a": 0.0, "b": float("inf"), "c": float("inf"), "d": float("inf")}

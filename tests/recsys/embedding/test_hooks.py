"""What a table may add to training: penalties, a turn after each step, phases; and what a bad gradient may not do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from features.spec import parse_schema
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.optimizers import SGD
from recsys.embedding.store import Store
from recsys.embedding.stores import NonFiniteGradientError
from recsys.embedding.table import EmbeddingTable, Reader, Search, TableSpec
from recsys.phases import Phase, Until

SCHEMA = parse_schema({"name": "t", "features": {name: {"table": "ids"} for name in ("item", "user")}}, where="here")
BACKENDS = pytest.mark.parametrize("backend", ["plain", "fused"])


class Hooked(EmbeddingTable):
    """A row per id modulo 10; pulls what it read to 1, and zeroes its last column after every second step."""

    def __init__(self, name: str, store: Store) -> None:
        super().__init__(name, [store], 4, None)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        return {self.stores[0].name: (ids % 10).unsqueeze(1)}

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        self.last = vectors[self.stores[0].name].squeeze(1)
        return self.last

    def penalty(self) -> Tensor | None:
        return None if self.last is None else (self.last - 1).square().sum()

    def on_step(self, weights: Mapping[str, Tensor], touched: Mapping[str, Tensor]) -> None:
        self.steps += 1
        self.seen.append(touched[self.stores[0].name])
        if self.steps % 2 == 0:
            weights[self.stores[0].name][:, 3] = 0


class HookedSpec(TableSpec):
    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        return {
            reader.name: Hooked(reader.salt, Store(name=f"{name}.{reader.name}", num_embeddings=10, embedding_dim=4))
            for reader in readers
        }

    def schedule(self, phases: Sequence[Phase], search: Search) -> list[Phase]:
        more = {"name": "search", "keep_best": False, "until": Until(max_epochs=len(search.tables))}
        return [Phase(**{**vars(phases[0]), **more}), *phases]


class Tail(Hooked):
    """Serves all its rows but the first, in the memory of the live ones."""

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple[EmbeddingTable, dict[str, Tensor]]:
        served = replace(self.stores[0], num_embeddings=9)
        return Hooked(self.name, served), {served.name: stores[served.name][1:]}


class TailSpec(TableSpec):
    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        return {
            reader: Tail(found.name, found.stores[0]) for reader, found in HookedSpec().build(name, readers).items()
        }


def collection(backend: str, spec: TableSpec | None = None) -> EmbeddingCollection:
    return EmbeddingCollection(SCHEMA, {"ids": spec or HookedSpec()}, backend=backend, optimizer=SGD(lr=0.25))  # type: ignore[arg-type]


def table(found: EmbeddingCollection, feature: str) -> Any:
    return found.table(feature)


@BACKENDS
def test_penalty_trains_through_the_lookup_of_the_step(backend: str) -> None:
    found = collection(backend)
    before = found.backend.weights()["ids.item"].clone()
    found.lookup({"": ("item", torch.tensor([13]))})
    penalty = found.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(float((before[3] - 1).square().sum()))
    penalty.backward()
    torch.testing.assert_close(found.backend.weights()["ids.item"][3], before[3] - 0.5 * (before[3] - 1))


@BACKENDS
def test_on_step_sees_the_rows_read_and_writes_the_live_weights(backend: str) -> None:
    found = collection(backend)
    for _ in range(2):
        found.lookup({"": ("item", torch.tensor([3, 17, 3]))})[""].sum().backward()
        found.on_step()
    assert [rows.tolist() for rows in table(found, "item").seen] == [[3, 7, 3]] * 2
    assert not found.backend.weights()["ids.item"][:, 3].any()
    assert int(table(found, "user").steps) == 0


def test_on_step_is_not_called_for_lookups_without_gradient() -> None:
    found = collection("plain")
    with torch.no_grad():
        found.lookup({"": ("item", torch.tensor([3]))})
    found.on_step()
    assert table(found, "item").seen == []


def test_schedule_adds_phases_once_per_specification() -> None:
    found = collection("plain")
    phase = Phase(
        name="train", batches=lambda epoch, start: iter(()), num_batches=0, loss=lambda batch, step: torch.zeros(0),
        optimizers=(), until=Until(max_epochs=7),
    )  # fmt: skip

    def search(tables: Mapping[str, EmbeddingTable]) -> Search:
        return Search(
            tables=tables, weights=found.backend.weights, evaluate=None, metric="auc", higher_is_better=True,
            restart=lambda: None, seed=0,
        )  # fmt: skip

    planned = found.schedule([phase], search)
    assert [(one.name, one.until.max_epochs, one.keep_best) for one in planned] == [
        ("search", 2, False), ("train", 7, True),
    ]  # fmt: skip


def test_search_scores_so_that_higher_is_better() -> None:
    def search(higher: bool, evaluate: Any) -> Search:
        return Search(
            tables={}, weights=dict, evaluate=evaluate, metric="m", higher_is_better=higher, restart=lambda: None,
            seed=0,
        )  # fmt: skip

    assert search(True, lambda: {"m": 2.0}).score() == 2.0
    assert search(False, lambda: {"m": 2.0}).score() == -2.0
    with pytest.raises(ValueError, match=r"give data\.split\.validation"):
        search(True, None).score()


@BACKENDS
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_row(backend: str, wrong: float) -> None:
    found = collection(backend)
    before = {name: weight.clone() for name, weight in found.backend.weights().items()}
    vectors = found.lookup({"": ("item", torch.tensor([1, 2]))})[""]
    with pytest.raises(NonFiniteGradientError, match=r"gradient of store 'ids\.item' is not finite"):
        (vectors * torch.tensor([1.0, 1.0, wrong, 1.0])).sum().backward()
    assert all(torch.equal(weight, before[name]) for name, weight in found.backend.weights().items())


@BACKENDS
def test_a_served_part_of_a_store_stays_as_it_was(backend: str) -> None:
    found = collection(backend, TailSpec())
    frozen = found.freeze().backend.weights()["ids.item"]
    expected = frozen.clone()
    found.backend.weights()["ids.item"].zero_()
    assert torch.equal(frozen, expected)
    assert expected.any()

"""Every table of ours obeys the laws; and a table that breaks one is found out, by name."""

from collections.abc import Mapping, Sequence
from inspect import isfunction
from itertools import product
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

import recsys.laws.table
from recsys.compression import COMPRESSIONS
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader, TableSpec
from recsys.laws.table import CASES, LAWS, verdicts

PAIRS = [pytest.param(law, CASES[name], id=f"{name}-{law}") for name in CASES for law in LAWS]


def test_laws_run_all_over_every_key_of_compressions() -> None:
    (mark,) = test_table_obeys.pytestmark  # type: ignore[attr-defined]
    run = {(law, type(spec)) for law, spec in (param.values for param in mark.args[1])}
    assert run >= set(product(LAWS, COMPRESSIONS.values()))
    laws = {name for name, found in vars(recsys.laws.table).items() if _is_law(found)}
    assert laws == set(LAWS)


def _is_law(found: object) -> bool:
    """A public function of a specification that gives nothing back: it raises or it does not."""
    hints = getattr(found, "__annotations__", {})
    return isfunction(found) and list(hints.items()) == [("spec", TableSpec), ("return", None)]


@pytest.mark.parametrize(("law", "spec"), PAIRS)
def test_table_obeys(law: str, spec: TableSpec) -> None:
    LAWS[law](spec)


class Sound(EmbeddingTable):
    """One row per id, times a learned vector: a table with a dense parameter, for others to spoil."""

    def __init__(self, name: str, num_embeddings: int) -> None:
        store = Store(name=name, num_embeddings=num_embeddings, embedding_dim=3)
        super().__init__(name, [store], 3, num_embeddings)
        self.scale = nn.Parameter(torch.rand(3))

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        return {self.name: ids.unsqueeze(1)}

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        return vectors[self.name].squeeze(1) * self.scale

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "num_embeddings": self.num_embeddings}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        return cls(**settings)


class SoundSpec(TableSpec):
    kind: type[EmbeddingTable] = Sound

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        return {reader.name: self.kind(f"{name}.{reader.name}", reader.num_embeddings) for reader in readers}  # type: ignore[call-arg,arg-type]


def test_a_strangers_sound_table_obeys_all() -> None:
    assert not any(verdicts(SoundSpec()).values())


def test_a_store_read_by_several_tables_is_counted_once() -> None:
    assert not any(verdicts(SoundSpec(kind=OneStoreForAll)).values())


class WrongGradient(Sound):
    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        found = super().combine(vectors, ids)
        return found + (found.detach() - found)  # the value is right, the gradient zero


class NoiseInEvaluation(Sound):
    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        return super().combine(vectors, ids) + 0.01 * torch.rand(len(ids), 1, dtype=self.scale.dtype)


class UnstableId(Sound):
    """Gives ids the rows in the order in which they come, as a table without memory would: asked again, another row."""

    def __init__(self, name: str, num_embeddings: int) -> None:
        super().__init__(name, num_embeddings)
        self.asked = 0

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        self.asked += 1
        return {self.name: (ids.unsqueeze(1) + self.asked) % self.stores[0].num_embeddings}


class DependsOnTheBatch(Sound):
    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        return {self.name: torch.arange(len(ids)).unsqueeze(1) % self.stores[0].num_embeddings}


class AcceptsAnything(Sound):
    def __init__(self, name: str, num_embeddings: int) -> None:
        super().__init__(name, num_embeddings)
        self.num_embeddings = None

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        return {self.name: ids.unsqueeze(1) % self.stores[0].num_embeddings}


class UntrainedParameter(Sound):
    def __init__(self, name: str, num_embeddings: int) -> None:
        super().__init__(name, num_embeddings)
        self.unused = nn.Parameter(torch.rand(2))


class WrongBytes(Sound):
    """Keeps a second table of rows where nothing counts it."""

    def __init__(self, name: str, num_embeddings: int) -> None:
        super().__init__(name, num_embeddings)
        self.hidden = [torch.rand(num_embeddings, 3)]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        return super().combine(vectors, ids) + self.hidden[0][ids]


class FreezesOtherwise(Sound):
    def freeze(self, stores: Mapping[str, Tensor]) -> tuple[EmbeddingTable, dict[str, Tensor]]:
        table, arrays = super().freeze(stores)
        return table, {name: array.half().float() for name, array in arrays.items()}


class OutsideTheStore(Sound):
    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        return {self.name: (ids + 1).unsqueeze(1)}


class OneStoreForAll(Sound):
    """All readers over the rows of one store: read by several tables, and rightly counted once."""

    def __init__(self, name: str, num_embeddings: int) -> None:
        super().__init__(name, num_embeddings)
        store = Store(name="ids", num_embeddings=100, embedding_dim=3)
        self.stores, self.name = (store,), "ids"

    def settings(self) -> dict[str, Any]:
        return {"name": "ids", "num_embeddings": self.num_embeddings}


class StoreReadTwiceCountedOnce(OneStoreForAll):
    """Each table serves rows of its own under the name of the one store: the store is read by three and kept once."""

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple[EmbeddingTable, dict[str, Tensor]]:
        table, arrays = super().freeze(stores)
        return table, {name: array.clone() for name, array in arrays.items()}


class WrongBudget(SoundSpec):
    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int:
        return 100


class ServesItsTrainingStore(Sound):
    def __init__(self, name: str, num_embeddings: int) -> None:
        super().__init__(name, num_embeddings)
        self.stores = (Store(name=name, num_embeddings=num_embeddings, embedding_dim=3, training_only=True),)


@pytest.mark.parametrize(
    ("spec", "law", "says"),
    [
        (SoundSpec(kind=WrongGradient), "gradients_are_those_of_the_definition", "gradient of 'ids.user'"),
        (SoundSpec(kind=NoiseInEvaluation), "same_id_same_vector", "differ by"),
        (SoundSpec(kind=UnstableId), "rows_are_a_function_of_the_id", "depend on the other ids"),
        (SoundSpec(kind=UnstableId), "same_id_same_vector", "differ by"),
        (SoundSpec(kind=StoreReadTwiceCountedOnce), "bytes_are_measured", "cannot be counted: .* freezes stores"),
        (SoundSpec(kind=DependsOnTheBatch), "rows_are_a_function_of_the_id", "depend on the other ids"),
        (SoundSpec(kind=AcceptsAnything), "out_of_range_ids_are_refused", "was not refused"),
        (SoundSpec(kind=UntrainedParameter), "every_parameter_is_trained", "unused"),
        (SoundSpec(kind=WrongBytes), "bytes_are_measured", "num_bytes is"),
        (SoundSpec(kind=FreezesOtherwise), "frozen_equals_evaluated", "of the frozen form differ"),
        (SoundSpec(kind=OutsideTheStore), "rows_are_a_function_of_the_id", "outside store"),
        (WrongBudget(), "bytes_are_measured", "the budget is 100"),
        (SoundSpec(kind=ServesItsTrainingStore), "frozen_equals_evaluated", "training-only"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_law_finds_a_table_that_breaks_it(spec: TableSpec, law: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        LAWS[law](spec)

"""The rule w -= lr * strength / n * w, once for every id that the batch reads, whatever reads it and on however many
ranks.
"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec
from recsys import distributed
from recsys.compression.hashing import HashTable
from recsys.embedding.collection import Backend, EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.minibatch_l2 import MiniBatchL2
from recsys.embedding.optimizers import SGD, RowWiseAdagrad, TableOptimizer
from recsys.embedding.table import TableSpec
from tests.recsys.two_ranks import run_on_two_ranks

LR, STRENGTH = 0.5, 0.1
SCHEMA = FeatureSchema(
    name="t",
    features=(
        FeatureSpec(name="item", table="ids"),
        FeatureSpec(name="history", kind="id_list", vocabulary="item", table="ids", pooling="sum"),
        FeatureSpec(name="user", table="ids"),
    ),
)
COUNTS = {"item": ([10, 11, 12, 13, 14], [5, 4, 3, 2, 1]), "user": ([20, 21], [7, 6])}
BACKENDS = pytest.mark.parametrize("backend", ["plain", "fused"])


def collection(
    backend: Backend,
    optimizer: TableOptimizer | None = None,
    spec: TableSpec | None = None,
) -> EmbeddingCollection:
    encoder = Encoder.from_counts(SCHEMA, COUNTS)
    specs = {"ids": spec or DenseTable(embedding_dim=4)}
    found = EmbeddingCollection(encoder, specs, backend=backend, optimizer=optimizer or SGD(lr=LR))
    keys = {spec.name: str(found.table_key(spec.name)) for spec in SCHEMA.inputs}
    found.minibatch_l2 = MiniBatchL2.of(STRENGTH, encoder.counts, keys)
    return found


def batch() -> Batch:
    """Item 2 stands in four places, items 0 (unseen) and 3 in one, the others in none; row 2 has no history."""
    history = Jagged.from_lists([[2, 2], [3, 0], []])
    return Batch(features={"item": torch.tensor([2, 1, 2]), "history": history, "user": torch.tensor([1, 1, 1])})


def step(collected: EmbeddingCollection, rows: Batch, factor: float = 0.0) -> None:
    """One step whose data gradient is `factor` in every element of what is read."""
    vectors = collected(rows)
    penalty = collected.penalty()
    assert penalty is not None
    loss = torch.stack([vector.sum() for vector in vectors.values() if isinstance(vector, Tensor)]).sum()
    (factor * loss + penalty).backward()


def decayed(before: Tensor, counts: dict[int, int]) -> Tensor:
    after = before.clone()
    for row, count in counts.items():
        after[row] -= LR * STRENGTH / count * before[row]
    return after


@BACKENDS
def test_a_touched_row_decays_by_its_count_once_and_no_other_moves(backend: Backend) -> None:
    collected = collection(backend)
    before = {name: weight.clone() for name, weight in collected.backend.weights().items()}
    step(collected, batch())
    after = collected.backend.weights()
    assert_close(after["ids.item"], decayed(before["ids.item"], {0: 1, 1: 5, 2: 4, 3: 3}), rtol=1e-6, atol=1e-8)
    assert torch.equal(after["ids.item"][4:], before["ids.item"][4:])
    assert_close(after["ids.user"], decayed(before["ids.user"], {1: 7}), rtol=1e-6, atol=1e-8)
    assert collected.penalty() is None


@BACKENDS
def test_penalty_joins_the_gradient_of_the_step_in_one_update(backend: Backend) -> None:
    collected = collection(backend, RowWiseAdagrad(lr=LR))
    before = collected.backend.weights()["ids.user"].clone()
    step(collected, batch(), factor=2.0)
    gradient = 3 * 2.0 + STRENGTH / 7 * before[1]
    expected = before[1] - LR * gradient / gradient.square().mean().sqrt()
    assert_close(collected.backend.weights()["ids.user"][1], expected)


def test_penalty_of_a_compressed_table_is_that_of_its_vectors() -> None:
    collected = collection("plain", spec=HashTable(embedding_dim=4, budget="70%"))
    ids = {"item": torch.arange(4), "user": torch.tensor([1])}
    counts = {"item": torch.tensor([1, 5, 4, 3]), "user": torch.tensor([7])}
    vectors = collected.lookup({name: (name, ids[name]) for name in ids})
    naive = sum((STRENGTH / 2 / counts[name] * vectors[name].square().sum(1)).sum() for name in ids)
    collected(batch())
    assert_close(collected.penalty(), naive)


def test_nothing_is_noted_without_gradient() -> None:
    collected = collection("plain")
    with torch.no_grad():
        collected(batch())
    assert collected.penalty() is None


def test_penalty_without_counts_or_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="mba_l2 must be above 0, got 0"):
        MiniBatchL2(0, {"ids": torch.ones(3)})
    with pytest.raises(ValueError, match="no table's ids were counted"):
        MiniBatchL2(1, {})


def test_two_ranks_decay_as_one_process_does() -> None:
    run_on_two_ranks(check_two_ranks)


def check_two_ranks() -> None:
    """Item 2 and user 1 are read by both ranks."""
    whole, part = collection("plain"), collection("sharded")
    step_alone(whole)
    mine = torch.arange(3)[distributed.rank() :: 2]
    step(part, batch().select(mine), factor=0.3 * 2)
    weights = part.backend.whole_weights()
    for name, expected in whole.backend.weights().items():
        assert_close(weights[name], expected.detach(), rtol=1e-5, atol=1e-7)


def step_alone(whole: EmbeddingCollection) -> None:
    """As a process without a group."""
    joined, distributed.is_distributed = distributed.is_distributed, lambda: False
    try:
        step(whole, batch(), factor=0.3)
    finally:
        distributed.is_distributed = joined

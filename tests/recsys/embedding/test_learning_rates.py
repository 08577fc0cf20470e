"""`scale_learning_rate` of the three backends: the updates of an optimizer with that learning rate."""

from pathlib import Path

import pytest
import torch

from features.batch import Batch
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.optimizers import SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from tests.recsys.embedding import test_sharded as sharded
from tests.recsys.embedding.small_schema import collection_of, train
from tests.recsys.two_ranks import run_on_two_ranks

FACTORS = (1.0, 0.25, 0.0, 3.0)
RULES: list[TableOptimizer] = [SGD(lr=0.3), Adagrad(lr=0.2), RowWiseAdagrad(lr=0.2)]


def trained(collection: EmbeddingCollection) -> EmbeddingCollection:
    for factor in FACTORS:
        collection.backend.scale_learning_rate(factor)
        train(collection, steps=1)
    return collection


@pytest.mark.parametrize("rule", [*RULES, Adam(lr=0.1)], ids=lambda rule: type(rule).__name__)
def test_plain_with_a_factor_is_another_learning_rate(rule: TableOptimizer) -> None:
    scaled = collection_of("plain", rule)
    scaled.backend.scale_learning_rate(0.25)
    other = collection_of("plain", rule.model_copy(update={"lr": 0.25 * rule.lr}))
    for collection in (scaled, other):
        train(collection, steps=3)
    for name, tensor in other.state().items():
        assert torch.equal(scaled.state()[name], tensor), name


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_fused_equals_plain_under_changing_factors(rule: TableOptimizer) -> None:
    plain, fused = trained(collection_of("plain", rule)), trained(collection_of("fused", rule))
    for name, tensor in plain.state().items():
        torch.testing.assert_close(fused.state()[name], tensor, atol=2e-6, rtol=2e-6, msg=name)


def check_factors(_: str) -> None:
    """On each rank: sharded over both equals plain on the whole batch."""
    for rule in RULES:
        spread = sharded.collection("sharded", rule, sharded.MIXED)
        alone = sharded.collection("plain", rule)
        for factor, batch in zip(FACTORS, sharded.global_batches(), strict=False):
            for collection, part in ((spread, sharded.ranks_part(batch)), (alone, batch)):
                collection.backend.scale_learning_rate(factor)
                step(collection, part, alone=collection is alone)
        for name, tensor in alone.state().items():
            sharded.close(sharded.whole(spread.state()[name]), tensor)


def step(collection: EmbeddingCollection, batch: Batch, alone: bool) -> None:
    if not alone:
        sharded.train_step(collection, batch)
        return
    assert batch.row_ids is not None
    weights = batch.row_weights()
    losses = sharded.row_scores(collection(batch), batch.row_ids).square()
    ((losses * weights).sum() / weights.sum()).backward()


def test_sharded_equals_plain_under_changing_factors(tmp_path: Path) -> None:
    run_on_two_ranks(check_factors, str(tmp_path))

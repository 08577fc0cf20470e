"""DIN with BatchNorm, Dice, dropout and the mini-batch-aware penalty, trained on two ranks, is the one trained in one
process: losses, tables, layers, running moments.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import Batch
from recsys import distributed
from recsys.embedding.collection import Backend, EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.minibatch_l2 import MiniBatchL2
from recsys.embedding.optimizers import SGD
from recsys.laws.checkerboard import Checkerboard
from recsys.models.din import DIN
from recsys.phases import Step
from tests.recsys.models.two_rank_batches import global_batches, ranks_part
from tests.recsys.two_ranks import run_on_two_ranks

WORLD = Checkerboard.of()
SIZES = (9, 1, 15, 13)  # odd ones, and one row for two ranks
Found = TypeVar("Found")


def test_training_does_not_depend_on_the_number_of_ranks() -> None:
    run_on_two_ranks(check_training)


def check_training() -> None:
    whole, part = alone(partial(model, "plain")), model("sharded")
    for index, batch in enumerate(global_batches(WORLD, SIZES)):
        step = Step(seed=0, phase="train", epoch=0, index=index)
        expected = alone(partial(update, whole, batch, step))
        assert_close(update(part, ranks_part(batch), step), expected, rtol=1e-5, atol=1e-5)
    weights = part.collection.backend.whole_weights()
    for name, store in whole.collection.backend.weights().items():
        assert_close(weights[name], store.detach(), rtol=1e-4, atol=1e-5)
    for mine, reference in zip(part.parameters(), whole.parameters(), strict=True):
        assert_close(mine, reference, rtol=1e-4, atol=1e-5)
    for noted, moments in zip(part.buffers(), whole.buffers(), strict=True):
        assert_close(noted, moments, rtol=1e-4, atol=1e-5)


def model(backend: Backend) -> DIN:
    collection = EmbeddingCollection(
        WORLD.encoder, {"ids": DenseTable(embedding_dim=8)}, backend=backend, optimizer=SGD(lr=0.5)
    )
    names = [spec.name for spec in WORLD.encoder.schema.inputs]
    keys = {name: key for name in names if (key := collection.table_key(name)) is not None}
    collection.minibatch_l2 = MiniBatchL2.of(0.5, WORLD.encoder.counts, keys)
    torch.manual_seed(0)
    options = DIN.Config(hidden=(8,), attention_hidden=(6,), activation="dice", dropout=0.2)
    return DIN(WORLD.encoder, collection, options)


def alone(work: Callable[[], Found]) -> Found:
    """What a process without a group would do."""
    joined, distributed.is_distributed = distributed.is_distributed, lambda: False
    try:
        return work()
    finally:
        distributed.is_distributed = joined


def update(found: DIN, batch: Batch, step: Step) -> Tensor:
    """One step of gradient descent as the trainer takes it; the global loss."""
    torch.manual_seed(step.generator().initial_seed())
    ranks, weights = distributed.world_size(), batch.row_weights()
    loss = (found.row_losses(batch, step) * weights).sum()
    total, value = distributed.all_reduce_sum(torch.stack([weights.sum(), loss.detach()])).unbind()
    penalty = found.collection.penalty()
    assert penalty is not None
    found.zero_grad()
    (loss * ranks / total + penalty).backward()
    distributed.average_gradients(found.parameters())
    with torch.no_grad():
        for parameter in found.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)
    return value / total

"""A two-tower trained in batch on two ranks is the one trained in one process: losses, tables, layers."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from features.batch import Batch
from recsys import distributed
from recsys.embedding.collection import Backend, EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import RowWiseAdagrad
from recsys.laws.checkerboard import Checkerboard
from recsys.models.interface import PhaseSettings
from recsys.models.retrieval_loss import Gather, own_rows
from recsys.models.twotower import TwoTower
from recsys.phases import Phase, Step, Until
from tests.recsys.models.two_rank_batches import global_batches, ranks_part
from tests.recsys.two_ranks import run_on_two_ranks

WORLD = Checkerboard.of().positives()
SIZES = (9, 1, 12, 8)  # odd ones, and one row for two ranks


def test_in_batch_training_does_not_depend_on_the_number_of_ranks() -> None:
    run_on_two_ranks(check_training)


def check_training() -> None:
    whole, whole_phase = trained("plain", own_rows)
    part, part_phase = trained("sharded", distributed.gather_rows)
    for index, batch in enumerate(global_batches(WORLD, SIZES)):
        step = Step(seed=0, phase="train", epoch=0, index=index)
        assert_close(
            update(part_phase, ranks_part(batch), step, 2), update(whole_phase, batch, step, 1), rtol=1e-5, atol=1e-5
        )
    for name, store in whole.collection.backend.weights().items():
        assert_close(gathered(part.collection.backend.weights()[name]), store, rtol=1e-4, atol=1e-5)
    for mine, expected in zip(part.parameters(), whole.parameters(), strict=True):
        assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def trained(backend: Backend, gather: Gather) -> tuple[TwoTower, Phase]:
    specs = {"ids": DenseTable(embedding_dim=8)}
    collection = EmbeddingCollection(WORLD.encoder, specs, backend=backend, optimizer=RowWiseAdagrad(lr=0.1))
    torch.manual_seed(0)
    model = TwoTower(WORLD.encoder, collection, TwoTower.Config(layers=(6, 4), num_negatives=3))
    settings = PhaseSettings(
        batch_size=8,
        seed=0,
        until=Until(max_epochs=1),
        make_optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        gather=gather,
    )
    return model, model.phases(WORLD, settings)[0]


def update(phase: Phase, batch: Batch, step: Step, ranks: int) -> Tensor:
    """As the trainer does it; the global loss."""
    weights = batch.row_weights()
    loss = (phase.loss(batch, step) * weights).sum()
    sums = torch.stack([weights.sum(), loss.detach()])
    total, value = (distributed.all_reduce_sum(sums) if ranks > 1 else sums).unbind()
    for optimizer in phase.optimizers:
        optimizer.zero_grad()
    (loss * ranks / total).backward()
    for optimizer in phase.optimizers:
        if ranks > 1:
            distributed.average_gradients(optimizer.param_groups[0]["params"])
        optimizer.step()
    return value / total


def gathered(tensor: Tensor) -> Tensor:
    """All rows of a sharded store."""
    if not isinstance(tensor, DTensor):
        return tensor
    parts = distributed.gather_objects(tensor.to_local().clone())
    return torch.cat([part.view(-1, *tensor.shape[1:]) for part in parts])

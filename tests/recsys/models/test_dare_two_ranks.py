"""A step of DARE and TWIN over two ranks is that of one process: losses, and gradients of layers and tables."""

import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import Batch
from recsys import distributed
from recsys.models.twin import SearchedAttention
from recsys.phases import Step
from tests.recsys.models.aligned_world import batch
from tests.recsys.models.test_dare import dare
from tests.recsys.models.test_twin import twin
from tests.recsys.two_ranks import run_on_two_ranks

STEP = Step(seed=0, phase="train", epoch=0, index=0)
ROWS = 5  # not the same number on both ranks


def test_step_does_not_depend_on_the_number_of_ranks() -> None:
    run_on_two_ranks(check_steps)


def check_steps() -> None:
    check_step(dare(search_k=2, activation="silu"))
    check_step(twin(search_k=2, activation="silu", projections=True))


def check_step(model: SearchedAttention) -> None:
    rows = torch.arange(ROWS)
    whole, mine = batch().select(rows), batch().select(rows[distributed.rank() :: 2])
    losses, gradients = stepped(model.train(), mine)
    joined, distributed.is_distributed = distributed.is_distributed, lambda: False
    try:
        expected, sums = stepped(model, whole)
    finally:
        distributed.is_distributed = joined
    assert_close(losses, expected[rows[distributed.rank() :: 2]], atol=1e-5, rtol=1e-5)
    for gradient, of_all in zip(gradients, sums, strict=True):
        assert_close(distributed.all_reduce_sum(gradient), of_all, atol=1e-5, rtol=1e-4)


def stepped(model: SearchedAttention, rows: Batch) -> tuple[Tensor, list[Tensor]]:
    losses = model.row_losses(rows, STEP)
    parameters = list(model.parameters())
    found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    zeros = [torch.zeros_like(parameter) for parameter in parameters]
    return losses.detach(), [zero if one is None else one for one, zero in zip(found, zeros, strict=True)]

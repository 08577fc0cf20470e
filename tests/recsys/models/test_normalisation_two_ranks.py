"""BatchNorm, Dice and dropout over two ranks are those of one process: values, gradients, running moments."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from recsys import distributed
from recsys.models.normalisation import BatchNorm, Dice, RowDropout
from tests.recsys.two_ranks import run_on_two_ranks

ROWS = 7


def test_layers_do_not_depend_on_the_number_of_ranks() -> None:
    run_on_two_ranks(check_layers)


def check_layers() -> None:
    for make in (lambda: BatchNorm(3), lambda: Dice(3)):
        check_layer(make, ROWS)
        check_layer(make, 1)  # rank 1 takes part with a row of weight 0
    check_dropout()


def check_layer(make: Callable[[], nn.Module], num_rows: int) -> None:
    x = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(0))
    whole, part = make(), make()
    rows = torch.arange(num_rows)[distributed.rank() :: 2]
    empty = len(rows) == 0
    mine = x[:1] if empty else x[rows]
    found, gradient = stepped(part, mine, torch.zeros(1) if empty else None, ranks=2)
    with_all, expected = in_one_process(whole, x)
    if not empty:
        assert_close(found, with_all[rows])
        assert_close(gradient / 2, expected[rows], atol=1e-5, rtol=1e-4)
    distributed.average_gradients(part.parameters())
    for parameter, reference in zip(part.parameters(), whole.parameters(), strict=True):
        assert_close(parameter.grad, reference.grad, atol=1e-5, rtol=1e-4)
    for buffer, noted in zip(part.buffers(), whole.buffers(), strict=True):
        assert_close(buffer, noted)


def stepped(layer: nn.Module, x: Tensor, weights: Tensor | None, ranks: int) -> tuple[Tensor, Tensor]:
    """The layer's values, and the gradient of `ranks` times this rank's share of the loss."""
    x = x.clone().requires_grad_()
    found: Tensor = layer(x, weights)
    counted = found if weights is None else found * weights[:, None]
    (ranks * (counted.sin() * torch.tensor([1.0, 2, 3])).sum()).backward()
    assert x.grad is not None
    return found.detach(), x.grad


def in_one_process(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """As a process without a group: its collectives do nothing."""
    joined, distributed.is_distributed = distributed.is_distributed, lambda: False
    try:
        return stepped(layer, x, None, ranks=1)
    finally:
        distributed.is_distributed = joined


def check_dropout() -> None:
    torch.manual_seed(5)
    layer, rows = RowDropout(0.5, "head"), torch.arange(ROWS)
    mine = rows[distributed.rank() :: 2]
    assert torch.equal(layer(torch.ones(len(mine), 30), mine), layer(torch.ones(ROWS, 30), rows)[mine])

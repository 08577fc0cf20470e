"""Collectives of ours: one process and two gloo ranks give the same numbers and the same gradients."""

import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recsys import distributed
from tests.recsys.two_ranks import run_on_two_ranks


def ranks_rows(rows: Tensor) -> Tensor:
    """Rows r, r + W, ... of a global batch."""
    return rows[distributed.rank() :: distributed.world_size()]


# --- one process ---


def test_collectives_are_no_ops_in_one_process() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_distributed()) == (0, 1, False)
    assert distributed.all_reduce_sum(rows) is rows
    assert distributed.gather_rows(rows, torch.arange(3)) is rows
    assert distributed.gather_ragged(rows) is rows
    assert distributed.gather_counts(3) == [3]
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    assert distributed.gather_objects("x") == ["x"]
    assert distributed.together(lambda: 7) == [7]
    assert (distributed.any_rank(True), distributed.any_rank(False)) == (True, False)
    assert distributed.first_to_fail(unanswered=False)
    distributed.barrier()
    distributed.finalise()


def test_average_gradients_leaves_one_process_alone() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    distributed.average_gradients([parameter])
    assert torch.equal(parameter.grad, torch.ones(2))


def test_initialise_without_torchrun_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with distributed.joined_ranks():
        assert not distributed.is_distributed()


def test_initialise_names_missing_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.TORCHRUN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        distributed.initialise()


def test_initialise_refuses_other_devices() -> None:
    with pytest.raises(ValueError, match="'cpu' or 'cuda', got 'mps'"):
        distributed.initialise("mps")


def test_together_raises_as_it_came_in_one_process() -> None:
    with pytest.raises(OSError, match="disk full"):
        distributed.together(lambda: fail(OSError("disk full")))


def fail(error: Exception) -> None:
    raise error


# --- two ranks ---


def test_collectives_agree_on_two_ranks() -> None:
    run_on_two_ranks(check_collectives)


def check_collectives() -> None:
    checks: list[Callable[[], None]] = [
        check_agreement, check_sums, check_averages, check_gathered_order, check_dummy_rows, check_counts,
        check_gather_gradient, check_sum_gradient, check_second_initialise, check_first_to_fail,
    ]  # fmt: skip
    for check in checks:
        check()


def check_agreement() -> None:
    rank = distributed.rank()
    assert distributed.any_rank(rank == 1)
    assert not distributed.any_rank(False)
    assert distributed.broadcast_object({"from": rank}, source=1) == {"from": 1}
    assert distributed.gather_objects(rank) == [0, 1]
    assert distributed.together(lambda: rank * 10) == [0, 10]
    with pytest.raises(OSError, match="disk full" if rank else "rank 1: disk full"):
        distributed.together(lambda: fail(OSError("disk full")) if rank else None)
    with pytest.raises(ValueError, match="rank 0: bad" if rank else "bad"):
        distributed.together(lambda: None if rank else fail(ValueError("bad")))
    distributed.barrier()


def check_first_to_fail() -> None:
    assert sum(distributed.gather_objects(distributed.first_to_fail(unanswered=False))) == 1
    assert not distributed.is_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def check_sums() -> None:
    mine = torch.tensor([distributed.rank() + 1, 2**40])
    assert distributed.all_reduce_sum(mine).tolist() == [3, 2**41]
    assert mine.tolist() == [distributed.rank() + 1, 2**40]


def check_averages() -> None:
    first, second, unused = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    first.grad = torch.full((2, 3), float(distributed.rank()))
    second.grad = torch.ones(2, 3) if distributed.rank() else None
    distributed.average_gradients([first, second, unused])
    assert first.grad is not None
    assert second.grad is not None
    assert torch.equal(first.grad, torch.full((2, 3), 0.5))
    assert torch.equal(second.grad, torch.full((2, 3), 0.5))
    assert unused.grad is None


def check_gathered_order() -> None:
    for count in (1, 2, 5, 6):
        rows = torch.arange(count * 3.0).view(count, 3)
        ids = torch.arange(count)
        assert torch.equal(distributed.gather_rows(ranks_rows(rows)), rows)
        assert torch.equal(distributed.gather_rows(ranks_rows(rows), ranks_rows(ids) + 40), rows)
        assert torch.equal(distributed.gather_rows(ranks_rows(ids)), ids)
        assert torch.equal(distributed.gather_rows(ranks_rows(ids) > 2), ids > 2)
    assert len(distributed.gather_rows(torch.empty(0, 4))) == 0


def check_dummy_rows() -> None:
    """A batch of one row: rank 1 holds a copy of it, which is neither taken nor given a gradient."""
    row = torch.ones(1, 2, requires_grad=True)
    everything = distributed.gather_rows(row, torch.tensor([7]))
    (everything * 3).sum().backward()
    assert everything.shape == (1, 2)
    assert row.grad is not None
    assert row.grad.tolist() == [[0.0, 0.0] if distributed.rank() else [6.0, 6.0]]


def check_counts() -> None:
    assert distributed.gather_counts(distributed.rank() + 3) == [3, 4]
    mine = torch.arange(distributed.rank() + 1) + 10 * distributed.rank()
    assert distributed.gather_ragged(mine).tolist() == [0, 10, 11]
    with pytest.raises(ValueError, match=r"ranks hold \[1, 2\] rows; 3 rows dealt in turn are \[2, 1\]"):
        distributed.gather_rows(torch.zeros(distributed.rank() + 1, 2))


def check_gather_gradient() -> None:
    """In-batch softmax: the averaged gradients of two ranks are those of one process."""
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(2, 5, 4, generator=generator)
    weights = torch.rand(5, generator=generator)
    alone = nn.Parameter(torch.eye(4))
    loss = in_batch_losses(users @ alone, items @ alone, torch.arange(5))
    (loss * weights).sum().div(weights.sum()).backward()
    mine = nn.Parameter(torch.eye(4))
    rows = ranks_rows(torch.arange(5))
    losses = in_batch_losses(users[rows] @ mine, distributed.gather_rows(items[rows] @ mine), rows)
    total = distributed.all_reduce_sum(weights[rows].sum())
    (losses * weights[rows]).sum().mul(distributed.world_size() / total).backward()
    distributed.average_gradients([mine])
    torch.testing.assert_close(mine.grad, alone.grad, atol=1e-6, rtol=1e-5)


def in_batch_losses(users: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(users @ items.T, targets, reduction="none")


def check_sum_gradient() -> None:
    """Moments over all ranks: the averaged gradient of two ranks is that of one process."""
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    alone = torch.ones(3, requires_grad=True)
    (rows * alone).mean(0).square().sum().backward()
    mine = nn.Parameter(torch.ones(3))
    total = distributed.all_reduce_sum((ranks_rows(rows) * mine).sum(0))
    (total / 5).square().sum().backward()
    distributed.average_gradients([mine])
    torch.testing.assert_close(mine.grad, alone.grad)


def check_second_initialise() -> None:
    with pytest.raises(ValueError, match="already joined a process group, as rank"):
        distributed.initialise()


# --- a rank that dies ---


def test_a_rank_that_dies_is_seen_by_the_other() -> None:
    run_on_two_ranks(check_lost_rank, killed=1)


def check_lost_rank() -> None:
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as lost:
        distributed.barrier()
    assert distributed.is_lost_rank(lost.value)

"""The collectives of ours: who this rank is, sums, averaged gradients, rows gathered in global order, agreement.

Not here: what torchrec exchanges for sharded tables, and the weighting of losses (the trainer). With one process and no
process group every function is a cheap no-op, so that callers need no case for it.

Conventions. Rank r of W holds rows r, r + W, r + 2W, ... of a global batch. The loss of a rank is W times its share of
the global loss, and gradients are averaged over ranks; the gradients of `all_reduce_sum` and `gather_rows` are those of
that average. Every function is called by all ranks, in the same order.

Shapes: W ranks; n rows of this rank; B rows of all ranks.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

T = TypeVar("T")
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among the ranks, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """W, the number of ranks."""
    return dist.get_world_size() if is_distributed() else 1


# --- joining and leaving ---


def launched_by_torchrun() -> bool:
    """Whether torchrun's variables are set. Raises ValueError naming those that are missing when only some are."""
    missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return False
    if missing:
        raise ValueError(
            f"RANK or WORLD_SIZE is set but {', '.join(missing)} is not; start several ranks with "
            "`torchrun --nproc_per_node N -m ...`, or unset them to run in one process"
        )
    return True


def initialise(device: str = "cpu", timeout_s: float = 1800.0) -> None:
    """Join the process group that torchrun's environment describes: gloo on "cpu", nccl on "cuda".

    Without torchrun's variables nothing happens: one process. On "cuda", LOCAL_RANK's GPU becomes the current one.
    timeout_s: a collective that waits longer for another rank fails.
    Raises ValueError when already joined, for a device of another type, or for a GPU that is not there.
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"ranks run on device 'cpu' or 'cuda', got {device!r}")
    if not launched_by_torchrun():
        return
    if is_distributed():
        raise ValueError(f"this process has already joined a process group, as rank {rank()} of {world_size()}")
    if kind == "cuda":
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def _take_gpu(local_rank: int) -> None:
    available = torch.cuda.device_count()
    if local_rank >= available:
        raise ValueError(f"LOCAL_RANK {local_rank} needs a GPU of that number, this host has {available}")
    torch.cuda.set_device(local_rank)


def finalise() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


@contextmanager
def joined_ranks(device: str = "cpu", timeout_s: float = 1800.0) -> Iterator[None]:
    """`initialise` before, `finalise` after."""
    initialise(device, timeout_s)
    try:
        yield
    finally:
        finalise()


# --- ranks that end ---


def first_to_fail(unanswered: bool) -> bool:
    """Whether no other rank has called this before: of the ranks that end with an error, one says why.

    unanswered: the answer when the rank that keeps count has ended already (torchrun's own launcher does, and stays).
    """
    ranks = dist.group.WORLD if is_distributed() else None
    if ranks is None:
        return True
    try:
        count: int = ranks.get_group_store().add("failed", 1)
    except RuntimeError:
        return unanswered
    return count == 1


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory, of which it has no error class of its own on the CPU."""
    return bool(re.search(r"can't allocate memory|CUDA out of memory", str(error)))


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank has ended or does not answer; gloo says so in words alone."""
    return isinstance(error, dist.DistError) or (is_distributed() and "/gloo/" in str(error))


# --- agreement ---


def barrier() -> None:
    """Wait until all ranks are here."""
    if world_size() > 1:
        any_rank(False)


def any_rank(flag: bool) -> bool:
    """Whether the flag is true on any rank; the same answer on all (a signal seen by one rank stops all)."""
    if world_size() == 1:
        return flag
    total = all_reduce_sum(torch.tensor([int(flag)], device=_device()))
    return bool(total.item() > 0)


def broadcast_object(value: Any, source: int = 0) -> Any:
    """Rank `source`'s value, on all ranks; it must pickle (in memory, nothing reaches a disk)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on all ranks; they must pickle (in memory, nothing reaches a disk)."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> list[T]:
    """Do something on every rank; all ranks' results, in rank order.

    An OSError or ValueError on one rank is raised there, and on the others as an error of that kind naming the rank.
    """
    if world_size() == 1:
        return [work()]
    try:
        mine: tuple[str, str, T | None] = ("", "", work())
    except OSError as error:
        gather_objects(("OSError", str(error), None))
        raise
    except ValueError as error:
        gather_objects(("ValueError", str(error), None))
        raise
    outcomes = gather_objects(mine)
    for number, (kind, text, _) in enumerate(outcomes):
        if kind:
            raise (OSError if kind == "OSError" else ValueError)(f"rank {number}: {text}")
    return [result for _, _, result in outcomes]


def _device() -> torch.device:
    """Where the backend expects the tensors of a collective."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


# --- sums and gradients ---


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, a new tensor, the same on all; its gradient is the sum of the ranks' gradients.

    Integers sum exactly. At W = 1 the tensor itself is returned.
    """
    if world_size() == 1:
        return tensor
    return cast(Tensor, _AllReduceSum.apply(tensor))  # type: ignore[no-untyped-call]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each `.grad` by its mean over ranks, in one flat bucket per data type and device.

    A parameter with a gradient on some ranks counts as zero on the others; one with none anywhere keeps none.
    Raises ValueError for a sparse gradient: tables with sparse gradients belong to one process.
    """
    if world_size() == 1:
        return
    buckets: dict[tuple[torch.dtype, torch.device], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        buckets.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for bucket in buckets.values():
        _average(bucket)


def _average(parameters: list[torch.nn.Parameter]) -> None:
    present = torch.stack([parameter.new_tensor(float(parameter.grad is not None)) for parameter in parameters])
    parts = [_gradient(parameter).reshape(-1) for parameter in parameters]
    flat = torch.cat([*parts, present])
    dist.all_reduce(flat)
    sizes = [parameter.numel() for parameter in parameters]
    *sums, counts = flat.split([*sizes, len(parameters)])
    for parameter, total, count in zip(parameters, sums, counts.tolist(), strict=True):
        parameter.grad = (total / world_size()).view_as(parameter) if count else None


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.is_sparse:
        raise ValueError(
            f"a parameter of shape {tuple(parameter.shape)} has a sparse gradient, ranks average dense ones"
        )
    return parameter.grad


# --- rows of all ranks ---


def gather_rows(rows: Tensor, row_ids: Tensor | None = None) -> Tensor:
    """Rows [n, ...] of this rank -> rows [B, ...] of all ranks in the order of the global batch, with gradient.

    row_ids: [n] int64, the rows' numbers in the global order (`Batch.row_ids`). They give the order, and a number that
    stands on several ranks is taken once, from the lowest: a rank without rows takes part with a copy of the first row.
    Without row_ids the ranks' counts are taken as they are: row i of rank r becomes row i * W + r.
    Raises ValueError when the counts cannot be those of rows r, r + W, ...
    """
    if world_size() == 1:
        return rows
    counts = gather_counts(len(rows), rows.device)
    order = _order_of_counts(counts) if row_ids is None else _order_of_ids(row_ids, counts)
    if not rows.is_floating_point():
        return _gathered(rows, counts)[order.to(rows.device)]
    return cast(Tensor, _GatherRows.apply(rows, counts, order.to(rows.device)))  # type: ignore[no-untyped-call]


def gather_counts(count: int, device: torch.device | str = "cpu") -> list[int]:
    """Every rank's count, in rank order."""
    if world_size() == 1:
        return [count]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = count
    return cast(list[int], _summed(counts).tolist())


def gather_ragged(rows: Tensor) -> Tensor:
    """Rows [n, ...] of this rank -> those of all ranks, as many as each has, in the order of the ranks; no gradient."""
    return rows if world_size() == 1 else _gathered(rows.detach(), gather_counts(len(rows), rows.device))


def _order_of_counts(counts: list[int]) -> Tensor:
    """Where each global row stands in the ranks' rows laid end to end."""
    total = sum(counts)
    expected = [len(range(r, total, len(counts))) for r in range(len(counts))]
    if counts != expected:
        raise ValueError(f"ranks hold {counts} rows; {total} rows dealt in turn are {expected}. Give row_ids")
    starts = torch.tensor([0, *counts]).cumsum(0)
    rows = torch.arange(total)
    return starts[rows % len(counts)] + rows // len(counts)


def _order_of_ids(row_ids: Tensor, counts: list[int]) -> Tensor:
    """As `_order_of_counts`, by rising row id; of equal ids the first, which the lowest rank holds."""
    ids = _gathered(row_ids, counts)
    ordered, order = ids.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def _gathered(rows: Tensor, counts: list[int]) -> Tensor:
    """The ranks' rows laid end to end; every rank sends as many as the longest has, since gloo takes equal sizes."""
    longest = max(counts)
    if longest == 0:
        return rows
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    pieces = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], order: Tensor) -> Tensor:
        ctx.counts, ctx.order = counts, order
        return _gathered(rows.detach(), counts)[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Sum over ranks, then this rank's rows; a row that was taken from another rank has gradient 0."""
        total = _summed(gradients[0])
        laid_out = total.new_zeros((sum(ctx.counts), *total.shape[1:])).index_copy(0, ctx.order, total)
        start = sum(ctx.counts[: rank()])
        return laid_out[start : start + ctx.counts[rank()]], None, None

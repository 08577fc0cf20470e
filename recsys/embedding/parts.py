"""The part of a store that this rank holds, seen as a part of the whole: DTensors, first values, loading, gathering.

Not here: which block of rows or columns is whose (placement.py), and what lies behind them in torchrec (sharded.py).

Shapes: n rows of a store, d its true width, m rows and e padded columns of a part.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from recsys.embedding.store import BLOCK_ROWS, Store


def device_of_ranks() -> torch.device:
    """Where the process group's tensors live."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def spread(held: Tensor, store: Store, columns: range, mesh: DeviceMesh, dim: int) -> DTensor:
    """The DTensor [n] or [n, d] of which `held`, less its padding, is this rank's part.

    columns: the true ones of the part. dim: of [n, d], along which the parts lie.
    """
    local = held[:, : len(columns)] if held.dim() > 1 else held
    shape = torch.Size((store.num_embeddings, store.embedding_dim)[: held.dim()])
    stride = (store.embedding_dim, 1)[2 - len(shape) :]
    split = Shard(dim if held.dim() > 1 else 0)
    return DTensor.from_local(local, mesh, [split], run_check=False, shape=shape, stride=stride)


def fill_initial(held: Tensor, store: Store, part: tuple[range, range], seed: int) -> None:
    """Write the initial values of a part; of a block of columns, whole rows are drawn a block of rows at a time."""
    rows, columns = part
    if len(columns) == store.embedding_dim:
        store.initialise(held[:, : len(columns)], seed, rows.start)
        return
    for start in range(0, len(rows), BLOCK_ROWS):
        block = held[start : start + BLOCK_ROWS]
        drawn = block.new_empty(len(block), store.embedding_dim)
        store.initialise(drawn, seed, start)
        block[:, : len(columns)] = drawn[:, columns.start : columns.stop]


def whole(weight: Tensor, parts: Mapping[int, tuple[range, range]]) -> Tensor:
    """A copy of a store [n, d] on every rank, of its DTensor; called by all ranks. parts: rank -> rows and columns."""
    assert isinstance(weight, DTensor)
    found = torch.empty(weight.shape, device=weight.device)
    for rank, (rows, columns) in parts.items():
        mine = rank == dist.get_rank()
        part = weight.to_local().contiguous() if mine else found.new_empty(len(rows), len(columns))
        dist.broadcast(part, src=rank)
        found[rows.start : rows.stop, columns.start : columns.stop] = part
    return found


def fill(name: str, target: Tensor, given: Tensor) -> None:
    """Write this rank's part of `given`, whole or spread alike, into the target's."""
    assert isinstance(target, DTensor)
    local = target.to_local()
    if isinstance(given, DTensor):
        if (given.device_mesh, given.placements) != (target.device_mesh, target.placements):
            raise ValueError(f"{name!r} is spread otherwise over the ranks; load it from a checkpoint into state()")
        local.copy_(given.to_local())
    elif local.numel():
        coordinate, placement = target.device_mesh.get_coordinate(), target.placements[0]
        assert coordinate is not None
        assert isinstance(placement, Shard)
        start = coordinate[0] * -(-target.shape[placement.dim] // target.device_mesh.size())
        local.copy_(given.narrow(placement.dim, start, local.shape[placement.dim]))

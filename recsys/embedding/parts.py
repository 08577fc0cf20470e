"""The part of a store that this rank holds, seen as a part of the whole: DTensors, first values, loading, gathering.

A placement (placement.py) says which block of rows or columns is whose. Not here: how the parts come to be, and what
lies behind them in torchrec (sharded.py).

Shapes: n rows of a store, d its true width, m rows and e padded columns of a part.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from recsys.embedding.placement import Placement
from recsys.embedding.table import BLOCK_ROWS, Store


def device_of_ranks() -> torch.device:
    """Where the process group's tensors live."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def spread(held: Tensor, store: Store, placement: Placement, mesh: DeviceMesh) -> DTensor:
    """The DTensor [n] or [n, d] of which `held`, less its padding, is this rank's part."""
    dim = 0 if placement.by_rows or held.dim() == 1 else 1
    columns = len(own_part(store, placement)[1])
    local = held[:, :columns] if held.dim() > 1 else held
    shape = torch.Size((store.num_embeddings, store.embedding_dim)[: held.dim()])
    stride = (store.embedding_dim, 1)[2 - len(shape) :]
    return DTensor.from_local(local, mesh, [Shard(dim)], run_check=False, shape=shape, stride=stride)


def own_part(store: Store, placement: Placement) -> tuple[range, range]:
    """The rows and columns of this rank's part, empty where it holds none."""
    rank = dist.get_rank()
    return placement.part(store, placement.ranks.index(rank)) if rank in placement.ranks else (range(0), range(0))


def fill_initial(held: Tensor, store: Store, placement: Placement, seed: int) -> None:
    """Write the initial values of this rank's part; of a block of columns, whole rows are drawn a block at a time."""
    rows, columns = own_part(store, placement)
    if len(columns) == store.embedding_dim:
        store.initialise(held[:, : len(columns)], seed, rows.start)
        return
    for start in range(0, len(rows), BLOCK_ROWS):
        part = held[start : start + BLOCK_ROWS]
        drawn = part.new_empty(len(part), store.embedding_dim)
        store.initialise(drawn, seed, start)
        part[:, : len(columns)] = drawn[:, columns.start : columns.stop]


def whole(weight: Tensor, store: Store, placement: Placement) -> Tensor:
    """A copy of a store [n, d] on every rank, of its DTensor; each part is sent once. Called by all ranks."""
    assert isinstance(weight, DTensor)
    found = torch.empty(weight.shape, device=weight.device)
    for number, rank in enumerate(placement.ranks):
        rows, columns = placement.part(store, number)
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

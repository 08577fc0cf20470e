"""The facts of facts.py, each run on small modules of torchrec and fbgemm: what is seen, and whether that is the fact.

A probe may crash or hang with other versions, so it runs in a process of its own (isolation.py), among as many ranks as
the fact names.

Shapes: N rows looked up, n rows of a table, d its width.
"""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recsys import distributed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # dozens of deprecations of torch and torchrec, on import
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        EmbeddingLocation,
        OptimType,
        SplitTableBatchedEmbeddingBagsCodegen,
    )
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
    from torchrec import EmbeddingBagCollection, EmbeddingCollection, KeyedJaggedTensor
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.mc_embedding import ManagedCollisionEmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.distributed.sharding_plan import (
        column_wise,
        construct_module_sharding_plan,
        data_parallel,
        table_wise,
    )
    from torchrec.distributed.types import ShardingEnv
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
    from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
    from torchrec.modules.mc_modules import (
        DistanceLFU_EvictionPolicy,
        ManagedCollisionCollection,
        MCHManagedCollisionModule,
    )
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

CPU = torch.device("cpu")
NUM_ROWS, DIM, NUM_READ, LR = 10, 8, 6, 0.1
WEIGHT = "embedding_bags.table.weight"
CLOSE = 1e-5

Seen = tuple[str, bool]


def probe(name: str) -> dict[str, Any]:
    """Run the probe of a fact, on as many ranks as it needs: {"seen": what, "expected": whether that is the fact}."""
    seen, expected = PROBES[name]()
    return {"seen": seen, "expected": expected}


# --- probes ---


def _no_fused_adam() -> Seen:
    asked = [OptimType.ADAM, OptimType.LAMB, OptimType.PARTIAL_ROWWISE_ADAM, OptimType.LARS_SGD]
    runs = [OptimType.EXACT_SGD, OptimType.EXACT_ADAGRAD, OptimType.EXACT_ROWWISE_ADAGRAD]
    refused = {kind.value: _refusal(kind) for kind in [*asked, *runs]}
    seen = [name for name, refusal in refused.items() if "not supported in CPU mode" in refusal]
    return f"refused on CPU: {', '.join(seen)}", seen == [kind.value for kind in asked]


def _refusal(kind: OptimType) -> str:
    """Why fbgemm does not take an optimizer on CPU, "" where a step with it runs."""
    table = (NUM_ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)
    try:
        op = SplitTableBatchedEmbeddingBagsCodegen([table], optimizer=kind, device=CPU)
        op(torch.arange(NUM_READ), torch.arange(NUM_READ + 1)).sum().backward()
    except AssertionError as refusal:
        return str(refusal)
    return ""


def _no_odd_widths() -> Seen:
    table = (NUM_ROWS, DIM - 2, EmbeddingLocation.HOST, ComputeDevice.CPU)
    try:
        SplitTableBatchedEmbeddingBagsCodegen([table], optimizer=OptimType.EXACT_SGD, device=CPU)
    except AssertionError as refusal:
        return f"width {DIM - 2}: {refusal}", True
    return f"width {DIM - 2} is taken", False


def _no_row_wise_bags() -> Seen:
    kinds = EmbeddingBagCollectionSharder().sharding_types("cpu")
    lists = EmbeddingCollectionSharder().sharding_types("cpu")
    return f"bags: {', '.join(kinds)}; lists: {', '.join(lists)}", "row_wise" not in kinds and "row_wise" in lists


def _no_mixed_widths() -> Seen:
    tables = [
        EmbeddingConfig(name=f"table{width}", feature_names=[f"f{width}"], num_embeddings=4, embedding_dim=width)
        for width in (DIM, 2 * DIM)
    ]
    try:
        EmbeddingCollection(tables=tables, device=CPU)
    except ValueError as refusal:
        return str(refusal), True
    return f"widths {DIM} and {2 * DIM} are taken", False


def _data_parallel_lists_are_wrong() -> Seen:
    """Two tables, lists of one row each: the vectors of a data-parallel and a table-wise copy against indexing."""
    keys = ["f0", "f1"]
    configs = [
        EmbeddingConfig(name=f"table{key}", feature_names=[key], num_embeddings=NUM_ROWS, embedding_dim=DIM)
        for key in keys
    ]
    values = {key: _fixed(NUM_ROWS, DIM, seed=number) for number, key in enumerate(keys)}
    rows = torch.arange(NUM_READ)
    asked = KeyedJaggedTensor(keys=keys, values=rows, lengths=torch.ones(NUM_READ, dtype=torch.int64))
    gaps: list[float] = []
    for kind in (data_parallel(), table_wise(rank=0, compute_kernel="fused")):
        whole = EmbeddingCollection(tables=deepcopy(configs), device=CPU)
        _apply_optimizer_in_backward(torch.optim.SGD, whole.parameters(), {"lr": LR})
        lists = _shard(whole, EmbeddingCollectionSharder(), {f"table{key}": kind for key in keys})
        for key in keys:
            _fill(lists, f"embeddings.table{key}.weight", values[key])
        found = lists(asked).wait()
        expected = {key: values[key][part] for key, part in zip(keys, rows.chunk(2), strict=True)}
        gaps.append(max(_gap(found[key].values(), expected[key]) for key in keys))
    seen = f"no error; vectors off by {gaps[0]:.2g} data-parallel, by {gaps[1]:.2g} table-wise"
    return seen, gaps[0] > CLOSE >= gaps[1]


def _column_wise_row_wise_adagrad_is_wrong() -> Seen:
    """One step of each optimizer on a table of DIM columns, a half on each rank, against the rule."""
    pull = _fixed(NUM_READ, DIM, seed=1) * torch.linspace(0.1, 10, DIM)
    steps = {
        RowWiseAdagrad: pull / pull.square().mean(1, keepdim=True).sqrt(),
        torch.optim.Adagrad: pull.sign(),
        torch.optim.SGD: pull,
    }
    gaps = []
    for optimizer, step in steps.items():
        bags = _bags(column_wise(ranks=list(range(dist.get_world_size()))), optimizer)
        start = _fixed(NUM_ROWS, DIM, seed=2)
        _fill(bags, WEIGHT, start)
        _train(bags, pull)
        gaps.append(_gap(_read(bags), start[:NUM_READ] - LR * step))
    seen = f"off by {gaps[0]:.2g} under row-wise Adagrad, {gaps[1]:.2g} under Adagrad, {gaps[2]:.2g} under SGD"
    return seen, gaps[0] > CLOSE >= max(gaps[1:])


def _data_parallel_loses_state() -> Seen:
    """A checkpoint of a table-wise table with row-wise Adagrad, loaded into a data-parallel one; a step of both."""
    saved, other = _bags(table_wise(rank=0), RowWiseAdagrad), _bags(data_parallel(), RowWiseAdagrad)
    _train(saved, torch.ones(NUM_READ, DIM))
    with tempfile.TemporaryDirectory() as own:
        folder = distributed.broadcast_object(own)
        states = [_state(saved), _state(other)]
        save(states[0], storage_writer=HuggingFaceStorageWriter(folder, save_distributed=True))
        load(states[1], storage_reader=HuggingFaceStorageReader(folder))
        distributed.barrier()
    loaded = _gap(_read(other), _read(saved))
    for bags in (saved, other):
        _train(bags, torch.ones(NUM_READ, DIM))
    after = _gap(_read(other), _read(saved))
    entries = [len(state) - 1 for state in states]
    seen = (
        f"no error; {entries[0]} state saved, {entries[1]} restored; weights off by {loaded:.2g}, a step on {after:.2g}"
    )
    return seen, entries[0] > entries[1] == 0 and loaded <= CLOSE < after


def _default_buckets_fail() -> Seen:
    """What the planner says to a managed-collision table for two ranks, with default buckets and with two."""
    by_default, with_two = _managed_collision_fault({}), _managed_collision_fault({"buckets": 2})
    seen = f"default buckets: {by_default or 'planned'}; 2 buckets: {with_two or 'planned'}"
    return seen, "uneven buckets" in by_default and not with_two


def _managed_collision_fault(buckets: dict[str, int]) -> str:
    tables = [EmbeddingConfig(name="table", feature_names=["f"], num_embeddings=16, embedding_dim=DIM)]
    collisions = MCHManagedCollisionModule(
        zch_size=16, device=CPU, eviction_interval=2, eviction_policy=DistanceLFU_EvictionPolicy(), **buckets
    )
    whole = ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=tables, device=CPU), ManagedCollisionCollection({"table": collisions}, tables)
    )
    fused = {"table": ParameterConstraints(compute_kernels=["fused"])}
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=2, compute_device="cpu"), constraints=fused)
    try:
        planner.plan(whole, [ManagedCollisionEmbeddingCollectionSharder()])
    except ValueError as fault:
        return str(fault).rstrip(".")
    return ""


PROBES: Mapping[str, Callable[[], Seen]] = {
    "no_fused_adam": _no_fused_adam,
    "no_odd_widths": _no_odd_widths,
    "no_row_wise_bags": _no_row_wise_bags,
    "no_mixed_widths": _no_mixed_widths,
    "default_buckets": _default_buckets_fail,
    "data_parallel_lists": _data_parallel_lists_are_wrong,
    "data_parallel_state": _data_parallel_loses_state,
    "column_wise_row_wise_adagrad": _column_wise_row_wise_adagrad_is_wrong,
}


# --- small sharded modules ---


def _bags(placement: Any, optimizer: Any) -> Any:
    """One table of bags, sharded so, trained in backward."""
    shape = {"num_embeddings": NUM_ROWS, "embedding_dim": DIM}
    config = EmbeddingBagConfig(name="table", feature_names=["f"], pooling=PoolingType.SUM, **shape)
    whole = EmbeddingBagCollection(tables=[config], device=CPU)
    _apply_optimizer_in_backward(optimizer, [whole.embedding_bags["table"].weight], {"lr": LR})
    bags = _shard(whole, EmbeddingBagCollectionSharder(), {"table": placement})
    _fill(bags, WEIGHT, _fixed(NUM_ROWS, DIM, seed=0))
    return bags


def _shard(whole: Any, sharder: Any, plan: Mapping[str, Any]) -> Any:
    world_size = dist.get_world_size()
    planned = construct_module_sharding_plan(whole, dict(plan), sharder, world_size, world_size, "cpu")
    return sharder.shard(whole, planned, ShardingEnv.from_process_group(dist.group.WORLD), CPU)


@torch.no_grad()
def _fill(module: Any, name: str, values: Tensor) -> None:
    """Overwrite this rank's part of a weight by its part of `values` [n, d]."""
    weight = module.state_dict()[name]
    if not isinstance(weight, ShardedTensor):
        weight.copy_(values)
        return
    for shard in weight.local_shards():
        (row, column), (rows, columns) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        shard.tensor.copy_(values[row : row + rows, column : column + columns])


def _lookup(bags: Any) -> Tensor:
    """The vectors [N, d] of the first rows."""
    ones = torch.ones(NUM_READ, dtype=torch.int64)
    asked = KeyedJaggedTensor(keys=["f"], values=torch.arange(NUM_READ), lengths=ones)
    found: Tensor = bags(asked).wait().values()
    return found


def _train(bags: Any, pull: Tensor) -> None:
    """One step, the same on every rank, whose gradient is `pull` [N, d] (torchrec takes the mean over ranks)."""
    (_lookup(bags) * pull).sum().backward()


def _read(bags: Any) -> Tensor:
    with torch.no_grad():
        return _lookup(bags).clone()


def _state(bags: Any) -> dict[str, Any]:
    """Weights and optimizer state under flat names."""
    named = dict(bags.state_dict())
    for parameter, state in bags.fused_optimizer.state_dict()["state"].items():
        named |= {f"optimizer.{parameter}.{name}": value for name, value in state.items()}
    return named


def _fixed(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found.detach() - expected).abs().max())

"""`ShardedStores`: the stores of all tables spread over the ranks of a process group, by torchrec.

Row-wise, a store is cut into W blocks of rows; table-wise, one rank holds it whole. A lookup sends row numbers to the
ranks that hold the rows and brings the vectors back; its backward sends gradients the other way, and the holder sums
them over ranks and updates each row once. What torchrec asks for, and how it gets it:

- Row-wise goes through its EmbeddingCollection, one per padded width since it refuses mixed widths (on CPU it has no
  row-wise bags). Table-wise goes through its EmbeddingBagCollection with one id per bag, the fast form on CPU; there
  all keys have as many bags as the longest, so stores that lists read have one each, and shorter keys end in empty
  bags. These read nothing and have no gradient. A rank without any row sends one: it can crash without a bag.
- Widths, optimizers and exact row-wise Adagrad: as in fused.py, so every row has the same bits of state there and here.
- It divides the gradients of tables by W. A rank's loss is W times its share of the global loss, so the result is that
  of one process with the whole batch.
- Every exchange needs all ranks. They look the same stores up, in the same order and equally often, in evaluation too;
  in backward, a gradient that reaches any vector of a lookup runs all exchanges of that lookup.

Not offered, because torchrec computes or loads them wrongly: data-parallel and column-wise tables.

Shapes: W ranks, T stores of an exchange, n rows of a store, d true width, N flat rows of one store in one lookup.
"""

import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from recsys.embedding.optimizers import SGD, Adagrad, RowWiseAdagrad, TableOptimizer, padded_dim
from recsys.embedding.placement import TABLE_WISE, exchange_groups, sharding_kinds, table_owners
from recsys.embedding.stores import StoreBackend, flat_rows, split_vectors
from recsys.embedding.table import Store

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dozens of deprecations of torch and torchrec, on import
        from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
        from torchrec import EmbeddingBagCollection, EmbeddingCollection, KeyedJaggedTensor
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
        from torchrec.distributed.types import BoundsCheckMode, ShardingEnv
        from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
        from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as TorchrecRowWiseAdagrad
except ImportError as error:
    raise ImportError("torchrec, or the fbgemm-gpu that it needs, is not installed or does not load") from error

FUSED = EmbeddingComputeKernel.FUSED.value
TRACING = "is_fx_tracing will return true"  # what torch logs on every rank when torchrec asks it

logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: TRACING not in record.getMessage())


class ShardedStores(StoreBackend):
    """Stores spread over ranks; weights and state are DTensors, row-wise over all ranks, table-wise on a mesh of one.

    sharding: "row_wise" or "table_wise" for all stores, or store name -> kind (those not named: table-wise). accesses:
    rows of a store that one row of a batch reads, None or absent where that varies; table-wise stores with equal ones
    share an exchange. Made by all ranks, with the same arguments.
    gradient_scale: what the gradients at the vectors are too large by, W.
    Raises ValueError without a process group, for an unknown kind or store, and for an optimizer that torchrec lacks.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        optimizer: TableOptimizer,
        seed: int,
        sharding: str | Mapping[str, str] = TABLE_WISE,
        accesses: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__(stores)
        if not dist.is_initialized():
            raise ValueError(
                "backend 'sharded' needs a process group: start with `torchrun --nproc_per_node N -m ...`, or take "
                "backend 'fused' for one process"
            )
        kinds = sharding_kinds(stores, sharding)
        owners = table_owners([store for store in stores if kinds[store.name] == TABLE_WISE], dist.get_world_size())
        groups = exchange_groups(stores, kinds, accesses or {})
        self._exchanges = [
            (_TableWise if group[0].name in owners else _RowWise)(group, optimizer, owners) for group in groups
        ]
        self._owners = owners
        self.gradient_scale = float(dist.get_world_size())
        self._weights: dict[str, DTensor] = {}
        self._state: dict[str, dict[str, DTensor]] = {}
        self._make_views(list(optimizer.state_shapes(1, 1)))
        self._initialise(seed)

    def _make_views(self, state_names: Sequence[str]) -> None:
        kind = device_of_ranks().type
        everywhere = DeviceMesh(kind, list(range(dist.get_world_size())))
        alone = {owner: DeviceMesh(kind, [owner]) for owner in sorted(set(self._owners.values()))}
        for exchange in self._exchanges:
            for store in exchange.stores:
                mesh = alone[self._owners[store.name]] if store.name in self._owners else everywhere
                states = zip(state_names, exchange.states[store.name], strict=True)
                self._weights[store.name] = _spread(exchange.weights[store.name][0], store, mesh)
                self._state[store.name] = {name: _spread(state, store, mesh) for name, state in states}

    def _initialise(self, seed: int) -> None:
        for exchange in self._exchanges:
            for store in exchange.stores:
                rows, start = exchange.weights[store.name]
                rows.zero_()
                store.initialise(rows[:, : store.embedding_dim], seed, start)

    def lookup(self, requests: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """One exchange per group of stores that has a requested one."""
        flat = {store: flat_rows(rows) for store, rows in requests.items()}
        called = [exchange for exchange in self._exchanges if any(store.name in flat for store in exchange.stores)]
        vectors: dict[str, Tensor] = {}
        for exchange in called:
            vectors |= exchange.lookup(flat)
        if torch.is_grad_enabled() and vectors:
            checks = [exchange.update_check() for exchange in called]
            vectors = dict(zip(vectors, joined_backward(checks, list(vectors.values())), strict=True))
        return {store: split_vectors(vectors[store], rows) for store, rows in requests.items()}

    def weights(self) -> dict[str, Tensor]:
        """DTensors [n, d] over the live values."""
        return {store: self._weights[store] for store in self.stores}  # in the order of every backend

    def whole_weights(self) -> dict[str, Tensor]:
        """Copies of the whole stores, on every rank."""
        return {store: self._whole(store) for store in self.stores}

    def _whole(self, store: str) -> Tensor:
        weight = self._weights[store]
        if store not in self._owners:
            return weight.full_tensor()
        whole = torch.empty(weight.shape, device=weight.device)
        if self._owners[store] == dist.get_rank():
            whole.copy_(weight.to_local())
        dist.broadcast(whole, src=self._owners[store])
        return whole

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """DTensors over the live values, [n] or [n, d]."""
        return {store: dict(self._state[store]) for store in self.stores}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the named values; each is a whole plain tensor, or a DTensor spread like the one of `state()`."""
        own = self.state()
        for name, given in state.items():
            _fill(name, own[name], given)

    def training_bytes(self) -> int:
        """The padded rows that this rank holds."""
        return sum(rows.nbytes for exchange in self._exchanges for rows, _ in exchange.weights.values())


# --- one torchrec module ---


def torchrec_optimizer(optimizer: TableOptimizer, embedding_dim: int) -> tuple[Any, dict[str, float]]:
    """The class and settings with which torchrec runs the same rule on padded rows."""
    if isinstance(optimizer, SGD):
        return torch.optim.SGD, {"lr": optimizer.lr}
    if isinstance(optimizer, Adagrad):
        return torch.optim.Adagrad, {"lr": optimizer.lr, "eps": optimizer.eps}
    if isinstance(optimizer, RowWiseAdagrad):
        lr, eps = optimizer.on_padded_rows(embedding_dim)
        return TorchrecRowWiseAdagrad, {"lr": lr, "eps": eps}
    raise ValueError(
        f"optimizer {type(optimizer).__name__} has no fused form in torchrec; backend 'sharded' takes SGD, Adagrad and "
        "RowWiseAdagrad"
    )


class _Exchange(ABC):
    """One torchrec module over stores of one kind of sharding, and the views into this rank's part of its memory.

    weights: store -> padded rows [m, e] and the number of the first. states: store -> optimizer state, [m] or [m, e].
    """

    whole_type: ClassVar[Any]
    sharder_type: ClassVar[Any]
    tables: ClassVar[str]

    def __init__(self, stores: Sequence[Store], optimizer: TableOptimizer, owners: Mapping[str, int]) -> None:
        self.stores = tuple(stores)
        self._keys = [f"store{number}" for number in range(len(stores))]  # a store's name may hold a dot, a key not
        self._device = device_of_ranks()
        self._module = self._sharded(optimizer, owners)
        self._updates = 0
        weights = self._module.state_dict()
        states = self._module.fused_optimizer.state_dict()["state"]
        self.weights: dict[str, tuple[Tensor, int]] = {}
        self.states: dict[str, list[Tensor]] = {}
        for store, key in zip(stores, self._keys, strict=True):
            parameter = f"{self.tables}.{key}.weight"
            self.weights[store.name] = _local(weights[parameter])
            live = states.get(parameter, {}).values()  # a rank that holds nothing of a store has no entry
            self.states[store.name] = [_local(state)[0] for state in live] or _no_rows(optimizer, store, self._device)

    def _sharded(self, optimizer: TableOptimizer, owners: Mapping[str, int]) -> Any:
        """The sharded module, a table for each store; its initial values mean nothing."""
        configs = [self.config(store, key) for store, key in zip(self.stores, self._keys, strict=True)]
        whole = self.whole_type(tables=configs, device=torch.device("meta"))
        plan = {}
        for store, key in zip(self.stores, self._keys, strict=True):
            kind, settings = torchrec_optimizer(optimizer, store.embedding_dim)
            with torch.enable_grad():
                _apply_optimizer_in_backward(kind, [getattr(whole, self.tables)[key].weight], settings)
            plan[key] = self.placement(owners.get(store.name))
        sharder = self.sharder_type(fused_params={"bounds_check_mode": BoundsCheckMode.NONE})  # tables check their ids
        world_size = dist.get_world_size()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        planned = construct_module_sharding_plan(whole, plan, sharder, local_size, world_size, self._device.type)
        return sharder.shard(whole, planned, ShardingEnv.from_process_group(dist.group.WORLD), self._device)

    @abstractmethod
    def config(self, store: Store, key: str) -> Any:
        """What torchrec is told of a store."""

    @abstractmethod
    def placement(self, owner: int | None) -> Any:
        """Where torchrec puts a store."""

    @abstractmethod
    def num_bags(self, counts: Sequence[int]) -> int:
        """Bags of every key, given the rows that each asks for."""

    @abstractmethod
    def by_key(self, found: Any) -> dict[str, Tensor]:
        """What the module returned, by key: at least as many vectors as the key has rows."""

    def lookup(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Flat rows [N] of every requested store -> vectors [N, d]; stores of other exchanges are passed over."""
        nothing = torch.empty(0, dtype=torch.int64, device=self._device)
        asked = [rows.get(store.name, nothing) for store in self.stores]
        counts = [len(part) for part in asked]
        bags = self.num_bags(counts)
        lengths = bag_lengths(counts, bags).to(self._device)
        keyed = KeyedJaggedTensor(keys=self._keys, values=torch.cat(asked), lengths=lengths, stride=bags)
        padded = self.by_key(self._module(keyed).wait())
        return {
            store.name: padded[key][:count, : store.embedding_dim]
            for store, key, count in zip(self.stores, self._keys, counts, strict=True)
            if store.name in rows
        }

    def update_check(self) -> Callable[[], None]:
        """To be called before the update of the last lookup: refuses it when rows have changed since that lookup."""
        updates = self._updates

        def check() -> None:
            if updates != self._updates:
                raise RuntimeError(
                    f"stores {[store.name for store in self.stores]} were looked up twice before backward(), which "
                    "would update them twice: look up all that a step needs in one call, as in collection(batch, other)"
                )
            self._updates += 1

        return check


class _RowWise(_Exchange):
    """Row-wise stores of one padded width: lists of rows in, the vectors of each list out."""

    whole_type, sharder_type, tables = EmbeddingCollection, EmbeddingCollectionSharder, "embeddings"

    def config(self, store: Store, key: str) -> Any:
        """A table of padded width."""
        width = padded_dim(store.embedding_dim)
        return EmbeddingConfig(name=key, feature_names=[key], num_embeddings=store.num_embeddings, embedding_dim=width)

    def placement(self, owner: int | None) -> Any:
        """W blocks of rows."""
        return row_wise(compute_kernel=FUSED)

    def num_bags(self, counts: Sequence[int]) -> int:
        """On CPU one list per key; a GPU's kernel walks a list serially, so there lists are of one row."""
        return 1 if self._device.type == "cpu" else max(1, *counts)

    def by_key(self, found: Any) -> dict[str, Tensor]:
        """Exactly the vectors of the rows."""
        return {key: found[key].values() for key in self._keys}


class _TableWise(_Exchange):
    """Table-wise stores with the same number of accesses: bags of one row in, side by side the sum of each bag out."""

    whole_type, sharder_type, tables = EmbeddingBagCollection, EmbeddingBagCollectionSharder, "embedding_bags"

    def config(self, store: Store, key: str) -> Any:
        """A table of padded width, whose bags are summed."""
        width = padded_dim(store.embedding_dim)
        shape = {"num_embeddings": store.num_embeddings, "embedding_dim": width}
        return EmbeddingBagConfig(name=key, feature_names=[key], pooling=PoolingType.SUM, **shape)

    def placement(self, owner: int | None) -> Any:
        """All on one rank."""
        return table_wise(rank=owner, compute_kernel=FUSED)

    def num_bags(self, counts: Sequence[int]) -> int:
        """As many as the longest key has rows, at least one."""
        return max(1, *counts)

    def by_key(self, found: Any) -> dict[str, Tensor]:
        """A vector per bag; torchrec orders keys by the rank that holds them."""
        return dict(zip(found.keys(), found.values().split(found.length_per_key(), dim=1), strict=True))


def bag_lengths(counts: Sequence[int], num_bags: int) -> Tensor:
    """Rows in every bag, key after key, [T * num_bags]: all in one bag, or one each and then none."""
    if num_bags == 1:
        return torch.tensor(counts)
    if min(counts) == num_bags:
        return torch.ones(len(counts) * num_bags, dtype=torch.int64)
    return (torch.arange(num_bags) < torch.tensor(counts).unsqueeze(1)).to(torch.int64).flatten()


def device_of_ranks() -> torch.device:
    """Where the process group's tensors live."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def joined_backward(checks: Sequence[Callable[[], None]], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same values; once a gradient reaches one of them, `checks` are called and all of them get a gradient."""
    return cast(tuple[Tensor, ...], _JoinedBackward.apply(checks, *tensors))  # type: ignore[no-untyped-call]


class _JoinedBackward(torch.autograd.Function):
    """Without it a rank whose loss ignores some vectors would skip an exchange that the others wait for."""

    @staticmethod
    def forward(ctx: Any, checks: Sequence[Callable[[], None]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.checks = checks
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        for check in ctx.checks:
            check()
        return None, *gradients


# --- views over all ranks ---


def _local(sharded: Any) -> tuple[Tensor, int]:
    """The live part on this rank of a ShardedTensor and the number of its first row; no rows where it holds none."""
    shards = sharded.local_shards()
    if not shards:
        return torch.empty((0, *sharded.metadata().size[1:]), device=device_of_ranks()), 0
    return shards[0].tensor, shards[0].metadata.shard_offsets[0]


def _no_rows(optimizer: TableOptimizer, store: Store, device: torch.device) -> list[Tensor]:
    """Optimizer state of no rows."""
    shapes = optimizer.state_shapes(0, store.embedding_dim).values()
    return [torch.empty(shape, device=device) for shape in shapes]


def _spread(local: Tensor, store: Store, mesh: DeviceMesh) -> DTensor:
    """The DTensor [n] or [n, d] of which `local` is this rank's block, without its padding."""
    local = local[:, : store.embedding_dim] if local.dim() > 1 else local
    shape = torch.Size((store.num_embeddings, *local.shape[1:]))
    stride = (store.embedding_dim, 1)[2 - len(shape) :]
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def _fill(name: str, target: Tensor, given: Tensor) -> None:
    """Write this rank's part of `given` into the target's."""
    assert isinstance(target, DTensor)
    local = target.to_local()
    if isinstance(given, DTensor):
        if (given.device_mesh, given.placements) != (target.device_mesh, target.placements):
            raise ValueError(f"{name!r} is spread otherwise over the ranks; load it from a checkpoint into state()")
        local.copy_(given.to_local())
    elif len(local):
        coordinate = target.device_mesh.get_coordinate()
        assert coordinate is not None
        start = coordinate[0] * -(-len(target) // target.device_mesh.size())
        local.copy_(given[start : start + len(local)])

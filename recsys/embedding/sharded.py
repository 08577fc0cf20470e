"""`ShardedStores`: the stores of all tables spread over the ranks of a process group, by torchrec.

Row-wise, a store is cut into W blocks of rows; table-wise, one rank holds it whole; column-wise, it is cut into k
blocks of columns (placement.py says which where). A lookup sends row numbers to the ranks that hold the rows and brings
the vectors back; its backward sends gradients the other way, and the holder sums them over ranks and updates each row
once. What torchrec asks for, and how it gets it:

- Row-wise goes through its EmbeddingCollection, one per padded width since it refuses mixed widths (on CPU it has no
  row-wise bags). Table- and column-wise go through its EmbeddingBagCollection with one id per bag, the fast form on
  CPU; there all keys have as many bags as the longest, so stores that lists read have one each, and shorter keys end in
  empty bags. These read nothing and have no gradient. A rank without any row sends one: it can crash without a bag.
- Blocks of columns are even in true columns, since a checkpoint's boxes are, and each is padded by itself to a width
  that kernels accept: torchrec's table of d columns in k blocks has k padded_dim(ceil(d / k)).
- Widths, optimizers and exact row-wise Adagrad: as in fused.py, so every row has the same bits of state there and here.
- It divides the gradients of tables by W. A rank's loss is W times its share of the global loss, so the result is that
  of one process with the whole batch.
- Every exchange needs all ranks. They look the same stores up, in the same order and equally often, in evaluation too;
  in backward, a gradient that reaches any vector of a lookup runs all exchanges of that lookup.

Not offered, because torchrec computes or loads them wrongly: data-parallel tables, and column-wise ones whose optimizer
averages over a row. Nor table-row-wise, which it lacks on CPU. placement.py refuses each with its reason.

Shapes: W ranks, T stores of an exchange, n rows of a store, d true width, k blocks of columns, m rows and e padded
columns of a part, N flat rows of one store in one lookup.
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
from torch.distributed.tensor import DTensor

from recsys.embedding.optimizers import SGD, Adagrad, RowWiseAdagrad, TableOptimizer
from recsys.embedding.parts import device_of_ranks, fill, fill_initial, spread, whole
from recsys.embedding.placement import AUTO, ROW_WISE, Placement, exchange_groups, place, sharding_kinds
from recsys.embedding.store import Store
from recsys.embedding.stores import StoreBackend, flat_rows, split_vectors

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dozens of deprecations of torch and torchrec, on import
        from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
        from torchrec import EmbeddingBagCollection, EmbeddingCollection, KeyedJaggedTensor
        from torchrec.distributed.embedding import EmbeddingCollectionSharder
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
        from torchrec.distributed.types import BoundsCheckMode, ShardingEnv
        from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
        from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as TorchrecRowWiseAdagrad
except ImportError as error:
    raise ImportError("torchrec, or the fbgemm-gpu that it needs, is not installed or does not load") from error

FUSED = EmbeddingComputeKernel.FUSED.value
TRACING = "is_fx_tracing will return true"  # what torch logs on every rank when torchrec asks it

logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: TRACING not in record.getMessage())


class ShardedStores(StoreBackend):
    """Stores spread over ranks; weights and state are DTensors, each on a mesh of the ranks that hold a part of it.

    sharding: "auto", "row_wise", "table_wise" or "column_wise" for all stores, or store name -> kind (those not named:
    "auto"); see placement.py. accesses: rows of a store that one row of a batch reads, None or absent where that
    varies; table- and column-wise stores with equal ones share an exchange. Made by all ranks, with the same arguments.
    gradient_scale: what the gradients at the vectors are too large by, W.
    Raises ValueError without a process group, for an unknown kind or store, for a kind that would train wrongly, and
    for an optimizer that torchrec lacks.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        optimizer: TableOptimizer,
        seed: int,
        sharding: str | Mapping[str, str] = AUTO,
        accesses: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__(stores)
        if not dist.is_initialized():
            raise ValueError(
                "backend 'sharded' needs a process group: start with `torchrun --nproc_per_node N -m ...`, or take "
                "backend 'fused' for one process"
            )
        world_size = dist.get_world_size()
        kinds = sharding_kinds(stores, sharding, optimizer, world_size)
        self.placements = place(stores, kinds, world_size)
        groups = exchange_groups(stores, self.placements, accesses or {})
        self._exchanges = [
            (_Rows if kinds[group[0].name] == ROW_WISE else _Bags)(group, optimizer, self.placements)
            for group in groups
        ]
        self.gradient_scale = float(world_size)
        self._weights: dict[str, DTensor] = {}
        self._state: dict[str, dict[str, DTensor]] = {}
        self._make_views(list(optimizer.state_shapes(1, 1)))
        self._initialise(seed)

    def _make_views(self, state_names: Sequence[str]) -> None:
        kind = device_of_ranks().type
        holders = sorted({placement.ranks for placement in self.placements.values()})
        meshes = {ranks: DeviceMesh(kind, list(ranks)) for ranks in holders}
        for exchange in self._exchanges:
            for store in exchange.stores:
                placement = self.placements[store.name]
                mesh = meshes[placement.ranks]
                states = zip(state_names, exchange.states[store.name], strict=True)
                own = (store, placement.part_of(store, dist.get_rank())[1], mesh, placement.split_dim)
                self._weights[store.name] = spread(exchange.weights[store.name], *own)
                self._state[store.name] = {name: spread(state, *own) for name, state in states}

    def _initialise(self, seed: int) -> None:
        for exchange in self._exchanges:
            for store in exchange.stores:
                held = exchange.weights[store.name]
                held.zero_()
                fill_initial(held, store, self.placements[store.name].part_of(store, dist.get_rank()), seed)

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
        return {name: whole(self._weights[name], self._parts(store)) for name, store in self.stores.items()}

    def _parts(self, store: Store) -> dict[int, tuple[range, range]]:
        placement = self.placements[store.name]
        return {rank: placement.part_of(store, rank) for rank in placement.ranks}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """DTensors over the live values, [n] or [n, d]."""
        return {store: dict(self._state[store]) for store in self.stores}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the named values; each is a whole plain tensor, or a DTensor spread like the one of `state()`."""
        own = self.state()
        for name, given in state.items():
            fill(name, own[name], given)

    def scale_learning_rate(self, factor: float) -> None:
        """Of the parts that this rank holds; every rank is to ask for the same."""
        for exchange in self._exchanges:
            exchange.scale_learning_rate(factor)

    def training_bytes(self) -> int:
        """The padded rows that this rank holds."""
        return sum(held.nbytes for exchange in self._exchanges for held in exchange.weights.values())


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

    weights: store -> padded part [m, e]. states: store -> optimizer state, [m] or [m, e].
    """

    whole_type: ClassVar[Any]
    sharder_type: ClassVar[Any]
    tables: ClassVar[str]

    def __init__(
        self, stores: Sequence[Store], optimizer: TableOptimizer, placements: Mapping[str, Placement]
    ) -> None:  # fmt: skip
        self.stores = tuple(stores)
        self.placements = {store.name: placements[store.name] for store in stores}
        self._keys = [f"store{number}" for number in range(len(stores))]  # a store's name may hold a dot, a key not
        self._device = device_of_ranks()
        self._module = self._sharded(optimizer)
        self._updates = 0
        self._groups = [(group, group["lr"]) for group in self._module.fused_optimizer.param_groups]
        weights = self._module.state_dict()
        states = self._module.fused_optimizer.state_dict()["state"]
        self.weights: dict[str, Tensor] = {}
        self.states: dict[str, list[Tensor]] = {}
        for store, key in zip(stores, self._keys, strict=True):
            rows, _ = self.placements[store.name].part_of(store, dist.get_rank())
            parameter = f"{self.tables}.{key}.weight"
            if rows:
                self.weights[store.name] = _local(weights[parameter])
                self.states[store.name] = [_local(state) for state in states.get(parameter, {}).values()]
            else:
                shapes = [(0, self.width(store)), *optimizer.state_shapes(0, store.embedding_dim).values()]
                self.weights[store.name], *self.states[store.name] = self._empty(shapes)

    def _empty(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [torch.empty(shape, device=self._device) for shape in shapes]

    def _sharded(self, optimizer: TableOptimizer) -> Any:
        """The sharded module, a table for each store; its initial values mean nothing."""
        configs = [self.config(store, key) for store, key in zip(self.stores, self._keys, strict=True)]
        whole = self.whole_type(tables=configs, device=torch.device("meta"))
        plan = {}
        for store, key in zip(self.stores, self._keys, strict=True):
            kind, settings = torchrec_optimizer(optimizer, store.embedding_dim)
            with torch.enable_grad():
                _apply_optimizer_in_backward(kind, [getattr(whole, self.tables)[key].weight], settings)
            plan[key] = self.placed(self.placements[store.name])
        sharder = self.sharder_type(fused_params={"bounds_check_mode": BoundsCheckMode.NONE})  # tables check their ids
        world_size = dist.get_world_size()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        planned = construct_module_sharding_plan(whole, plan, sharder, local_size, world_size, self._device.type)
        return sharder.shard(whole, planned, ShardingEnv.from_process_group(dist.group.WORLD), self._device)

    def scale_learning_rate(self, factor: float) -> None:
        """Its optimizers hand on to the kernels what stands in their groups when they are asked to step."""
        for group, rate in self._groups:
            group["lr"] = rate * factor
        self._module.fused_optimizer.step()

    def width(self, store: Store) -> int:
        """Columns of torchrec's table: all blocks of columns, each with its padding."""
        placement = self.placements[store.name]
        blocks = 1 if placement.by_rows else len(placement.ranks)
        return blocks * placement.padded_columns(store)

    @abstractmethod
    def config(self, store: Store, key: str) -> Any:
        """What torchrec is told of a store."""

    @abstractmethod
    def placed(self, placement: Placement) -> Any:
        """The placement in torchrec's words."""

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
            store.name: self._true_columns(padded[key][:count], store)
            for store, key, count in zip(self.stores, self._keys, counts, strict=True)
            if store.name in rows
        }

    def _true_columns(self, vectors: Tensor, store: Store) -> Tensor:
        """Vectors [N, k e] -> [N, d], without the padding of each block."""
        placement = self.placements[store.name]
        if placement.by_rows or len(placement.ranks) == 1:
            return vectors[:, : store.embedding_dim]
        block = len(placement.part(store, 0)[1])
        blocks: Tensor = vectors.unflatten(1, (len(placement.ranks), -1))[:, :, :block]  # [N, k, ceil(d / k)]
        return blocks.flatten(1)[:, : store.embedding_dim]

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


class _Rows(_Exchange):
    """Row-wise stores of one padded width: lists of rows in, the vectors of each list out."""

    whole_type, sharder_type, tables = EmbeddingCollection, EmbeddingCollectionSharder, "embeddings"

    def config(self, store: Store, key: str) -> Any:
        """A table of padded width."""
        shape = {"num_embeddings": store.num_embeddings, "embedding_dim": self.width(store)}
        return EmbeddingConfig(name=key, feature_names=[key], **shape)

    def placed(self, placement: Placement) -> Any:
        """W blocks of rows."""
        return row_wise(compute_kernel=FUSED)

    def num_bags(self, counts: Sequence[int]) -> int:
        """On CPU one list per key; a GPU's kernel walks a list serially, so there lists are of one row."""
        return 1 if self._device.type == "cpu" else max(1, *counts)

    def by_key(self, found: Any) -> dict[str, Tensor]:
        """Exactly the vectors of the rows."""
        return {key: found[key].values() for key in self._keys}


class _Bags(_Exchange):
    """Table- and column-wise stores with the same number of accesses: bags of one row in, the sum of each bag out."""

    whole_type, sharder_type, tables = EmbeddingBagCollection, EmbeddingBagCollectionSharder, "embedding_bags"

    def config(self, store: Store, key: str) -> Any:
        """A table of padded width, whose bags are summed."""
        shape = {"num_embeddings": store.num_embeddings, "embedding_dim": self.width(store)}
        return EmbeddingBagConfig(name=key, feature_names=[key], pooling=PoolingType.SUM, **shape)

    def placed(self, placement: Placement) -> Any:
        """All on one rank, or a block of columns on each; told which, torchrec splits whatever the width is."""
        ranks = list(placement.ranks)
        if len(ranks) == 1:
            return table_wise(rank=ranks[0], compute_kernel=FUSED)
        return column_wise(ranks=ranks, compute_kernel=FUSED)

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


def _local(sharded: Any) -> Tensor:
    """The live part on this rank of a ShardedTensor, of which it holds one."""
    (shard,) = sharded.local_shards()
    return cast(Tensor, shard.tensor)

"""The embeddings of a model: a `Batch` in, one vector per row (or one per value of a list) out, for every feature.

    collection = EmbeddingCollection(schema, {"ids": UnifiedTable(budget="25MiB")}, optimizer=RowWiseAdagrad(lr=0.1))
    vectors = collection(batch)                   # {"user": [B, 32], "history": [B, 32], ...}
    loss(vectors).backward()                      # the tables are updated here

It owns the tables (what is read) and one `StoreBackend` (where it is kept; the interface and its promises stand in
stores.py). A step goes: ids of all features, one `rows()` per table, one lookup per store, one `combine()` per table,
pooling. The backend "plain" is the definition, the others equal it, in forward and after steps.

Shapes: B rows of a batch, N values of a list column, D width of a feature's vector, P accesses of a store per id.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from features.batch import Batch, Jagged
from features.spec import FeatureSchema, FeatureSpec
from recsys import distributed
from recsys.embedding.layout import KnowsIds, Layout, unique_stores
from recsys.embedding.minibatch_l2 import MiniBatchL2
from recsys.embedding.optimizers import Adam, TableOptimizer
from recsys.embedding.pooling import pool
from recsys.embedding.precision import pack
from recsys.embedding.store import Store
from recsys.embedding.stores import PlainStores, StoreBackend, initial_weights, watched
from recsys.embedding.table import EmbeddingTable, Search, TableSpec, check_ids
from recsys.phases import Phase

Backend = Literal["plain", "fused", "sharded"]
Sharding = str | Mapping[str, str]
Vectors = dict[str, Tensor | Jagged]
Key = TypeVar("Key", bound=Hashable)
STORES = "stores."


class EmbeddingCollection(nn.Module):
    """The tables of every id feature of a schema over one backend.

    source: a FeatureSchema, or an Encoder, which also knows how many ids each feature has (dense tables, budgets in
    per cent and the check of ids need that). specs: what each `table` of the schema is, none missing and none unused.
    backend: "fused" (fbgemm, one process), "plain" (torch alone) or "sharded" (torchrec, over ranks). optimizer: how
    `backward()` updates the tables; None leaves gradients to the caller and needs backend "plain". seed: initial values
    are a function of it and of names, equal in all backends. sharding, backend "sharded" only: "auto", "row_wise",
    "table_wise" or "column_wise" (placement.py), for all stores or by store.

    max_row_norm (an attribute, None = off): the gradient of each looked-up row of a store is scaled down to this norm.
    minibatch_l2 (likewise): what `penalty` adds for the ids that a step reads.
    Vectors of one step belong into one call, `collection(batch, other)`: the fused and sharded backends update in the
    backward of each call. Gradients accumulate over several backward() only in backend "plain" without an optimizer.
    Raises ValueError naming table or feature where schema, specs, backend and optimizer do not fit together.
    """

    schema: FeatureSchema
    stores: dict[str, Store]
    backend: StoreBackend
    max_row_norm: float | None

    def __init__(
        self,
        source: FeatureSchema | KnowsIds,
        specs: Mapping[str, TableSpec],
        *,
        backend: Backend = "fused",
        optimizer: TableOptimizer | None = None,
        seed: int = 0,
        sharding: Sharding | None = None,
    ) -> None:
        _check_backend(backend, optimizer, sharding)
        layout = Layout.build(source, specs, seed)
        if backend == "sharded" and distributed.world_size() > 1:
            _check_ranks(layout.tables)
        if backend == "plain":
            kept: StoreBackend = PlainStores(layout.stores, initial_weights(layout.stores, seed), optimizer)
        elif backend == "fused":
            kept = _fused(layout, optimizer, seed)
        else:
            kept = _sharded(layout, optimizer, seed, sharding or "auto")
        self._assemble(layout, kept, specs)

    def _assemble(self, layout: Layout, backend: StoreBackend, specs: Mapping[str, TableSpec]) -> None:
        super().__init__()
        self.schema = layout.schema
        self.tables = nn.ModuleDict(layout.tables)
        self.backend = backend
        self.stores = backend.stores
        self.max_row_norm = None
        self.minibatch_l2: MiniBatchL2 | None = None
        self._given = dict(specs)
        self._tables = dict(layout.tables)
        self._stepping = {name for name, table in self._tables.items() if _overrides(table, "on_step")}
        self._touched: dict[str, dict[str, Tensor]] = {}
        self._table_of = dict(layout.table_of)
        self._specs = {spec.name: spec for spec in layout.schema.inputs}

    # -- reading ------------------------------------------------------------------------------------------------

    @overload
    def forward(self, batch: Batch, /, *, unpooled: Collection[str] = ()) -> Vectors: ...
    @overload
    def forward(self, *batches: Batch, unpooled: Collection[str] = ()) -> tuple[Vectors, ...]: ...
    def forward(self, *batches: Batch, unpooled: Collection[str] = ()) -> Vectors | tuple[Vectors, ...]:
        """The vectors of every id feature that a batch holds; for several batches a tuple, looked up in one call.

        `id` -> [B, D]; lists and sequences -> pooled [B, D]; a Jagged of [N, D] where their pooling is "none" or they
        are named in `unpooled` (attention reads every vector of a history that another model pools).
        Raises ValueError naming feature and id when an id is out of range, and for a column of another kind.
        """
        columns = {
            (number, name): (name, batch.features[name])
            for number, batch in enumerate(batches)
            for name in batch.features
            if self._spec(name).is_id
        }
        found = self.lookup({key: (name, self._ids(name, column)) for key, (name, column) in columns.items()})
        results: tuple[Vectors, ...] = tuple({} for _ in batches)
        for (number, name), (_, column) in columns.items():
            results[number][name] = self._shaped(name, column, found[number, name], name in unpooled)
        return results[0] if len(batches) == 1 else results

    def lookup(self, requests: Mapping[Key, tuple[str, Tensor]]) -> dict[Key, Tensor]:
        """Any key -> (feature, ids of any shape) becomes key -> vectors [*, D], one per id; no pooling.

        All requests together are one step. Raises ValueError naming feature and id when an id is out of range.
        """
        for feature, ids in requests.values():
            check_ids(ids, self.table(feature).num_embeddings, f"feature {feature!r}")
        calls = self._calls(requests)
        by_store: dict[str, list[Tensor]] = {}
        for call in calls.values():
            for store, wanted in call.rows.items():
                by_store.setdefault(store, []).append(wanted)
        limit = None if self.max_row_norm is None else self.max_row_norm * self.backend.gradient_scale
        check = not self.backend.checks_gradients
        vectors = {
            store: iter(watched(store, several, limit, check))
            for store, several in self.backend.lookup(by_store).items()
        }
        found: dict[Key, Tensor] = {}
        for name, call in calls.items():
            combined = self._tables[name].combine({store: next(vectors[store]) for store in call.rows}, call.ids)
            if self.minibatch_l2 is not None and combined.requires_grad:
                self.minibatch_l2.note(name, call.ids, combined)
            whole = combined if call.places is None else combined.index_select(0, call.places)  # [N, D]
            shapes = [requests[key][1].shape for key in call.keys]
            parts = [whole] if len(shapes) == 1 else whole.split([prod(shape) for shape in shapes])
            for key, part, shape in zip(call.keys, parts, shapes, strict=True):
                found[key] = part.reshape(*shape, whole.shape[1])
        return {key: found[key] for key in requests}

    def _calls(self, requests: Mapping[Key, tuple[str, Tensor]]) -> dict[str, "_Call[Key]"]:
        """What each table is asked, all its keys together."""
        keys_of: dict[str, list[Key]] = {}
        for key, (feature, _) in requests.items():
            keys_of.setdefault(self._table_of[feature], []).append(key)
        calls = {}
        for table, keys in keys_of.items():
            flat = [requests[key][1].flatten() for key in keys]
            ids, places = flat[0] if len(flat) == 1 else torch.cat(flat), None
            if self._tables[table].distinct_ids:
                ids, places = ids.unique(return_inverse=True)
            calls[table] = _Call(keys, ids, places, self._tables[table].rows(ids))
            if table in self._stepping and torch.is_grad_enabled():
                self._touched[table] = {store: rows.flatten() for store, rows in calls[table].rows.items()}
        return calls

    def _ids(self, name: str, column: Tensor | Jagged) -> Tensor:
        if self._specs[name].is_list != isinstance(column, Jagged):
            raise ValueError(f"feature {name!r} is of kind {self._specs[name].kind!r}, got a {type(column).__name__}")
        return column.values if isinstance(column, Jagged) else column

    def _shaped(self, name: str, column: Tensor | Jagged, vectors: Tensor, unpooled: bool) -> Tensor | Jagged:
        if not isinstance(column, Jagged):
            return vectors
        pooling = self._specs[name].pooling
        lists = column.with_values(vectors)
        return lists if unpooled or pooling is None or pooling == "none" else pool(lists, pooling)

    def _spec(self, name: str) -> FeatureSpec:
        return self._specs.get(name) or self.schema.feature(name)

    def table(self, feature: str) -> EmbeddingTable:
        """The table that a feature reads; ValueError for a feature without one."""
        if feature not in self._table_of:
            raise ValueError(f"feature {feature!r} reads no table; features that do are {sorted(self._table_of)}")
        return self._tables[self._table_of[feature]]

    @property
    def by_key(self) -> Mapping[str, EmbeddingTable]:
        """Every table by its key, "<specification>/<reader>"."""
        return dict(self._tables)

    def table_key(self, feature: str) -> str | None:
        """The key, "<specification>/<reader>", of the table that a feature reads; None for a feature without one."""
        return self._table_of.get(feature)

    def embedding_dim(self, feature: str) -> int:
        """D of a feature's vectors."""
        return self.table(feature).embedding_dim

    # -- bytes and state ----------------------------------------------------------------------------------------

    def num_bytes(self) -> int:
        """Bytes of what is served, measured on the tensors of the frozen form; with several ranks, called by all.

        They are the stores at their precision, without padding, and the tables' own parameters and buffers.
        """
        return sum(tensor.nbytes for tensor in self.freeze().state_dict().values())

    def training_bytes(self) -> int:
        """Bytes of the stores as they lie in memory while training, padding included; this rank's part."""
        return self.backend.training_bytes()

    def optimizer_bytes(self) -> int:
        """Bytes of the stores' optimizer state."""
        return self.backend.optimizer_bytes()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of the stores, by "stores.<store>" and "optimizer.<store>.<name>": live tensors.

        Names and shapes (the true width) are the same in every backend. The tables' dense parameters are in
        `state_dict()` with what they derive from the seed (salts), and so are the stores' weights, "stores.<store>".
        """
        return self.backend.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state()`; ValueError names what is missing, unknown, or of another shape."""
        own = {name: tuple(tensor.shape) for name, tensor in self.state().items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        for fault in _differences(own, given):
            raise ValueError(f"state of the embedding tables does not fit: {fault}")
        self.backend.load_state(state)

    # -- while training ------------------------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        """What the tables add to the loss of the step whose lookup was the last; None where they add nothing."""
        found = [penalty for table in self._tables.values() if (penalty := table.penalty()) is not None]
        if self.minibatch_l2 and (own := self.minibatch_l2.penalty(self.backend.gradient_scale)) is not None:
            found.append(own)
        return torch.stack(found).sum() if found else None

    def on_step(self) -> None:
        """To be called after each update: tables that prune or count have their turn."""
        if self._stepping:
            weights = self.live_weights()
            with torch.no_grad():
                for name in sorted(self._touched):
                    self._tables[name].on_step(weights, self._touched[name])
        self._touched = {}

    def live_weights(self) -> dict[str, Tensor]:
        """Store -> its live values [n, d]; plain tensors, but over several ranks DTensors."""
        alone = distributed.world_size() == 1
        weights = self.backend.weights()
        return {
            name: weight.to_local() if alone and isinstance(weight, DTensor) else weight
            for name, weight in weights.items()
        }

    def schedule(
        self, phases: Sequence[Phase], search: Callable[[Mapping[str, EmbeddingTable]], Search]
    ) -> list[Phase]:
        """The phases with those that the specifications add; search: tables of a specification -> its `Search`."""
        found = list(phases)
        for name, spec in self._given.items():
            own = {key.removeprefix(f"{name}/"): t for key, t in self._tables.items() if key.startswith(f"{name}/")}
            found = spec.schedule(found, search(own))
        return found

    @property
    def searches(self) -> list[str]:
        """The specifications that add phases of their own."""
        return [name for name, spec in self._given.items() if spec.adds_phases]

    # -- serving -------------------------------------------------------------------------------------------------

    def freeze(self) -> "EmbeddingCollection":
        """The serving form: packed copies of the weights, backend "plain", no optimizer, no gradient."""
        tables, arrays = self._frozen_parts(self.backend.whole_weights())
        live = [weight for weight in self.backend.weights().values() if not isinstance(weight, DTensor)]
        memory = {weight.untyped_storage().data_ptr() for weight in live}
        served = {}
        for store in unique_stores(tables.values()):
            array = arrays[store.name].detach()
            if array.dtype == torch.float32:  # else the collection is frozen already
                array = pack(array, store.precision, f"store {store.name!r}")
            served[store.name] = array.clone() if array.untyped_storage().data_ptr() in memory else array
        return EmbeddingCollection.serving(self.schema, tables, self._table_of, served)

    @staticmethod
    def serving(
        schema: FeatureSchema,
        tables: Mapping[str, EmbeddingTable],
        table_of: Mapping[str, str],
        weights: Mapping[str, Tensor],
    ) -> "EmbeddingCollection":
        """Frozen tables over served rows (store -> packed or float rows, used without a copy), ready to be asked."""
        found = EmbeddingCollection.__new__(EmbeddingCollection)
        kept = PlainStores(unique_stores(tables.values()), weights, None)
        found._assemble(Layout(schema=schema, tables=tables, table_of=table_of), kept, {})
        found.requires_grad_(False)
        return found.eval()

    def _frozen_parts(self, weights: Mapping[str, Tensor]) -> tuple[dict[str, EmbeddingTable], dict[str, Tensor]]:
        tables: dict[str, EmbeddingTable] = {}
        arrays: dict[str, Tensor] = {}
        for name, table in self._tables.items():
            tables[name], own = table.freeze(weights)
            twice = sorted(store for store in own if store in arrays and arrays[store] is not own[store])
            if twice:
                raise ValueError(f"table {table.name!r} freezes stores {twice} otherwise than another of their tables")
            arrays |= own
        return tables, arrays

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{STORES}{name}": weight for name, weight in self.backend.weights().items()})

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        metadata, strict, missing, unexpected, errors = rest
        start = prefix + STORES
        given = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
        others = {key: value for key, value in state_dict.items() if not key.startswith(start)}
        super()._load_from_state_dict(others, prefix, metadata, strict, missing, unexpected, errors)
        missing += [start + name for name in self.stores if name not in given]
        unexpected += [start + name for name in given if name not in self.stores] if strict else []
        weights = self.backend.weights()
        shared = [name for name in weights if name in given]
        wrong = [name for name in shared if weights[name].shape != given[name].shape]
        errors += [f"store {name!r} is {tuple(weights[name].shape)}, got {tuple(given[name].shape)}" for name in wrong]
        self.backend.load_state({STORES + name: given[name] for name in shared if name not in wrong})


@dataclass(frozen=True)
class _Call(Generic[Key]):
    """What one table is asked: by these keys, the ids [N] (or the distinct ones, and the place of each), their rows."""

    keys: list[Key]
    ids: Tensor
    places: Tensor | None
    rows: dict[str, Tensor]


def _check_ranks(tables: Mapping[str, EmbeddingTable]) -> None:
    for name, table in tables.items():
        whole = "its on_step is given whole stores" if _overrides(table, "on_step") else ""
        if reason := table.one_rank or whole:
            raise ValueError(f"table {name!r} does not train over several ranks: {reason}")


def _overrides(table: EmbeddingTable, hook: str) -> bool:
    return getattr(type(table), hook) is not getattr(EmbeddingTable, hook)


def _differences(own: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps a given state from being this one, in words."""
    missing = [f"{name!r} is missing" for name in own if name not in given]
    unknown = [f"{name!r} is unknown" for name in given if name not in own]
    common = [name for name in own if name in given]
    wrong = [f"{name!r} has shape {given[name]}, expected {own[name]}" for name in common if own[name] != given[name]]
    return missing + unknown + wrong


def _check_backend(backend: str, optimizer: TableOptimizer | None, sharding: Sharding | None) -> None:
    if backend not in ("plain", "fused", "sharded"):
        raise ValueError(f"backend {backend!r} is none of 'plain', 'fused', 'sharded'")
    if backend != "plain" and optimizer is None:
        raise ValueError(f"backend {backend!r} updates its tables in backward and needs an optimizer; 'plain' does not")
    if backend != "plain" and isinstance(optimizer, Adam):
        raise ValueError(f"backend {backend!r} has no Adam; use SGD, Adagrad or RowWiseAdagrad, or backend 'plain'")
    if sharding is not None and backend != "sharded":
        raise ValueError(f"sharding = {sharding!r} is for backend 'sharded', not for {backend!r}")


def _fused(layout: Layout, optimizer: TableOptimizer | None, seed: int) -> StoreBackend:
    try:
        from recsys.embedding.fused import FusedStores
    except ImportError as error:
        raise ValueError(f"backend 'fused' cannot be used here, backend 'plain' can: {error}") from error
    assert optimizer is not None
    return FusedStores(layout.stores, optimizer, seed)


def _sharded(layout: Layout, optimizer: TableOptimizer | None, seed: int, sharding: Sharding) -> StoreBackend:
    try:
        from recsys.embedding.sharded import ShardedStores
    except ImportError as error:
        raise ValueError(f"backend 'sharded' cannot be used here, backend 'plain' can: {error}") from error
    assert optimizer is not None
    return ShardedStores(layout.stores, optimizer, seed, sharding, layout.accesses())

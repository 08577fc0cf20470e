"""`FusedStores`: fbgemm's table-batched op, called directly; the default backend in one process.

The op's backward sums the gradients of each row and applies the optimizer at once. On CPU it is fast only if called so:

- In pooled mode with one id per bag (its mode without pooling builds hash maps, eight times slower).
- Widths are multiples of 4: stores are padded, pad columns stay zero and are neither saved nor counted as served.
  Row-wise Adagrad averages over the padded row, which a factor on lr and eps undoes; so an op has one true width.
- An op wants equally many bags of each of its tables, but stores are asked for different amounts; so all stores of a
  width are one table of the op, each from a row of its own on, and one call serves them whatever the amounts.
- That table is read as FEATURES = 2 features, access i as bag i // 2 of feature i % 2, so the output is the accesses in
  order. For a table of several features fbgemm takes its compiled update loop; for one feature it would take a kernel
  generated at run time, which mixes SSE and AVX instructions: measured 3.5 times slower for row-wise Adagrad on one
  thread of an AVX-512 Xeon. (That kernel would use many threads, the loop uses one.)

Each call updates by itself, so a store may be read by one call per step: two lookups whose backward runs in one go
would update one after the other. That is refused, in backward (see `_Accesses`); without gradients there is no limit.

On a GPU (`.to("cuda")`, with the CUDA build of fbgemm) the same op runs there. One that with its optimizer state takes
more than SHARE_OF_GPU of the free memory lies in the host's, with as large a cache of its rows on the GPU as fits.
The only importer of fbgemm beside the sharded backend.

Shapes: C accesses of an op in one step, d true width, e padded width.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.embedding.optimizers import SGD, Adagrad, RowWiseAdagrad, TableOptimizer, padded_dim
from recsys.embedding.store import Store
from recsys.embedding.stores import StoreBackend, check_finite

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"[\s\S]*Failed to import: fbgemm_gpu", category=DeprecationWarning)
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            BoundsCheckMode,
            ComputeDevice,
            EmbeddingLocation,
            OptimType,
            PoolingMode,
            SplitTableBatchedEmbeddingBagsCodegen,
        )
except ImportError as error:
    raise ImportError("fbgemm-gpu (without a GPU: fbgemm-gpu-cpu) is not installed or does not load") from error

FEATURES = 2
SHARE_OF_GPU = 0.6
NO_CACHE = 1.0  # fbgemm wants a factor above 0 even where it caches nothing
MAX_ROWS = 2**31 - 2


class FusedStores(StoreBackend):
    """Stores in fbgemm's own memory, updated by its backward. ValueError for an optimizer that fbgemm lacks."""

    checks_gradients = True

    def __init__(self, stores: Sequence[Store], optimizer: TableOptimizer, seed: int) -> None:
        super().__init__(stores)
        self._ops = [_Op(group, optimizer, torch.device("cpu")) for group in op_groups(stores)]
        weights = self.weights()
        for store in stores:
            store.initialise(weights[store.name], seed)

    def lookup(self, requests: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """One call per op that has a requested store."""
        found: dict[str, list[Tensor]] = {}
        for op in self._ops:
            mine = {store: rows for store, rows in requests.items() if store in op.starts}
            if mine:
                found |= op.lookup(mine)
        return found

    def weights(self) -> dict[str, Tensor]:
        """Views without the padding."""
        return {store.name: op.part(store, whole) for op in self._ops for whole in [op.whole()] for store in op.stores}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Views without the padding."""
        return {
            store.name: {name: op.part(store, tensor) for name, tensor in op.state.items()}
            for op in self._ops
            for store in op.stores
        }

    def _apply(self, fn: Any, recurse: bool = True) -> "FusedStores":
        moved = fn(torch.empty(0))
        if moved.dtype != torch.float32 or moved.device.type not in ("cpu", "cuda"):
            raise ValueError(f"backend 'fused' keeps float32 on CPU or GPU, not {moved.dtype} on {moved.device}")
        self._ops = [op if op.device == moved.device else op.moved(moved.device) for op in self._ops]
        return self

    def scale_learning_rate(self, factor: float) -> None:
        """Of every op."""
        for op in self._ops:
            op.scale_learning_rate(factor)

    def training_bytes(self) -> int:
        """The padded stores."""
        return sum(op.weight.nbytes for op in self._ops)


def op_groups(stores: Sequence[Store]) -> list[list[Store]]:
    """Stores that share an op: those of one width, as long as their rows together can be counted in 31 bits."""
    groups: list[list[Store]] = []
    for store in stores:
        if store.num_embeddings > MAX_ROWS:
            raise ValueError(f"store {store.name!r} has {store.num_embeddings} rows, fbgemm takes at most {MAX_ROWS}")
        for group in groups:
            rows = sum(member.num_embeddings for member in group) + store.num_embeddings
            if group[0].embedding_dim == store.embedding_dim and rows <= MAX_ROWS:
                group.append(store)
                break
        else:
            groups.append([store])
    return groups


class _Op:
    """One fbgemm op over the stores of one width: store s is rows starts[s], starts[s] + 1, ... of its one table."""

    def __init__(self, stores: Sequence[Store], optimizer: TableOptimizer, device: torch.device) -> None:
        self.stores = tuple(stores)
        self.device = device
        self._optimizer = optimizer
        self.starts: dict[str, int] = {}
        total = 0
        for store in stores:
            self.starts[store.name] = total
            total += store.num_embeddings
        self.dim = stores[0].embedding_dim
        state = sum(prod(shape) for shape in optimizer.state_shapes(total, padded_dim(self.dim)).values())
        location, cached = _location(4 * (total * padded_dim(self.dim) + state), device)
        compute = ComputeDevice.CPU if device.type == "cpu" else ComputeDevice.CUDA
        self._op = SplitTableBatchedEmbeddingBagsCodegen(
            [(total, padded_dim(self.dim), location, compute)],
            feature_table_map=[0] * FEATURES,
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.NONE,
            cache_load_factor=cached,
            device=device,
            **_fbgemm_settings(optimizer, self.dim),
        )
        self._caches = location == EmbeddingLocation.MANAGED_CACHING
        self._state_names = tuple(optimizer.state_shapes(1, 1))
        self._bind()
        self.updates = dict.fromkeys(self.starts, 0)
        self._numbers = torch.arange(1, device=device)

    def moved(self, device: torch.device) -> "_Op":
        """An op with the same values in another memory."""
        other = _Op(self.stores, self._optimizer, device)
        with torch.no_grad():
            other.whole().copy_(self.whole())
            for name, state in self.state.items():
                other.state[name].copy_(state)
        return other

    def whole(self) -> Tensor:
        """The weights [rows, e]; rows that a cache holds are written back first, and read anew afterwards."""
        if self._caches:
            self._op.flush()
            self._op.reset_cache_states()
        return self.weight

    def _bind(self) -> None:
        self.weight: Tensor = self._op.split_embedding_weights()[0]  # [rows, e]
        states = self._op.split_optimizer_states()[0] if self._state_names else []
        self.state: dict[str, Tensor] = dict(zip(self._state_names, states, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """For a deep copy: without the views, which a copy has to take of its own op."""
        return {name: value for name, value in vars(self).items() if name not in ("weight", "state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind()

    def scale_learning_rate(self, factor: float) -> None:
        """The updates of later calls have `factor` times the learning rate."""
        settings = _fbgemm_settings(self._optimizer, self.dim)
        self._op.set_learning_rate(settings["learning_rate"] * factor)

    def part(self, store: Store, tensor: Tensor) -> Tensor:
        """The rows of a store in a weight or state [rows, e] or [rows], a view without padding."""
        rows = tensor.narrow(0, self.starts[store.name], store.num_embeddings)
        return rows[:, : self.dim] if rows.dim() == 2 else rows

    def lookup(self, requests: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Rows [N, P] of each request into its stores -> vectors [N, P, d], out of one call."""
        asked = [(store, wanted) for store, several in requests.items() for wanted in several]
        flat = [self._shifted(store, wanted.flatten()) for store, wanted in asked]
        updates = {store: self.updates[store] for store in requests}
        rows = flat[0] if len(flat) == 1 else torch.cat(flat)
        sizes = [(store, len(part)) for (store, _), part in zip(asked, flat, strict=True)]
        parts = self._vectors(rows, sizes, updates)
        found: dict[str, list[Tensor]] = {store: [] for store in requests}
        for (store, wanted), part in zip(asked, parts, strict=True):
            found[store].append(part.view(*wanted.shape, self.dim))
        return found

    def _shifted(self, store: str, rows: Tensor) -> Tensor:
        start = self.starts[store]
        return rows + start if start else rows

    def _vectors(self, rows: Tensor, sizes: list[tuple[str, int]], updates: dict[str, int]) -> tuple[Tensor, ...]:
        """Rows [C] of the table -> their vectors in parts [size, d]; updates: how many each store read has had.

        sizes: of each part the store and how many.
        """
        parts: tuple[Tensor, ...]
        if torch.is_grad_enabled() and len(rows):
            dealt = torch.cat([rows[feature::FEATURES] for feature in range(FEATURES)])
            out = self._op(dealt, self._bags(len(rows)))  # [ceil(C / 2), 2 e]
            parts = _Accesses.apply(out, self, sizes, updates)  # type: ignore[no-untyped-call]
        else:
            parts = F.embedding(rows, self.whole())[:, : self.dim].split([size for _, size in sizes])
        return parts

    def _bags(self, count: int) -> Tensor:
        """Where the bags end: one access each, the last bag of the last feature empty when the count is odd."""
        bags = -(-count // FEATURES) * FEATURES
        if len(self._numbers) <= bags:
            self._numbers = torch.arange(2 * bags, device=self.device)
        offsets = self._numbers[: bags + 1]
        return offsets if bags == count else offsets.clamp(max=count)


class _Accesses(torch.autograd.Function):
    """The op's output [ceil(C / 2), 2 e] -> parts [size, d]; its backward, before the op's, joins their gradients."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, op: _Op, sizes: list[tuple[str, int]], updates: dict[str, int]
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.op, ctx.sizes, ctx.shape, ctx.updates = op, sizes, out.shape, updates
        rows = out.view(-1, out.shape[1] // FEATURES)
        counts = [size for _, size in sizes]
        parts: tuple[Tensor, ...] = rows[: sum(counts), : op.dim].split(counts)
        return parts

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None, None, None]:
        op: _Op = ctx.op
        twice = [store for store, updates in ctx.updates.items() if updates != op.updates[store]]
        if twice:
            raise RuntimeError(
                f"stores {twice} were looked up twice before backward(), which would update them twice: look up all "
                "that a step needs in one call, as in collection(batch, other)"
            )
        op.updates |= {store: updates + 1 for store, updates in ctx.updates.items()}
        whole = torch.empty(ctx.shape, device=op.device)
        rows = whole.view(-1, whole.shape[1] // FEATURES)
        rows[:, op.dim :] = 0
        start = 0
        for (_, size), grad in zip(ctx.sizes, grads, strict=True):
            rows[start : start + size, : op.dim] = 0 if grad is None else grad
            start += size
        rows[start:] = 0
        if not math.isfinite(float(whole.sum())):  # of all at once, as they lie: far cheaper than of each part
            for (store, _), grad in zip(ctx.sizes, grads, strict=True):
                if grad is not None:
                    check_finite(store, grad)
        return whole, None, None, None


def _location(num_bytes: int, device: torch.device) -> tuple[EmbeddingLocation, float]:
    """Where an op of so many bytes lies, and the share of its rows that a cache on the GPU can hold."""
    if device.type == "cpu":
        return EmbeddingLocation.HOST, NO_CACHE
    room = SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0]
    if num_bytes <= room:
        return EmbeddingLocation.DEVICE, NO_CACHE
    return EmbeddingLocation.MANAGED_CACHING, room / num_bytes


def _fbgemm_settings(optimizer: TableOptimizer, embedding_dim: int) -> dict[str, Any]:
    """With which fbgemm, on padded rows, runs the same rule."""
    if isinstance(optimizer, SGD):
        return {"optimizer": OptimType.EXACT_SGD, "learning_rate": optimizer.lr}
    if isinstance(optimizer, Adagrad):
        return {"optimizer": OptimType.EXACT_ADAGRAD, "learning_rate": optimizer.lr, "eps": optimizer.eps}
    if isinstance(optimizer, RowWiseAdagrad):
        lr, eps = optimizer.on_padded_rows(embedding_dim)
        return {"optimizer": OptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": lr, "eps": eps}
    raise ValueError(f"fbgemm has no {type(optimizer).__name__} on CPU; it takes SGD, Adagrad and RowWiseAdagrad")

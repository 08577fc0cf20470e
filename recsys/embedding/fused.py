"""`FusedStores`: fbgemm's table-batched op, called directly; the default backend in one process.

One op looks many stores up in one call; its backward sums the gradients of each row and applies the optimizer at once.
It is called in pooled mode with one id per bag, its fast form on CPU. What it asks for, and how it gets it:

- Widths are multiples of 4: stores are padded, pad columns stay zero and are neither saved nor counted as served.
  Row-wise Adagrad averages over the padded row, which a factor on lr and eps undoes; so an op has one true width.
- Every store of an op has the same number of bags: stores with the same width and equal, known accesses per batch row
  share an op, those read by lists have one each. Where counts differ all the same, the shorter end in empty bags.
- Each call updates by itself, so a row may be read by one call per step: two lookups whose backward runs in one go
  would update one after the other, which is refused in backward (see `_Op.check`). Without gradients there is no limit.

The only importer of fbgemm beside the sharded backend. CPU tensors.
Shapes: T stores of an op, C bags per store, d true width, e padded width.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.embedding.optimizers import SGD, Adagrad, RowWiseAdagrad, TableOptimizer, padded_dim
from recsys.embedding.stores import StoreBackend, flat_rows, split_vectors
from recsys.embedding.table import Store

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
    raise ImportError(
        "fbgemm-gpu (on a machine without a GPU: fbgemm-gpu-cpu) is not installed or does not load"
    ) from error


class FusedStores(StoreBackend):
    """Stores in fbgemm's own memory, updated by its backward.

    accesses: rows of a store that one row of a batch reads, None where that varies; it decides which stores share an
    op. Raises ValueError for an optimizer that fbgemm lacks.
    """

    def __init__(
        self, stores: Sequence[Store], optimizer: TableOptimizer, seed: int, accesses: Mapping[str, int | None]
    ) -> None:
        super().__init__(stores)
        self._ops = [_Op(group, optimizer) for group in op_groups(stores, accesses)]
        for op in self._ops:
            for store, weight in zip(op.stores, op.weights, strict=True):
                store.initialise(weight[:, : store.embedding_dim], seed)

    def lookup(self, requests: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """One call per op that has a requested store."""
        flat = {store: flat_rows(rows) for store, rows in requests.items()}
        vectors: dict[str, Tensor] = {}
        for op in self._ops:
            vectors |= op.lookup(flat)
        return {store: split_vectors(vectors[store], rows) for store, rows in requests.items()}

    def weights(self) -> dict[str, Tensor]:
        """Views without the padding."""
        return {
            store.name: weight[:, : store.embedding_dim]
            for op in self._ops
            for store, weight in zip(op.stores, op.weights, strict=True)
        }

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Views without the padding; row-wise Adagrad has one number per row."""
        return {
            store.name: {
                name: tensor[:, : store.embedding_dim] if tensor.dim() > 1 else tensor for name, tensor in state.items()
            }
            for op in self._ops
            for store, state in zip(op.stores, op.states, strict=True)
        }

    def training_bytes(self) -> int:
        """The padded stores."""
        return sum(weight.nbytes for op in self._ops for weight in op.weights)


def op_groups(stores: Sequence[Store], accesses: Mapping[str, int | None]) -> list[list[Store]]:
    """Stores that share an op: equal width and equal, known accesses per batch row; every other store by itself."""
    groups: dict[tuple[object, ...], list[Store]] = {}
    for store in stores:
        count = accesses.get(store.name)
        key = (store.name,) if count is None else (store.embedding_dim, count)
        groups.setdefault(key, []).append(store)
    return list(groups.values())


class _Op:
    """One fbgemm op over stores of one width, and the views into its memory."""

    def __init__(self, stores: Sequence[Store], optimizer: TableOptimizer) -> None:
        self.stores = tuple(stores)
        self.dim = stores[0].embedding_dim
        width = padded_dim(self.dim)
        self._op = SplitTableBatchedEmbeddingBagsCodegen(
            [(store.num_embeddings, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for store in stores],
            **_fbgemm_optimizer(optimizer, self.dim),
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.NONE,
            device=torch.device("cpu"),
        )
        self.weights: list[Tensor] = self._op.split_embedding_weights()
        names = list(optimizer.state_shapes(1, 1))
        states = self._op.split_optimizer_states() if names else [[] for _ in stores]
        self.states: list[dict[str, Tensor]] = [dict(zip(names, state, strict=True)) for state in states]
        self._updates = 0
        self._bags = torch.arange(1)

    def lookup(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Flat rows of every requested store -> vectors [rows, d]; stores of other ops are passed over."""
        if not torch.is_grad_enabled():
            found = zip(self.stores, self.weights, strict=True)
            wanted = [(store.name, weight) for store, weight in found if store.name in rows]
            return {name: F.embedding(rows[name], weight)[:, : self.dim] for name, weight in wanted}
        nothing = torch.empty(0, dtype=torch.int64)
        asked = [rows.get(store.name, nothing) for store in self.stores]
        counts = [len(part) for part in asked]
        bags = max(counts)
        if not bags:
            return {store.name: self.weights[0].new_zeros(0, self.dim) for store in self.stores if store.name in rows}
        out = self._op(torch.cat(asked) if len(asked) > 1 else asked[0], self._offsets(counts, bags))  # [C, T e]
        updates = self._updates
        out.register_hook(lambda grad: self.check(updates))
        parts = out.split(out.shape[1] // len(counts), 1) if len(counts) > 1 else [out]  # T of [C, e]
        return {
            store.name: part if (count, part.shape[1]) == (bags, self.dim) else part[:count, : self.dim]
            for store, part, count in zip(self.stores, parts, counts, strict=True)
            if store.name in rows
        }

    def check(self, updates: int) -> None:
        """Before an update: refuse it when rows have changed since the lookup that it belongs to."""
        if updates != self._updates:
            raise RuntimeError(
                f"stores {[store.name for store in self.stores]} were looked up twice before backward(), which would "
                "update them twice: look up all that a step needs in one call, as in collection(batch, other)"
            )
        self._updates += 1

    def _offsets(self, counts: Sequence[int], bags: int) -> Tensor:
        """Ends of the T x C bags: one row each, none in the bags beyond a store's count."""
        if min(counts) == bags:
            return self._first(bags * len(counts) + 1)
        steps = self._first(bags + 1)[1:]
        before = 0
        ends = [self._first(1)]
        for count in counts:
            ends.append(steps.clamp(max=count) + before)
            before += count
        return torch.cat(ends)

    def _first(self, count: int) -> Tensor:
        """0, 1, ..., count - 1 out of a buffer that grows."""
        if len(self._bags) < count:
            self._bags = torch.arange(count)
        return self._bags[:count]


def _fbgemm_optimizer(optimizer: TableOptimizer, embedding_dim: int) -> dict[str, object]:
    """The settings with which fbgemm, on padded rows, runs the same rule."""
    if isinstance(optimizer, SGD):
        return {"optimizer": OptimType.EXACT_SGD, "learning_rate": optimizer.lr}
    if isinstance(optimizer, Adagrad):
        return {"optimizer": OptimType.EXACT_ADAGRAD, "learning_rate": optimizer.lr, "eps": optimizer.eps}
    if isinstance(optimizer, RowWiseAdagrad):
        lr, eps = optimizer.on_padded_rows(embedding_dim)
        return {"optimizer": OptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": lr, "eps": eps}
    raise ValueError(f"fbgemm has no {type(optimizer).__name__} on CPU; it takes SGD, Adagrad and RowWiseAdagrad")

"""The one interface between tables and memory: `StoreBackend`, who holds the stores and trains them; and `PlainStores`.

A collection asks for rows and gets vectors; how stores lie in memory, on how many ranks, and how an update reaches
them is the backend's own affair. Three of them: `PlainStores` here (torch alone, the definition), `FusedStores`
(fused.py, fbgemm), `ShardedStores` (sharded.py, torchrec). The promises, which the tests hold each to:

- `lookup` takes everything that one step reads. All requests into one store train as one: a row hit more than once,
  by one request or by several, takes a single update with the sum of its gradients.
- With an optimizer, `backward()` through what `lookup` returned updates the stores; no gradient remains, and the stores
  do not show in `parameters()`, so that a model's dense optimizer never sees them.
- `weights` and `state` give live tensors of the true width, the same names and shapes in every backend (sharded: as
  DTensors): writing into them changes the store, padding is not seen.
- A store starts as `Store.initialise(seed)` says.

Shapes: N ids of a request, P accesses per id, n rows of a store, d its true width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embedding.optimizers import TableOptimizer, zero_state
from recsys.embedding.precision import read_rows
from recsys.embedding.store import Store


class StoreBackend(nn.Module, ABC):
    """Holds the stores, looks rows up, updates them in backward.

    gradient_scale: what the gradients at the vectors are too large by; W where a rank's loss is W times its share.
    checks_gradients: whether its own backward calls `check_finite` before an update; else the collection does.
    """

    gradient_scale: float = 1.0
    checks_gradients: bool = False

    def __init__(self, stores: Sequence[Store]) -> None:
        super().__init__()
        self.stores = {store.name: store for store in stores}

    @abstractmethod
    def lookup(self, requests: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Store name -> rows [N, P] of each request, int64, in range -> vectors [N, P, d] of each, in the same order.

        Stores that are not named are not read. Differentiable whenever gradients are enabled.
        """

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Store name -> its live values [n, d]."""

    def whole_weights(self) -> dict[str, Tensor]:
        """Store name -> all its values [n, d] as a plain tensor, also where `weights` are spread over ranks."""
        return self.weights()

    @abstractmethod
    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Store name -> state name -> its live values, as `TableOptimizer.state_shapes` names and shapes them."""

    @abstractmethod
    def training_bytes(self) -> int:
        """Bytes of the weights as they lie in memory while training, padding included; this rank's part."""

    @abstractmethod
    def scale_learning_rate(self, factor: float) -> None:
        """From here on updates are made with `factor` times the optimizer's own learning rate."""

    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer state, without padding."""
        states = [tensor for state in self.optimizer_state().values() for tensor in state.values()]
        return sum(tensor.nbytes for tensor in states)

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps: "stores.<store>" and "optimizer.<store>.<state>", live."""
        named = {f"stores.{store}": weight for store, weight in self.weights().items()}
        for store, state in self.optimizer_state().items():
            named |= {f"optimizer.{store}.{name}": tensor for name, tensor in state.items()}
        return named

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite some or all of `state()`; names and shapes were checked by the collection."""
        own = self.state()
        with torch.no_grad():
            for name, given in state.items():
                own[name].copy_(given)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Nothing: the collection writes the stores under names that every backend shares."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Nothing: the collection reads them."""


class PlainStores(StoreBackend):
    """Every store one tensor of this process, looked up by `F.embedding`: what the other backends are tested against.

    With an optimizer, a hook applies it as soon as the whole gradient of a store is there. Without one the stores are
    ordinary parameters and keep their `.grad`.
    """

    def __init__(
        self, stores: Sequence[Store], weights: Mapping[str, Tensor], optimizer: TableOptimizer | None
    ) -> None:
        """weights: store name -> [n, d], used without a copy; served ones may be packed, and then do not train."""
        super().__init__(stores)
        self.optimizer = optimizer
        self._scale = 1.0
        self._weights = {
            name: nn.Parameter(weights[name], requires_grad=weights[name].dtype == torch.float32)
            for name in self.stores
        }
        self._state: dict[str, dict[str, Tensor]] = {}
        if optimizer is None:
            for name, weight in self._weights.items():
                self.register_parameter(name.replace(".", "/"), weight)
        else:
            self._state = {name: zero_state(optimizer, *weight.shape) for name, weight in self._weights.items()}
            self._hook_updates()

    def lookup(self, requests: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """One lookup per store over all its requests."""
        return {store: self._lookup(store, rows) for store, rows in requests.items()}

    def _lookup(self, store: str, requests: Sequence[Tensor]) -> list[Tensor]:
        rows, weight = flat_rows(requests), self._weights[store]
        if self.optimizer is not None:
            return split_vectors(F.embedding(rows, weight, sparse=self.optimizer.sparse), requests)
        declared = self.stores[store]
        return split_vectors(read_rows(weight, rows, declared.precision, declared.embedding_dim), requests)

    def weights(self) -> dict[str, Tensor]:
        """The parameters' values."""
        return {name: weight.detach() for name, weight in self._weights.items()}

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """The state tensors, empty for each store without an optimizer."""
        return self._state

    def training_bytes(self) -> int:
        """The stores themselves: nothing is padded."""
        return sum(weight.nbytes for weight in self._weights.values())

    def scale_learning_rate(self, factor: float) -> None:
        """Of the optimizer; without one the caller's own is unaffected."""
        self._scale = factor

    def _hook_updates(self) -> None:
        for name, weight in self._weights.items():
            weight.register_post_accumulate_grad_hook(lambda found, store=name: self._update(store, found))

    def _update(self, store: str, weight: Tensor) -> None:
        if self.optimizer is not None and weight.grad is not None:
            with torch.no_grad():
                self.optimizer.scaled(self._scale).update(weight, weight.grad, self._state[store])
            weight.grad = None

    def _apply(self, fn: Any, recurse: bool = True) -> "PlainStores":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            for weight in self._weights.values():
                weight.data = fn(weight.data)
            self._state = {
                store: {name: fn(tensor) for name, tensor in state.items()} for store, state in self._state.items()
            }
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A deep copy has tensors of its own, on which the hooks must be set again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self._hook_updates()


def initial_weights(stores: Sequence[Store], seed: int) -> dict[str, Tensor]:
    """Fresh float32 values [n, d] of each store, by name."""
    weights = {store.name: torch.empty(store.num_embeddings, store.embedding_dim) for store in stores}
    for store in stores:
        store.initialise(weights[store.name], seed)
    return weights


def flat_rows(requests: Sequence[Tensor]) -> Tensor:
    """Rows [N, P] of each request -> one flat list, request after request."""
    return requests[0].flatten() if len(requests) == 1 else torch.cat([rows.flatten() for rows in requests])


def split_vectors(vectors: Tensor, requests: Sequence[Tensor]) -> list[Tensor]:
    """The inverse for what was found: vectors [all accesses, d] -> [N, P, d] per request, without a copy."""
    width = vectors.shape[-1]
    if len(requests) == 1:
        return [vectors.view(*requests[0].shape, width)]
    parts = vectors.split([rows.numel() for rows in requests])
    return [part.view(*rows.shape, width) for part, rows in zip(parts, requests, strict=True)]


class NonFiniteGradientError(ValueError):
    """A gradient that is NaN or infinite was about to reach a store; raised within `backward()`, before its update."""


def check_finite(store: str, grad: Tensor) -> None:
    """Raise NonFiniteGradientError naming the store if the gradient, of any shape, holds NaN or infinity."""
    if not math.isfinite(float(grad.sum())):
        raise NonFiniteGradientError(f"the gradient of store {store!r} is not finite")


def watched(store: str, vectors: list[Tensor], max_norm: float | None, check: bool) -> list[Tensor]:
    """The vectors, whose gradients are checked, and clipped row by row to max_norm, before they reach the store."""

    def watch(grad: Tensor) -> Tensor | None:
        if check:
            check_finite(store, grad)
        return None if max_norm is None else grad * (max_norm / grad.norm(dim=-1, keepdim=True)).clamp(max=1.0)

    for found in vectors:
        if found.requires_grad and (check or max_norm is not None):
            found.register_hook(watch)
    return vectors

"""The plain backend: what a lookup finds, and how backward updates it."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from recsys.embedding.optimizers import SGD, Adam, TableOptimizer
from recsys.embedding.store import Store
from recsys.embedding.stores import PlainStores, initial_weights
from tests.recsys.embedding.small_schema import OPTIMIZERS, NaiveStore, pull

STORES = [
    Store(name="ids.a", num_embeddings=7, embedding_dim=3),
    Store(name="ids.b", num_embeddings=5, embedding_dim=2),
]
REQUESTS = {"ids.a": [torch.tensor([[0, 6], [6, 6]]), torch.tensor([[2], [0]])], "ids.b": [torch.tensor([[4, 4, 1]])]}


def stores(optimizer: TableOptimizer | None) -> PlainStores:
    return PlainStores(STORES, initial_weights(STORES, seed=0), optimizer)


def step(backend: PlainStores, seed: int) -> dict[str, list[Tensor]]:
    """One step; the gradients of what was looked up."""
    found = backend.lookup(REQUESTS)
    grads = {
        name: [pull(part.numel(), seed + place).view_as(part) for place, part in enumerate(parts)]
        for name, parts in found.items()
    }
    parts = [part for name in found for part in found[name]]
    torch.autograd.backward(parts, [grad for name in grads for grad in grads[name]])
    return grads


def test_lookup_gives_the_rows_of_each_request() -> None:
    backend = stores(None)
    found = backend.lookup(REQUESTS)
    for name, requests in REQUESTS.items():
        for rows, vectors in zip(requests, found[name], strict=True):
            assert torch.equal(vectors, backend.weights()[name][rows])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_backward_updates_each_row_once_with_all_its_gradients(optimizer: TableOptimizer) -> None:
    backend = stores(optimizer)
    naive = {name: NaiveStore(weight, optimizer) for name, weight in backend.weights().items()}
    for seed in range(3):
        for name, grads in step(backend, seed).items():
            sums: dict[int, list[float]] = {}
            for rows, grad in zip(REQUESTS[name], grads, strict=True):
                for row, values in zip(rows.flatten().tolist(), grad.flatten(0, 1).tolist(), strict=True):
                    before = sums.get(row, [0.0] * len(values))
                    sums[row] = [one + other for one, other in zip(before, values, strict=True)]
            naive[name].update(sums)
    for name, weight in backend.weights().items():
        torch.testing.assert_close(weight, torch.tensor(naive[name].rows), atol=1e-5, rtol=1e-5)


def test_two_lookups_of_one_backward_are_one_update() -> None:
    one, two = stores(OPTIMIZERS[1]), stores(OPTIMIZERS[1])
    rows = torch.tensor([[1], [1]])
    one.lookup({"ids.a": [rows, rows]})["ids.a"][0].sum()
    parts = one.lookup({"ids.a": [rows, rows]})["ids.a"]
    sum(part.sum() for part in parts).backward()  # type: ignore[union-attr]
    apart = [two.lookup({"ids.a": [rows]})["ids.a"][0] for _ in range(2)]
    sum(part.sum() for part in apart).backward()  # type: ignore[union-attr]
    assert torch.equal(one.weights()["ids.a"], two.weights()["ids.a"])


def test_with_an_optimizer_no_gradient_and_no_parameter_remains() -> None:
    backend = stores(SGD(lr=0.1))
    step(backend, 0)
    assert list(backend.parameters()) == []
    assert all(weight.grad is None for weight in backend._weights.values())


def test_without_an_optimizer_gradients_are_the_callers() -> None:
    backend = stores(None)
    before = {name: weight.clone() for name, weight in backend.weights().items()}
    step(backend, 0)
    grads = {name: parameter.grad for name, parameter in backend.named_parameters()}
    assert set(grads) == {"ids/a", "ids/b"}
    assert all(grad is not None and not grad.is_sparse for grad in grads.values())
    assert all(torch.equal(weight, before[name]) for name, weight in backend.weights().items())


def test_adam_leaves_stores_alone_that_were_not_looked_up() -> None:
    backend = stores(Adam(lr=0.1))
    before = backend.weights()["ids.b"].clone()
    backend.lookup({"ids.a": [torch.tensor([[1]])]})["ids.a"][0].sum().backward()
    assert torch.equal(backend.weights()["ids.b"], before)


def test_a_deep_copy_trains_on_by_itself() -> None:
    backend = stores(OPTIMIZERS[1])
    step(backend, 0)
    copy, before = deepcopy(backend), backend.weights()["ids.a"].clone()
    step(copy, 1)
    assert torch.equal(backend.weights()["ids.a"], before)
    step(backend, 1)
    assert torch.equal(backend.state()["stores.ids.a"], copy.state()["stores.ids.a"])
    assert torch.equal(backend.state()["optimizer.ids.a.momentum"], copy.state()["optimizer.ids.a.momentum"])


def test_state_is_live_and_starts_at_zero() -> None:
    backend = stores(Adam(lr=0.1))
    state = backend.state()
    names = {f"optimizer.ids.{store}.{name}" for store in "ab" for name in ("exp_avg", "exp_avg_sq", "step")}
    assert set(state) == {"stores.ids.a", "stores.ids.b"} | names
    assert not any(state[name].any() for name in names)
    step(backend, 0)
    assert float(state["optimizer.ids.a.step"]) == 1
    assert torch.equal(state["stores.ids.a"], backend.weights()["ids.a"])


def test_conversion_reaches_weights_and_state() -> None:
    backend = stores(OPTIMIZERS[1]).double()
    assert {tensor.dtype for tensor in backend.state().values()} == {torch.float64}
    step(backend.float(), 0)
    assert {tensor.dtype for tensor in backend.state().values()} == {torch.float32}

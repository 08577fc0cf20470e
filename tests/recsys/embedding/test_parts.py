"""Parts of stores on one rank of a group of one, and what does not need ranks at all; two ranks are in test_sharded."""

from collections.abc import Iterator

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from recsys import distributed
from recsys.embedding.parts import device_of_ranks, fill, fill_initial, spread, whole
from recsys.embedding.store import Normal, Store
from tests.recsys.two_ranks import free_port

STORE = Store(name="ids", num_embeddings=5000, embedding_dim=10, init=Normal(std=1.0))
WHOLE = (range(5000), range(10))


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with distributed.joined_ranks():
        yield


def initial() -> torch.Tensor:
    values = torch.empty(5000, 10)
    STORE.initialise(values, seed=3)
    return values


def test_columns_start_as_columns_of_whole_rows(ranks: None) -> None:
    """Over more rows than are drawn at a time; what is beyond the part's columns is left."""
    held = torch.zeros(5000, 8)
    fill_initial(held, STORE, (range(5000), range(2, 7)), seed=3)
    assert torch.equal(held[:, :5], initial()[:, 2:7])
    assert not held[:, 5:].any()


def test_a_spread_store_is_live_and_gathers_without_padding(ranks: None) -> None:
    held = torch.zeros(5000, 12)
    fill_initial(held, STORE, WHOLE, seed=3)
    tensor = spread(held, STORE, range(10), DeviceMesh("cpu", [0]), dim=0)
    assert torch.equal(whole(tensor, {0: WHOLE}), initial())
    fill("ids", tensor, torch.ones(5000, 10))
    assert held[:, :10].eq(1).all()
    assert not held[:, 10:].any()
    assert tuple(spread(torch.zeros(5000), STORE, range(10), DeviceMesh("cpu", [0]), dim=1).shape) == (5000,)


def test_fill_refuses_a_tensor_that_is_spread_otherwise(ranks: None) -> None:
    mesh = DeviceMesh("cpu", [0])
    target = spread(torch.zeros(5000, 12), STORE, range(10), mesh, dim=0)
    other = DTensor.from_local(torch.zeros(5000, 10), mesh, [Shard(1)])
    with pytest.raises(ValueError, match=r"'stores\.ids' is spread otherwise over the ranks"):
        fill("stores.ids", target, other)


def test_ranks_of_gloo_are_on_the_cpu(ranks: None) -> None:
    assert device_of_ranks() == torch.device("cpu")

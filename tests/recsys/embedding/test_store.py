"""Stores start from seed and name alone, block by block."""

import torch

from recsys.embedding.store import BLOCK_ROWS, Constant, Normal, Store, Uniform


def initial(store: Store, seed: int = 0, start: int = 0, count: int | None = None) -> torch.Tensor:
    rows = torch.empty(count or store.num_embeddings, store.embedding_dim)
    store.initialise(rows, seed, start)
    return rows


def test_initial_values_are_a_function_of_seed_and_name() -> None:
    store = Store(name="ids.user", num_embeddings=20, embedding_dim=3)
    assert torch.equal(initial(store), initial(store))
    assert not torch.equal(initial(store), initial(store, seed=1))
    assert not torch.equal(initial(store), initial(Store(name="ids.item", num_embeddings=20, embedding_dim=3)))


def test_initial_values_of_a_part_are_those_of_the_whole() -> None:
    store = Store(name="a", num_embeddings=2 * BLOCK_ROWS + 100, embedding_dim=2, init=Normal(std=1.0))
    start = BLOCK_ROWS - 7
    assert torch.equal(
        initial(store, start=start, count=BLOCK_ROWS + 50), initial(store)[start : start + BLOCK_ROWS + 50]
    )


def test_initial_values_stay_when_a_store_grows() -> None:
    small = Store(name="a", num_embeddings=100, embedding_dim=2)
    large = Store(name="a", num_embeddings=BLOCK_ROWS + 100, embedding_dim=2)
    assert torch.equal(initial(large)[:100], initial(small))


def test_initial_values_fill_a_strided_view() -> None:
    store = Store(name="a", num_embeddings=10, embedding_dim=3)
    padded = torch.zeros(10, 4)
    store.initialise(padded[:, :3], seed=0)
    assert torch.equal(padded[:, :3], initial(store))
    assert not padded[:, 3].any()


def test_initial_values_follow_their_distribution() -> None:
    def values(init: Uniform | Normal | Constant) -> torch.Tensor:
        return initial(Store(name="a", num_embeddings=4000, embedding_dim=4, init=init))

    assert values(Uniform(low=-0.2, high=0.4)).aminmax().min >= -0.2
    assert abs(float(values(Uniform(low=-0.2, high=0.4)).mean()) - 0.1) < 0.01
    assert abs(float(values(Normal(std=0.5)).std()) - 0.5) < 0.01
    assert torch.equal(values(Constant(value=2.0)), torch.full((4000, 4), 2.0))


def test_initial_values_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial(Store(name="a", num_embeddings=10, embedding_dim=3))
    assert torch.equal(torch.rand(3), expected)

"""Stores start from seed and name alone; dense tables are one row per id."""

import pytest
import torch
from pydantic import ValidationError

from recsys.embedding.dense import DenseTable
from recsys.embedding.table import BLOCK_ROWS, Constant, Normal, Reader, Store, Uniform, check_ids


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


def test_dense_table_is_one_row_per_id() -> None:
    spec = DenseTable(embedding_dim=3, init=Constant(value=1.0))
    table = spec.build("ids", [Reader(name="item", salt="item", num_embeddings=5)])["item"]
    weight = torch.arange(15.0).view(5, 3)
    assert [(store.name, store.num_embeddings, store.num_bytes) for store in table.stores] == [("ids.item", 5, 60)]
    assert torch.equal(table(torch.tensor([4, 0, 4]), {"ids.item": weight}), weight[[4, 0, 4]])


def test_dense_table_needs_to_know_how_many_ids() -> None:
    with pytest.raises(ValueError, match=r"table 'ids' \(dense\) needs the number of ids of 'item'"):
        DenseTable(embedding_dim=3).build("ids", [Reader(name="item", salt="item")])


@pytest.mark.parametrize(("ids", "says"), [([0, -2], "id -2"), ([7, 5], "id 7"), ([2**40], f"id {2**40}")])
def test_ids_out_of_range_are_named(ids: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=rf"feature 'item': {says} is outside 0\.\.4"):
        check_ids(torch.tensor(ids), 5, "feature 'item'")


def test_ids_in_range_pass() -> None:
    check_ids(torch.tensor([0, 4]), 5, "feature 'item'")
    check_ids(torch.empty(0, dtype=torch.int64), 5, "feature 'item'")
    check_ids(torch.tensor([-9, 2**62]), None, "feature 'item'")


def test_ids_must_be_int64() -> None:
    with pytest.raises(ValueError, match=r"feature 'item': ids must be int64, got torch\.float32"):
        check_ids(torch.tensor([1.0]), 5, "feature 'item'")


def test_store_needs_a_row_and_a_column() -> None:
    with pytest.raises(ValueError, match="store 'a' needs at least one row and one column"):
        Store(name="a", num_embeddings=0, embedding_dim=4)


def test_table_spec_round_trips_and_refuses_unknown_keys() -> None:
    spec = DenseTable(embedding_dim=3, init=Normal(std=0.5))
    assert DenseTable.model_validate(spec.model_dump()) == spec
    with pytest.raises(ValidationError, match="embeding_dim"):
        DenseTable.model_validate({"embedding_dim": 3, "embeding_dim": 4})

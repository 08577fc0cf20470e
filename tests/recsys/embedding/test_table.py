"""Dense tables are one row per id; stores and ids out of range are refused."""

import pytest
import torch
from pydantic import ValidationError

from recsys.embedding.dense import DenseTable
from recsys.embedding.store import Constant, Normal, Store
from recsys.embedding.table import Reader, check_ids


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

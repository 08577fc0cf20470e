"""A budget dealt to vocabularies: whole tables where the share suffices, and never more than the budget."""

import pytest
from pydantic import ValidationError

from recsys.compression.hashing import HashTable
from recsys.embedding.dense import RowPerId
from recsys.embedding.table import Reader


def readers(**sizes: int) -> list[Reader]:
    return [Reader(name=name, salt=name, num_embeddings=size) for name, size in sorted(sizes.items())]


def test_a_vocabulary_that_fits_is_not_compressed() -> None:
    tables = HashTable(embedding_dim=4, budget="100%").build("ids", readers(a=50, b=3))
    assert {type(table) for table in tables.values()} == {RowPerId}


def test_a_vocabulary_smaller_than_the_smallest_compressed_table_is_whole() -> None:
    tables = HashTable(embedding_dim=4, budget="50%").build("ids", readers(big=50, single=1))
    assert isinstance(tables["single"], RowPerId)
    assert tables["big"].stores[0].num_embeddings < 50


def test_a_table_without_known_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the number of ids of 'word'"):
        HashTable(embedding_dim=4, budget="1kB").build("ids", [Reader(name="word", salt="word")])


@pytest.mark.parametrize("budget", ["0%", "10", "ten", "-1B"])
def test_a_budget_that_is_none_is_refused(budget: str) -> None:
    with pytest.raises(ValidationError, match="must be a positive number"):
        HashTable(embedding_dim=4, budget=budget)

"""Fewer rows than ids: the rows that a share of the budget pays for, hit evenly."""

import pytest
import torch

from recsys.compression.hashing import HashTable
from recsys.embedding.precision import PRECISIONS, Precision, row_bytes
from recsys.embedding.table import Reader

READERS = [Reader(name=name, salt=name, num_embeddings=n) for name, n in (("item", 600), ("sex", 2), ("user", 400))]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_those_that_the_budget_pays_for(precision: Precision) -> None:
    spec = HashTable(embedding_dim=8, budget="10%", precision=precision)
    tables = spec.build("ids", READERS).values()
    total = sum(table.stores[0].num_bytes + sum(buffer.nbytes for buffer in table.buffers()) for table in tables)
    assert total <= spec.max_bytes("ids", READERS) == 1002 * 32 // 10
    assert spec.max_bytes("ids", READERS) - total < 3 * (row_bytes(8, precision) + 8)


def test_ids_spread_over_all_rows() -> None:
    table = HashTable(embedding_dim=8, budget="10%").build("ids", READERS)["item"]
    hits = torch.bincount(table.rows(torch.arange(600))["ids.item"].flatten(), minlength=table.stores[0].num_embeddings)
    assert hits.max() < 6 * 600 / len(hits)
    assert (hits > 0).float().mean() > 0.95


def test_another_seed_collides_otherwise() -> None:
    one, other = (HashTable(embedding_dim=8, budget="10%").build("ids", READERS, seed)["item"] for seed in (0, 1))
    assert not torch.equal(one.rows(torch.arange(50))["ids.item"], other.rows(torch.arange(50))["ids.item"])


def test_budget_out_of_reach_names_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"table 'ids': budget 100B is too small, the minimum is 120B"):
        HashTable(embedding_dim=8, budget="100B").build("ids", READERS)

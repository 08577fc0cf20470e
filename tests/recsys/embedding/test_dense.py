"""One row per id: the vector of an id is its row, whoever asks."""

import torch

from recsys.embedding.dense import DenseTable, RowPerId
from recsys.embedding.table import Reader


def test_vector_is_the_row_of_the_id() -> None:
    reader = Reader(name="item", salt="item", num_embeddings=5)
    table = DenseTable(embedding_dim=3).build("ids", [reader])["item"]
    weights, ids = {"ids.item": torch.rand(5, 3)}, torch.tensor([4, 0, 4])
    assert torch.equal(table(ids, weights), weights["ids.item"][ids])


def test_table_comes_back_from_its_settings() -> None:
    reader = Reader(name="item", salt="it", num_embeddings=5)
    table = DenseTable(embedding_dim=3, precision="int8").build("ids", [reader])["item"]
    again = RowPerId.from_settings(table.settings(), {store.name: store for store in table.stores})
    assert (again.name, again.stores, again.num_embeddings) == (table.name, table.stores, 5)

"""Readers of given sizes, and the bytes that their tables really serve: packed rows, parameters and buffers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from recsys.embedding.layout import unique_stores
from recsys.embedding.precision import pack
from recsys.embedding.stores import initial_weights
from recsys.embedding.table import EmbeddingTable, Reader

VOCABULARIES = [{"a": 1}, {"a": 2}, {"a": 3, "b": 1}, {"a": 1000}, {"a": 1, "b": 2, "c": 3, "d": 40, "e": 700}]
BUDGETS = ["100%", "70%", "50%", "30%", "10%", "3%", "1%", "5B", "17B", "100B", "1kB", "4kB", "20kB"]


def readers_of(sizes: Mapping[str, int], counted: bool = True) -> list[Reader]:
    """One reader per size; the later the id, the more often it was seen, but for every seventh."""

    def counts(size: int) -> Tensor:
        ids = torch.arange(size)
        return torch.where(ids % 7 == 0, 0, ids)

    return [
        Reader(name=name, salt=name, num_embeddings=size, counts=counts(size) if counted else None)
        for name, size in sorted(sizes.items())
    ]


def served_bytes(tables: Mapping[str, EmbeddingTable], weights: Mapping[str, Tensor] | None = None) -> int:
    """Of the frozen tables, measured on their tensors."""
    trained = initial_weights(unique_stores(tables.values()), seed=0) if weights is None else weights
    stores: dict[str, int] = {}
    others = 0
    for table in tables.values():
        frozen, arrays = table.freeze(trained)
        others += sum(tensor.nbytes for tensor in frozen.state_dict().values())
        for store in frozen.stores:
            assert arrays[store.name].shape == (store.num_embeddings, store.embedding_dim)
            stores[store.name] = pack(arrays[store.name].contiguous(), store.precision).nbytes
    return others + sum(stores.values())

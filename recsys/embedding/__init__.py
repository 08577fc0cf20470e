"""Embedding tables and the collection that owns them; `TABLES` is what a config's `method` names."""

from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from recsys.embedding.table import (
    Constant,
    DenseTable,
    EmbeddingTable,
    Normal,
    Reader,
    Store,
    TableSpec,
    Uniform,
)
from recsys.embedding.unified import UnifiedTable

TABLES: dict[str, type[TableSpec]] = {"dense": DenseTable, "unified": UnifiedTable}

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "TABLES",
    "Adagrad",
    "Adam",
    "Constant",
    "DenseTable",
    "EmbeddingCollection",
    "EmbeddingTable",
    "Normal",
    "Reader",
    "RowWiseAdagrad",
    "Store",
    "TableOptimizer",
    "TableSpec",
    "UnifiedTable",
    "Uniform",
]

"""Embedding tables and the collection that owns them."""

from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from recsys.embedding.store import Constant, Normal, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, TableSpec
from recsys.embedding.unified import UnifiedTable

__all__ = [
    "OPTIMIZERS",
    "SGD",
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

"""recsys: the embeddings of a recommender system, as a library and as a platform.

    from recsys import EmbeddingCollection, FeatureSchema, RowWiseAdagrad, UnifiedTable

What is here is for an engineer's own training loop: describe features, encode them, look up trainable vectors. The
platform (prepare, train, evaluate, export, serve) is the command `recsys` and the packages below this one.
"""

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec, SequenceGroup
from recsys.compression import COMPRESSIONS
from recsys.compression.adaptive import AdaptTable
from recsys.compression.codebook import CodebookTable
from recsys.compression.dedup import DedupTable
from recsys.compression.factorized import CompositionalTable
from recsys.compression.hashing import HashTable
from recsys.compression.mixed_dim import MixedDimTable
from recsys.compression.pruning import PrunedTable
from recsys.compression.robe import RobeTable
from recsys.compression.supernet import SearchedTable
from recsys.compression.tensor_train import TensorTrainTable
from recsys.embedding import (
    SGD,
    Adagrad,
    Adam,
    DenseTable,
    EmbeddingCollection,
    EmbeddingTable,
    RowWiseAdagrad,
    TableSpec,
    UnifiedTable,
)

__all__ = [
    "COMPRESSIONS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdaptTable",
    "Batch",
    "CodebookTable",
    "CompositionalTable",
    "DedupTable",
    "DenseTable",
    "EmbeddingCollection",
    "EmbeddingTable",
    "Encoder",
    "FeatureSchema",
    "FeatureSpec",
    "HashTable",
    "Jagged",
    "MixedDimTable",
    "PrunedTable",
    "RobeTable",
    "RowWiseAdagrad",
    "SearchedTable",
    "SequenceGroup",
    "TableSpec",
    "TensorTrainTable",
    "UnifiedTable",
]

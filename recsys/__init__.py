"""recsys: the embeddings of a recommender system, as a library and as a platform.

    from recsys import EmbeddingCollection, FeatureSchema, RowWiseAdagrad, UnifiedTable

What is here is for an engineer's own training loop: describe features, encode them, look up trainable vectors. The
platform (prepare, train, evaluate, export, serve) is the command `recsys` and the packages below this one.
"""

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec, SequenceGroup
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
    "SGD",
    "Adagrad",
    "Adam",
    "Batch",
    "DenseTable",
    "EmbeddingCollection",
    "EmbeddingTable",
    "Encoder",
    "FeatureSchema",
    "FeatureSpec",
    "Jagged",
    "RowWiseAdagrad",
    "SequenceGroup",
    "TableSpec",
    "UnifiedTable",
]

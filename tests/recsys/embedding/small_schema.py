"""A schema of every kind of id column, batches of it, and the naive loops that backends are compared with."""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from features.batch import Batch, Jagged, offsets_of
from features.spec import FeatureSchema, parse_schema
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import SGD, Adagrad, RowWiseAdagrad, TableOptimizer
from recsys.embedding.table import TableSpec
from recsys.embedding.unified import UnifiedTable

SIZES = {"user": 23, "item": 41, "tag": 5, "bias": 7}
SCHEMA = parse_schema(
    {
        "name": "small", "user": "user", "item": "item",
        "features": {
            "user": {"table": "wide"},
            "item": {"table": "odd"},
            "tag": {"table": "thirty", "kind": "id_list", "pooling": "mean"},
            "score": {"table": "thirty", "kind": "id_score_list", "pooling": "sum", "vocabulary": "tag"},
            "bias": {"table": "single"},
            "price": {"kind": "dense"},
            "word": {"table": "shared", "hashed": True, "chunks": 3},
            "query": {"table": "shared", "hashed": True, "kind": "id_list", "chunks": 2},
        },
        "sequences": {"history": {"of": {"history": "item"}, "max_length": 20, "pooling": "none"}},
    },
    where="test",
)  # fmt: skip
SPECS: dict[str, TableSpec] = {
    "wide": DenseTable(embedding_dim=16),
    "odd": DenseTable(embedding_dim=10),
    "thirty": DenseTable(embedding_dim=30),
    "single": DenseTable(embedding_dim=1),
    "shared": UnifiedTable(num_embeddings=19, chunk_dim=4),
}
OPTIMIZERS: list[TableOptimizer] = [SGD(lr=0.3), Adagrad(lr=0.2, eps=1e-3), RowWiseAdagrad(lr=0.2, eps=1e-3)]


class Ids:
    """An encoder, as far as a collection asks one."""

    def __init__(self, schema: FeatureSchema = SCHEMA, sizes: Mapping[str, int] = SIZES) -> None:
        self.schema = schema
        self.sizes = sizes

    def num_embeddings(self, feature: str) -> int | None:
        return self.sizes.get(self.schema.source(feature).vocabulary)

    def counts(self, feature: str) -> None:
        """Not counted."""


def small_batch(seed: int, size: int = 9) -> Batch:
    """Random ids, many of them repeated; some lists are empty."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int, below: int) -> Tensor:
        return torch.randint(below, (count,), generator=generator)

    def lists(below: int) -> Jagged:
        offsets = offsets_of(ids(size, 4))
        return Jagged(values=ids(int(offsets[-1]), below), offsets=offsets)

    tags = lists(SIZES["tag"])
    scored = Jagged(values=tags.values, offsets=tags.offsets, weights=torch.rand(len(tags.values), generator=generator))
    columns: dict[str, Tensor | Jagged] = {name: ids(size, SIZES[name]) for name in ("user", "item", "bias")}
    columns |= {"word": ids(size, 1 << 40) - (1 << 39), "query": lists(1 << 40), "history": lists(SIZES["item"])}
    columns |= {"price": torch.rand(size, generator=generator), "tag": tags, "score": scored}
    return Batch(features=columns)


def collection_of(backend: str, optimizer: TableOptimizer | None = None, seed: int = 0) -> EmbeddingCollection:
    """Over the small schema."""
    return EmbeddingCollection(Ids(), SPECS, backend=backend, optimizer=optimizer, seed=seed)  # type: ignore[arg-type]


def flat(vectors: Mapping[str, Tensor | Jagged]) -> Tensor:
    """All numbers of all features in one row, features in the order of their names."""
    columns = [vectors[name] for name in sorted(vectors)]
    parts: list[Tensor] = [(column.values if isinstance(column, Jagged) else column).flatten() for column in columns]
    return torch.cat(parts)


def pull(count: int, seed: int) -> Tensor:
    """Fixed gradients for so many numbers."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def train(collection: EmbeddingCollection, steps: int, first: int = 0) -> None:
    """Steps on batches of their own, each with fixed gradients at the vectors."""
    for step in range(first, first + steps):
        vectors = flat(collection(small_batch(step)))
        (vectors * pull(len(vectors), step)).sum().backward()


class NaiveStore:
    """A store as lists of Python floats, updated one row at a time by the text-book rule."""

    def __init__(self, weight: Tensor, optimizer: TableOptimizer) -> None:
        self.rows = weight.double().tolist()
        self.optimizer = optimizer
        self.sums = [[0.0] * weight.shape[1] for _ in self.rows]

    def update(self, grads: Mapping[int, list[float]]) -> None:
        """Row -> the sum of its gradients."""
        for row, grad in grads.items():
            for column, step in enumerate(self._steps(row, grad)):
                self.rows[row][column] -= self.optimizer.lr * step

    def _steps(self, row: int, grad: list[float]) -> list[float]:
        if isinstance(self.optimizer, SGD):
            return grad
        assert isinstance(self.optimizer, Adagrad | RowWiseAdagrad)
        squares = [value * value for value in grad]
        if isinstance(self.optimizer, RowWiseAdagrad):
            squares = [sum(squares) / len(squares)] * len(squares)
        self.sums[row] = [total + square for total, square in zip(self.sums[row], squares, strict=True)]
        eps = self.optimizer.eps
        return [value / (sqrt(total) + eps) for value, total in zip(grad, self.sums[row], strict=True)]

"""`Index`: the k items whose vectors score highest. `Hits`: what a search returns. `ExactIndex`: the oracle.

A score is the inner product, for a user of several vectors the largest of them. Items are **positions** in the item
table, never raw ids and never vocabulary rows. What is allowed comes as one bitmap for the whole call; a user's seen
items are not an index's business: the caller asks for more and drops them.

Shapes: Q queries, M vectors of a query, D embedding_dim, n vectors in the index, P positions of the catalogue, K = k.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from features import storage
from recsys.retrieval.topk import top_k

if TYPE_CHECKING:
    import pandas as pd

FILE = "index.safetensors"
FORMAT = "1"
MAX_CELLS = 1 << 24  # scores held at once: 64 MiB in float32
ITEM_CHUNK = 1 << 16  # vectors scored at once


@dataclass(frozen=True)
class Hits:
    """The results of Q queries, best first. ids [Q, K] int64 item positions, scores [Q, K] float32.

    Where fewer than K items could be returned, the rest of the row is id -1 with score -inf.
    """

    ids: Tensor
    scores: Tensor

    @property
    def counts(self) -> Tensor:
        """Results of each query, [Q] int64, at most K."""
        return (self.ids >= 0).sum(1)

    def to_pandas(self) -> "pd.DataFrame":
        """One row per result, without padding: query, rank (from 1), id (item position), score."""
        import pandas as pd

        query, rank = (self.ids >= 0).nonzero().unbind(1)
        columns = {"query": query, "rank": rank + 1, "id": self.ids[query, rank], "score": self.scores[query, rank]}
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


class Index(ABC):
    """Vectors of items to be searched. A subclass names its `kind` and gives `_search`, `_tensors` and `_from_tensors`.

    `recsys.laws.index` states what every index keeps.
    """

    kind: ClassVar[str]

    def __init__(self, embedding_dim: int, num_positions: int):
        self.embedding_dim = embedding_dim
        self.num_positions = num_positions

    @abstractmethod
    def __len__(self) -> int:
        """n, the vectors held."""

    @abstractmethod
    def _search(self, queries: Tensor, k: int, rows: Tensor | None) -> Hits:
        """Checked queries [Q, M, D] float32; rows: the allowed row numbers, rising, or None for all."""

    @abstractmethod
    def _rows(self, allowed: Tensor) -> Tensor:
        """The row numbers, rising, whose positions the bitmap [P] allows."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """All that is saved."""

    @classmethod
    @abstractmethod
    def _from_tensors(cls, tensors: dict[str, Tensor], num_positions: int) -> Self:
        """The inverse of `_tensors`; checked tensors, which may be mapped."""

    def search(self, queries: Tensor, k: int, allowed: Tensor | None = None) -> Hits:
        """The k best of the allowed items for each query: sorted by score, unique, equal scores by rising position.

        queries: [Q, D], or [Q, M, D] where the best of M vectors counts. allowed: bool [P], None for every item.
        Raises ValueError, naming what came, for k < 1, NaN or infinite queries, a wrong dimension or bitmap.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries = self._checked_queries(queries)
        rows = None if allowed is None else self._rows(self._checked_allowed(allowed))
        found = len(self) if rows is None else len(rows)
        hits = self._search(queries, min(k, found), rows) if found else Hits(*_padding(len(queries), 0))
        return _padded(hits, k)

    def save(self, folder: Path | str) -> None:
        """Write one safetensors file into `folder`, which is made when it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"kind": self.kind, "format": FORMAT, "num_positions": str(self.num_positions)}
        storage.write_bytes(folder / FILE, save(self._tensors(), metadata=metadata))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The index saved in `folder`, its vectors mapped, not read. Raises ValueError naming the file."""
        path = Path(folder) / FILE
        metadata = read_metadata(path)
        if metadata.get("kind") != cls.kind or metadata.get("format") != FORMAT:
            raise ValueError(f"{path} holds {metadata}; {cls.__name__} reads kind {cls.kind!r}, format {FORMAT}")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls._from_tensors(tensors, int(metadata["num_positions"]))

    def _checked_queries(self, queries: Tensor) -> Tensor:
        if queries.dim() not in (2, 3) or queries.shape[-1] != self.embedding_dim:
            accepted = f"[Q, {self.embedding_dim}] or [Q, M, {self.embedding_dim}]"
            raise ValueError(f"queries must be {accepted}, got {list(queries.shape)}")
        if not queries.is_floating_point():
            raise ValueError(f"queries must be floating point, got {queries.dtype}")
        bad = (~queries.isfinite()).nonzero()
        if len(bad):
            raise ValueError(f"queries must be finite; query {int(bad[0, 0])} holds NaN or infinity")
        if queries.dim() == 3 and queries.shape[1] == 0:
            raise ValueError("queries [Q, M, D] need at least one vector each, got M = 0")
        return queries.float() if queries.dim() == 3 else queries.float()[:, None]

    def _checked_allowed(self, allowed: Tensor) -> Tensor:
        if allowed.dtype != torch.bool or list(allowed.shape) != [self.num_positions]:
            came = f"{allowed.dtype} {list(allowed.shape)}"
            raise ValueError(f"allowed must be a bool bitmap [{self.num_positions}], one per item, got {came}")
        return allowed


class ExactIndex(Index):
    """Scores every allowed vector: the definition that other indexes are measured against.

    vectors: [n, D] floating point, kept as float32. positions: int64 [n] unique, the item position of each vector
    (default 0..n - 1). num_positions: P, the length of `allowed` (default: the largest position + 1).
    Memory beside the vectors: at most `MAX_CELLS` scores and, with `allowed`, `ITEM_CHUNK` gathered vectors.

    Example: `ExactIndex(item_vectors).search(user_vectors, k=10).ids` is [Q, 10].
    """

    kind = "exact"

    def __init__(self, vectors: Tensor, positions: Tensor | None = None, *, num_positions: int | None = None):
        _check_vectors(vectors)
        positions = torch.arange(len(vectors)) if positions is None else positions
        highest = _check_positions(positions, len(vectors))
        num_positions = highest + 1 if num_positions is None else num_positions
        if num_positions <= highest:
            raise ValueError(f"num_positions is {num_positions}, but position {highest} is in the index")
        super().__init__(vectors.shape[1], num_positions)
        if bool((positions.diff() < 0).any()):
            positions, order = positions.sort()  # rows in the order of positions: the lowest row is the lowest position
            vectors = vectors[order]
        self.vectors = vectors.float().contiguous()  # [n, D]
        self.positions = positions  # [n]

    def __len__(self) -> int:
        return len(self.vectors)

    def _rows(self, allowed: Tensor) -> Tensor:
        return allowed[self.positions].nonzero()[:, 0]

    def _search(self, queries: Tensor, k: int, rows: Tensor | None) -> Hits:
        step = max(1, MAX_CELLS // (queries.shape[1] * min(ITEM_CHUNK, len(self))))
        parts = [self._search_some(chunk, k, rows) for chunk in queries.split(step)]
        scores, found = (torch.cat(column) for column in zip(*parts, strict=True))
        return Hits(self.positions[found], scores)

    def _search_some(self, queries: Tensor, k: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """(scores, row numbers) of the best of each chunk of items, merged as they come; earlier rows win ties."""
        best_scores, best_rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for numbers, vectors in self._chunks(rows):
            scores, columns = top_k(_scores(queries, vectors), k)
            best_scores = torch.cat([best_scores, scores], dim=1)
            best_rows = torch.cat([best_rows, numbers[columns]], dim=1)
            best_scores, columns = top_k(best_scores, k)
            best_rows = best_rows.gather(1, columns)
        return best_scores, best_rows

    def _chunks(self, rows: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(row numbers, their vectors); allowed ones are gathered, which beats scanning a bitmap at any selectivity."""
        if rows is not None and len(rows) < len(self):
            yield from ((numbers, self.vectors[numbers]) for numbers in rows.split(ITEM_CHUNK))
            return
        for start in range(0, len(self), ITEM_CHUNK):
            vectors = self.vectors[start : start + ITEM_CHUNK]
            yield torch.arange(start, start + len(vectors)), vectors

    def _tensors(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "positions": self.positions}

    @classmethod
    def _from_tensors(cls, tensors: dict[str, Tensor], num_positions: int) -> Self:
        return cls(tensors["vectors"], tensors["positions"], num_positions=num_positions)


def read_metadata(path: Path) -> dict[str, str]:
    """The kind and format that an index file states. Raises ValueError when it is missing or no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable index file: {error}") from None


def _scores(queries: Tensor, vectors: Tensor) -> Tensor:
    """[Q, M, D] and [n, D] -> [Q, n], the best of M inner products."""
    products = queries.flatten(0, 1) @ vectors.T  # [Q * M, n]
    return products if queries.shape[1] == 1 else products.view(*queries.shape[:2], -1).amax(1)


def _padding(num_queries: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.full((num_queries, k), -1), torch.full((num_queries, k), float("-inf"))


def _padded(hits: Hits, k: int) -> Hits:
    """The hits, filled to k columns."""
    ids, scores = _padding(len(hits.ids), k - hits.ids.shape[1])
    return Hits(torch.cat([hits.ids, ids], dim=1), torch.cat([hits.scores, scores], dim=1))


def _check_vectors(vectors: Tensor) -> None:
    if vectors.dim() != 2 or vectors.shape[1] == 0 or not vectors.is_floating_point():
        raise ValueError(f"vectors must be floating point [n, D], got {vectors.dtype} {list(vectors.shape)}")
    bad = (~vectors.isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(f"vectors must be finite; row {int(bad[0])} holds NaN or infinity")


def _check_positions(positions: Tensor, num_vectors: int) -> int:
    """The highest position, -1 when there is none."""
    if positions.dtype != torch.int64 or list(positions.shape) != [num_vectors]:
        raise ValueError(f"positions must be int64 [{num_vectors}], got {positions.dtype} {list(positions.shape)}")
    if num_vectors == 0:
        return -1
    unique, counts = positions.unique(return_counts=True)
    if int(unique[0]) < 0:
        raise ValueError(f"positions must be at least 0, got {int(unique[0])}")
    if len(unique) < num_vectors:
        raise ValueError(f"positions must be unique, {int(unique[counts > 1][0])} stands twice")
    return int(unique[-1])

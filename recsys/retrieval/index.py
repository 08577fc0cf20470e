"""`Index`: the k items whose vectors score highest. `Hits`: what a search returns. `ExactIndex`: the oracle.

A score is the inner product, for a user of several vectors the largest of them. Items are **positions** in the item
table, never raw ids and never vocabulary rows. What is allowed comes as one bitmap for the whole call; a user's seen
items are not an index's business: the caller asks for more and drops them.

Shapes: Q queries, M vectors of a query, D embedding_dim, n vectors in the index, P positions of the catalogue, K = k.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from features import storage
from recsys.retrieval.topk import top_k

if TYPE_CHECKING:
    import pandas as pd

FILE = "index.safetensors"
FORMAT = 1
MAX_CELLS = 1 << 24  # scores held at once: 64 MiB in float32
ITEM_CHUNK = 1 << 16  # vectors scored at once
GATHERED_SHARE = 0.15  # below it, gathering the allowed vectors is faster than scoring all


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

    positions [n] int64, rising: the item of each vector; the vectors are rows 0..n - 1 in this order. num_positions: P,
    the length of `allowed`. `recsys.laws.index` states what every index keeps.
    """

    kind: ClassVar[str]

    def __init__(self, embedding_dim: int, positions: Tensor, num_positions: int) -> None:
        self.embedding_dim = embedding_dim
        self.positions = positions
        self.num_positions = num_positions

    def __len__(self) -> int:
        """The number of vectors, n."""
        return len(self.positions)

    @abstractmethod
    def _search(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores [Q, K] and rows [Q, K], best first; a row of -1 (score -inf) is padding.

        queries [Q, M, D] are checked. allowed: bool [n], by row, or None. k is at most the number of allowed rows.
        """

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """All that is saved."""

    @classmethod
    @abstractmethod
    def _from_tensors(cls, tensors: dict[str, Tensor], num_positions: int) -> Self:
        """The inverse of `_tensors`; the tensors may be mapped. Raises KeyError for one that is missing."""

    def search(self, queries: Tensor, k: int, allowed: Tensor | None = None) -> Hits:
        """The k best of the allowed items for each query: sorted by score, unique, equal scores by rising position.

        queries: [Q, D], or [Q, M, D] where the best of M vectors counts. allowed: bool [P], None for every item.
        Raises ValueError, naming what came, for k < 1, NaN or infinite queries, a wrong dimension or bitmap.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        queries = self._checked_queries(queries)
        mask = None if allowed is None else self._of_rows(allowed)
        k_found = min(k, len(self) if mask is None else int(mask.sum()))
        ids, scores = _padding(len(queries), k)
        if k_found and len(queries):
            found_scores, rows = self._search(queries, k_found, mask)
            scores[:, :k_found] = found_scores
            ids[:, :k_found] = self.positions[rows].where(rows >= 0, -1)
        return Hits(ids, scores)

    def save(self, folder: Path | str) -> None:
        """Write one safetensors file into `folder`, which is made when it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"format": FORMAT, "kind": self.kind, "num_positions": self.num_positions})
        metadata = {"index": about}  # one key: safetensors writes several in no fixed order
        storage.write_bytes(folder / FILE, save(self._tensors(), metadata=metadata))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The index saved in `folder`, its vectors mapped, not read. Raises ValueError naming the file."""
        path = Path(folder) / FILE
        about = read_about(path)
        if about.get("kind") != cls.kind or about.get("format") != FORMAT:
            raise ValueError(f"{path} holds {about}; {cls.__name__} reads kind {cls.kind!r}, format {FORMAT}")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        try:
            return cls._from_tensors(tensors, int(about["num_positions"]))
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}; it is no index of kind {cls.kind!r}") from None

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

    def _of_rows(self, allowed: Tensor) -> Tensor:
        """A bitmap over positions [P] as one over rows [n]."""
        if allowed.dtype != torch.bool or list(allowed.shape) != [self.num_positions]:
            came = f"{allowed.dtype} {list(allowed.shape)}"
            raise ValueError(f"allowed must be a bool bitmap [{self.num_positions}], one per item, got {came}")
        return allowed if len(self) == self.num_positions else allowed[self.positions]


class ExactIndex(Index):
    """Scores every allowed vector: the definition that other indexes are measured against.

    vectors: [n, D] floating point, kept as float32. positions: int64 [n] unique, the item position of each vector
    (default 0..n - 1). num_positions: the length of `allowed` (default: the largest position + 1).
    Memory beside the vectors: at most `MAX_CELLS` scores, and `ITEM_CHUNK` vectors when few are allowed.

    Example: `ExactIndex(item_vectors).search(user_vectors, k=10).ids` is [Q, 10].
    """

    kind = "exact"

    def __init__(self, vectors: Tensor, positions: Tensor | None = None, *, num_positions: int | None = None) -> None:
        _check_vectors(vectors)
        positions = torch.arange(len(vectors)) if positions is None else positions
        highest = _check_positions(positions, len(vectors))
        num_positions = highest + 1 if num_positions is None else num_positions
        if num_positions <= highest:
            raise ValueError(f"num_positions is {num_positions}, but position {highest} is in the index")
        if bool((positions.diff() < 0).any()):
            positions, order = positions.sort()
            vectors = vectors[order]
        super().__init__(vectors.shape[1], positions, num_positions)
        self.vectors = vectors.float().contiguous()  # [n, D]

    def _search(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        step = max(1, MAX_CELLS // (queries.shape[1] * min(ITEM_CHUNK, len(self))))
        parts = [self._search_some(chunk, k, allowed) for chunk in queries.split(step)]
        return torch.cat([scores for scores, _ in parts]), torch.cat([rows for _, rows in parts])

    def _search_some(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best of each chunk of items, merged as they come; earlier rows win ties."""
        best_scores, best_rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for rows, scores in self._chunks(queries, allowed):
            scores, columns = top_k(scores, k)
            best_scores = torch.cat([best_scores, scores], dim=1)
            best_rows = torch.cat([best_rows, rows[columns]], dim=1)
            best_scores, columns = top_k(best_scores, k)
            best_rows = best_rows.gather(1, columns)
        return best_scores, best_rows

    def _chunks(self, queries: Tensor, allowed: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, their scores [Q, rows]): few allowed vectors are gathered, else all are scored and some masked."""
        if allowed is not None and int(allowed.sum()) < GATHERED_SHARE * len(self):
            for rows in allowed.nonzero()[:, 0].split(ITEM_CHUNK):
                yield rows, _scores(queries, self.vectors[rows])
            return
        for rows in torch.arange(len(self)).split(ITEM_CHUNK):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            scores = _scores(queries, self.vectors[here])
            yield rows, scores if allowed is None else scores.masked_fill_(~allowed[here], float("-inf"))

    def _tensors(self) -> dict[str, Tensor]:
        return {"vectors": self.vectors, "positions": self.positions}

    @classmethod
    def _from_tensors(cls, tensors: dict[str, Tensor], num_positions: int) -> Self:
        return cls(tensors["vectors"], tensors["positions"], num_positions=num_positions)


def read_about(path: Path) -> dict[str, Any]:
    """What an index file states: kind, format, num_positions. Raises ValueError when it is no index file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {})["index"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a readable index file: {error}") from None


def _scores(queries: Tensor, vectors: Tensor) -> Tensor:
    """[Q, M, D] and [n, D] -> [Q, n], the best of M inner products."""
    products = queries.flatten(0, 1) @ vectors.T  # [Q * M, n]
    return products if queries.shape[1] == 1 else products.view(*queries.shape[:2], -1).amax(1)


def _padding(num_queries: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.full((num_queries, k), -1), torch.full((num_queries, k), float("-inf"))


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

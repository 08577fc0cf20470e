"""AdaptEmb: `AdaptTable`, own rows for the frequent ids, hashed rows that all others share (under that name in Zhang et
al., "Experimental Analysis of Large-scale Learnable Vector Storage Compression", VLDB 2024).

    row(t, x) = start_t + rank of x among the hot ids of t         if x is one of them
                h + mix64(x + salt(t)) mod m                       otherwise
    vector(t, x) = E[row(t, x)]                E: [h + m, D], rows 0..h-1 own, h..h+m-1 shared

Hot are the h ids with the most occurrences in the train split, of all vocabularies t together: every city may be hot
while most users are not. Of equally frequent ids the one whose vocabulary's name is first, then the smaller.

Shapes: N flat ids, n_t ids of a vocabulary, h_t hot ones, m shared rows, D width.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from features.hashes import mix64
from recsys.compression.budgeted import BudgetedTable
from recsys.embedding.budget import solve
from recsys.embedding.dense import DenseTable
from recsys.embedding.precision import row_bytes
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader
from recsys.embedding.unified import SALT_BYTES, HashedChunks, salt_of

INT32_IDS = 2**31


class AdaptTable(BudgetedTable):
    """One store, named as the specification, of as many rows as the budget pays for; `shared` of them are shared.

    budget: "158kB", or "10%" of what float32 rows for every id would take; where it pays for all rows, all have them.
    shared: a share of the rows, rounded up. The published knob is the share of own rows, which must stay below the
    budget's; a fifth for the rest is our choice. Every vocabulary must have been counted in the train split.

    Memory: (h + m) x row_bytes(D, precision) + 4 h for the sorted lists of hot ids (8 h where a vocabulary has more
    than 2^31) + 8 a vocabulary for its salt. The published code counts the rows alone but serves an integer for every
    id, n x 4 bytes: at 1 % of 16 floats that is six times the budget. It also keeps two tables and relies on lookups
    out of range that give zeros; here an id reads one row of one store, and no negative number stands for the rest.

        AdaptTable(embedding_dim=16, budget="10%", shared=0.2)
    """

    shared: float = Field(default=0.2, gt=0, lt=1)

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader; ValueError for a budget below one row, and where ids were not counted."""
        most, full = self.max_bytes(name, readers), sum(self.full_bytes(name, reader) for reader in readers)
        if most >= full:
            dense = DenseTable(embedding_dim=self.embedding_dim, init=self.init, precision=self.precision)
            return dense.build(name, readers, seed)
        num_rows = self._num_rows(name, readers, most, full)
        own = self._num_own(num_rows)
        hot = frequent_ids(_counts(name, readers), own)
        store = Store(
            name=name,
            num_embeddings=num_rows,
            embedding_dim=self.embedding_dim,
            init=self.init,
            precision=self.precision,
        )
        tables: dict[str, EmbeddingTable] = {}
        start = 0
        for reader in sorted(readers, key=lambda reader: reader.name):
            tables[reader.name] = _table(reader, store, hot[reader.name], (start, own), seed)
            start += len(hot[reader.name])
        return tables

    def _num_own(self, rows: int) -> int:
        return rows - ceil(self.shared * rows)

    def _num_rows(self, name: str, readers: Sequence[Reader], most: int, full: int) -> int:
        """Own and shared rows, as many as fit."""
        sizes = [reader.num_embeddings or 0 for reader in readers]
        listed = id_type(max(sizes)).itemsize

        def size(rows: int) -> int:
            rows_bytes = rows * row_bytes(self.embedding_dim, self.precision)
            return rows_bytes + listed * self._num_own(rows) + SALT_BYTES * len(readers)

        what = f"table {name!r}: budget {self.budget}"
        if full < size(1):
            raise ValueError(f"{what} is too small, the minimum is {full}B")
        return solve(size, most, range(1, sum(sizes) + 1), what)


class OwnOrShared(EmbeddingTable):
    """The i-th hot id reads row start + i of the store; all others share its last rows, by a hash.

    hot: [h_t] rising ids, at least one. rows: start, and the first shared row. The list is served, and an id is found
    in it by bisection, log2(h_t) steps.
    """

    hot: Tensor
    salt: Tensor

    def __init__(
        self, name: str, store: Store, hot: Tensor, rows: tuple[int, int], salt: int, num_embeddings: int
    ) -> None:
        super().__init__(name, [store], store.embedding_dim, num_embeddings)
        self.store = store.name
        self.start, self.first_shared = rows
        self.num_shared = store.num_embeddings - self.first_shared
        self.register_buffer("hot", hot.to(id_type(num_embeddings)))
        self.register_buffer("salt", torch.tensor([salt]))

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """One row per id."""
        wanted = ids.to(self.hot.dtype).contiguous()
        places = torch.searchsorted(self.hot, wanted).clamp_(max=len(self.hot) - 1)
        shared = mix64(ids + self.salt, salt=0).remainder_(self.num_shared).add_(self.first_shared)
        rows = torch.where(self.hot[places] == wanted, places + self.start, shared)
        return {self.store: rows.unsqueeze(1)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The one vector of each id."""
        return vectors[self.store].squeeze(1)  # [N, D]

    def settings(self) -> dict[str, Any]:
        """All that it is made of but the hot ids and the salt, which are buffers."""
        return {
            "name": self.name,
            "store": self.store,
            "num_hot": len(self.hot),
            "rows": [self.start, self.first_shared],
            "num_embeddings": self.num_embeddings,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its hot ids and its salt to be loaded."""
        start, first_shared = settings["rows"]
        hot, n = torch.arange(settings["num_hot"]), settings["num_embeddings"]
        return cls(settings["name"], stores[settings["store"]], hot, (start, first_shared), 0, n)


def id_type(num_embeddings: int) -> torch.dtype:
    """The smaller integer that holds every id."""
    return torch.int32 if num_embeddings <= INT32_IDS else torch.int64


def frequent_ids(counts: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` ids with the largest counts [n_t] of all, by the vocabulary's name: rising, [h_t] int64."""
    names = sorted(counts)
    everything = torch.cat([counts[name] for name in names])
    chosen = torch.zeros(len(everything), dtype=torch.bool)
    chosen[everything.argsort(descending=True, stable=True)[:count]] = True
    parts = chosen.split([len(counts[name]) for name in names])
    return {name: part.nonzero().flatten() for name, part in zip(names, parts, strict=True)}


def _counts(table: str, readers: Sequence[Reader]) -> dict[str, Tensor]:
    found = {reader.name: reader.counts for reader in readers if reader.counts is not None}
    for name in sorted({reader.name for reader in readers} - set(found)):
        raise ValueError(
            f"table {table!r} (adapt) needs to know how often the ids of {name!r} occur: give the collection an "
            "Encoder made from counts of the train split (`Encoder.from_counts`), or take method 'hash'"
        )
    return found


def _table(reader: Reader, store: Store, hot: Tensor, rows: tuple[int, int], seed: int) -> EmbeddingTable:
    """A plain hash into the shared rows where no id is hot."""
    salt, n = salt_of(reader.salt, 0, seed), reader.num_embeddings or 0
    if len(hot):
        return OwnOrShared(reader.salt, store, hot, rows, salt, n)
    return HashedChunks(reader.salt, store, [salt], (rows[1], store.num_embeddings - rows[1]), n)

"""Unified Embedding, or feature multiplexing: one store for all features (Coleman et al. 2023, arXiv 2305.12102).

    row(t, j, x) = mix64(x + salt(t, j)) mod M          t the reader, j one of its k_t chunks, x the id
    vector(t, x) = [ E[row(t, 0, x)], ..., E[row(t, k_t - 1, x)] ]          E: [M, d], width k_t d

Different readers that meet in a row are told apart by the model, which can make their directions orthogonal; different
ids of one reader that meet are not, and for those more chunks help: two ids are equal only if they meet in every chunk.

What differs from the paper's text: salts are hashes of names (vocabulary or feature, and chunk), never positions, so
that adding or reordering features leaves every row where it was; a salt is a 64-bit hash added to the id modulo 2^64.
`multiplexed=False` is the twin to compare with: the same bytes, chunks and hash, but each reader in its own slice of
M_t = max(1, round(M n_t / sum n)) rows.
Memory: M x row_bytes(chunk_dim, precision), 4 M chunk_dim in float32, whatever the number of features, and 8 bytes for
the salt of every chunk: a state that is loaded brings its salts along.

Shapes: N flat ids, k chunks of a reader, d chunk_dim, M rows of the store.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from features.hashes import hash64, mix64
from recsys.embedding.budget import Budget, budget_bytes
from recsys.embedding.precision import row_bytes
from recsys.embedding.store import Init, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, TableSpec, known_num_embeddings

SALT_BYTES = 8


class UnifiedTable(TableSpec):
    """One store, named as the specification, for every feature that names it.

    Give its size as `num_embeddings` (M) or as `budget`: "25MiB", "158kB", or "10%" of the bytes that collisionless
    tables of the same widths would take. chunks: so many for every feature, instead of what the schema says for each.
    multiplexed: False gives each vocabulary its own slice of the rows. The collection's seed changes all salts.

        UnifiedTable(budget="158kB", chunk_dim=10, chunks=3, precision="int4")
    """

    budget: Budget | None = None
    num_embeddings: int | None = Field(default=None, ge=1)
    chunk_dim: int = Field(default=16, ge=1)
    chunks: int | None = Field(default=None, ge=1)
    multiplexed: bool = True
    init: Init = Uniform()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.budget is None) == (self.num_embeddings is None):
            raise ValueError("a unified table takes exactly one of budget and num_embeddings")
        return self

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader, all over the store `name`; ValueError when the budget is below one row per slice."""
        total = self._total_rows(name, readers)
        slices = {reader.name: (0, total) for reader in readers}
        if not self.multiplexed:
            slices = slice_rows(
                {reader.name: known_num_embeddings(name, "unified", reader) for reader in readers}, total
            )
        store = Store(
            name=name,
            num_embeddings=total,
            embedding_dim=self.chunk_dim,
            init=self.init,
            precision=self.precision,
        )
        return {
            reader.name: HashedChunks(
                reader.salt, store, self._salts(reader, seed), slices[reader.name], reader.num_embeddings
            )
            for reader in readers
        }

    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int:
        """The budget, or the bytes of M rows."""
        if self.num_embeddings is not None:
            return self.num_embeddings * row_bytes(self.chunk_dim, self.precision) + self._salt_bytes(readers)
        widths = {reader: self._chunks(reader) * self.chunk_dim for reader in readers}
        return budget_bytes(self.budget or "", name, widths)

    def _total_rows(self, name: str, readers: Sequence[Reader]) -> int:
        """M: the most rows that fit."""
        minimum = 1 if self.multiplexed else len(readers)
        one, salts = row_bytes(self.chunk_dim, self.precision), self._salt_bytes(readers)
        rows = (self.max_bytes(name, readers) - salts) // one
        if rows < minimum:
            given = self.budget or f"num_embeddings = {self.num_embeddings}"
            raise ValueError(
                f"table {name!r}: {given} is too small, the minimum is {minimum * one + salts}B: "
                f"{minimum} rows of {self.chunk_dim} values in {self.precision}, and the salts"
            )
        return rows

    def _salt_bytes(self, readers: Sequence[Reader]) -> int:
        return SALT_BYTES * sum(self._chunks(reader) for reader in readers)

    def _chunks(self, reader: Reader) -> int:
        return self.chunks or reader.chunks

    def _salts(self, reader: Reader, seed: int) -> list[int]:
        return [salt_of(reader.salt, chunk, seed) for chunk in range(self._chunks(reader))]


class HashedChunks(EmbeddingTable):
    """The chunks of one reader, side by side, out of rows [start, start + count) of a store; any int64 is an id."""

    salts: Tensor

    def __init__(
        self, name: str, store: Store, salts: Sequence[int], rows: tuple[int, int], num_embeddings: int | None
    ) -> None:
        super().__init__(name, [store], len(salts) * store.embedding_dim, num_embeddings)
        self.store = store.name
        self.start, self.count = rows
        self.register_buffer("salts", torch.tensor(salts, dtype=torch.int64))

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """One row per chunk."""
        rows = mix64(ids.unsqueeze(1) + self.salts, salt=0).remainder_(self.count)  # [N, k]
        return {self.store: rows.add_(self.start) if self.start else rows}

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The chunks of each id, concatenated in their order."""
        return vectors[self.store].flatten(1)  # [N, k d]

    def settings(self) -> dict[str, Any]:
        """All that it is made of but the salts, which are a buffer."""
        return {
            "name": self.name,
            "store": self.store,
            "chunks": len(self.salts),
            "rows": [self.start, self.count],
            "num_embeddings": self.num_embeddings,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table."""
        start, count = settings["rows"]
        store = stores[settings["store"]]
        salts = [0] * settings["chunks"]
        return cls(settings["name"], store, salts, (start, count), settings["num_embeddings"])


def salt_of(name: str, part: int, seed: int) -> int:
    """What is added to an id before `mix64`: a 64-bit hash of who reads, its chunk or probe, and the seed."""
    return hash64(f"{name}#{part}", salt=f"salt#{seed}")


def slice_rows(num_embeddings: Mapping[str, int], total: int) -> dict[str, tuple[int, int]]:
    """(start, count) of each reader's slice: proportional to its ids, at least one row, together at most `total`.

    Where rounding gives too many, the largest slices lose a row each. Slices lie in the order of the names.
    """
    everything = sum(num_embeddings.values())
    counts = {name: max(1, round(total * num_embeddings[name] / everything)) for name in sorted(num_embeddings)}
    while sum(counts.values()) > total:
        counts[max(counts, key=lambda name: counts[name])] -= 1
    slices: dict[str, tuple[int, int]] = {}
    start = 0
    for name, count in counts.items():
        slices[name] = (start, count)
        start += count
    return slices

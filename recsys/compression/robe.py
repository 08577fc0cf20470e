"""ROBE: `RobeTable`, one array of floats for all features, of which an id reads a few hashed blocks (Desai et al. 2022,
"Random Offset Block Embedding Array (ROBE) for CriteoTB Benchmark MLPerf DLRM Model", arXiv 2108.02191).

    row(t, j, x)  = mix64(x + salt(t, j)) mod m             t the reader, j < k its chunks, x the id
    sign(t, j, x) = +1 or -1, the sign of a(t, j) x + salt(t, j), wrapped to 64 bits
    vector(t, x)  = [ sign(t, 0, x) E[row(t, 0, x)], ..., sign(t, k - 1, x) E[row(t, k - 1, x)] ]     E: [m, D / k]

The signs make it a sketch: what others wrote into a row is added with random signs and is zero on average, so inner
products of vectors are unbiased. Without them it is `UnifiedTable`. The hash of the signs is strongly universal
(Dietzfelbinger 1996: any two ids get independent signs), which is all that this needs.

What differs from the paper: there a block may start at any float of the array, h(t, j, x) mod M; here blocks are
aligned, rows of a store, so that one lookup serves and shards them. Both take M = m D / k floats, both are unbiased,
and of two vectors equally many pairs of floats meet on average; but unaligned blocks overlap by parts and often,
aligned ones wholly or not at all, and column i of a block only ever meets column i of others.

Shapes: N flat ids, k chunks, m rows of the store, D width of a vector.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from features.hashes import hash64
from recsys.compression.budgeted import BudgetedTable
from recsys.embedding.precision import row_bytes
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader
from recsys.embedding.unified import HashedChunks, salt_of

HASH_BYTES = 16  # per chunk of a reader: its salt and its factor


class RobeTable(BudgetedTable):
    """One store, named as the specification, for every feature that names it; every vector is embedding_dim wide.

    budget: "25MiB", "158kB", or "10%" of the bytes that collisionless float32 tables would take. num_chunks: blocks of
    a vector, embedding_dim / num_chunks floats each. (The paper's Z is that block length; in the published benchmark's
    code Z is the number of chunks.) One chunk is a hashing trick with signs: ids that meet are equal or opposite.
    A feature's own `chunks` are not read. Memory: m x row_bytes(D / num_chunks, precision) + 16 bytes per
    chunk of each vocabulary, its salt and its factor.

        RobeTable(embedding_dim=16, budget="10%", num_chunks=4)
    """

    num_chunks: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _even_chunks(self) -> Self:
        if self.embedding_dim % self.num_chunks:
            accepted = [count for count in range(1, self.embedding_dim + 1) if self.embedding_dim % count == 0]
            raise ValueError(
                f"num_chunks {self.num_chunks} must divide embedding_dim {self.embedding_dim}, as do {accepted}"
            )
        return self

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader, all over the store `name`; ValueError when the budget is below one row."""
        width = self.embedding_dim // self.num_chunks
        one, hashes = row_bytes(width, self.precision), HASH_BYTES * self.num_chunks * len(readers)
        rows = (self.max_bytes(name, readers) - hashes) // one
        if rows < 1:
            raise ValueError(f"table {name!r}: budget {self.budget} is too small, the minimum is {one + hashes}B")
        store = Store(name=name, num_embeddings=rows, embedding_dim=width, init=self.init, precision=self.precision)
        return {reader.name: self._table(store, reader, seed) for reader in readers}

    def _table(self, store: Store, reader: Reader, seed: int) -> EmbeddingTable:
        chunks = range(self.num_chunks)
        salts = [salt_of(reader.salt, chunk, seed) for chunk in chunks]
        factors = [hash64(f"{reader.salt}#{chunk}", salt=f"sign#{seed}") for chunk in chunks]
        return SignedChunks(reader.salt, store, salts, factors, reader.num_embeddings)


class SignedChunks(HashedChunks):
    """Hashed chunks of a whole store, each times a hashed sign; any int64 is an id."""

    factors: Tensor

    def __init__(
        self, name: str, store: Store, salts: Sequence[int], factors: Sequence[int], num_embeddings: int | None
    ) -> None:
        super().__init__(name, store, salts, (0, store.num_embeddings), num_embeddings)
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.int64))

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The chunks of each id with their signs, concatenated in their order."""
        chunks = vectors[self.store]
        return (chunks * self.signs(ids).unsqueeze(2).to(chunks.dtype)).flatten(1)  # [N, D]

    def signs(self, ids: Tensor) -> Tensor:
        """+1 or -1 per id and chunk, [N, k] float32."""
        hashed = torch.addcmul(self.salts, ids.unsqueeze(1), self.factors)
        return torch.copysign(torch.ones((), device=ids.device), hashed)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its hashes to be loaded."""
        unset = [0] * settings["chunks"]
        return cls(settings["name"], stores[settings["store"]], unset, unset, settings["num_embeddings"])

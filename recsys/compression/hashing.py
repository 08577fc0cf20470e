"""Fewer rows than ids: `HashTable`, the hashing trick (Weinberger et al. 2009), the simplest of all compressions.

    row(x) = mix64(x + salt) mod m          vector(x) = E[row(x)]          E: [m, D], m < n

Ids that meet in a row are one id to the model. `UnifiedTable` is the answer to that: it shares rows between features,
which a model can tell apart, and gives an id several.

Shapes: N flat ids, n ids of a vocabulary, m rows, D width.
"""

from recsys.compression.budgeted import DealtTable
from recsys.embedding.precision import row_bytes
from recsys.embedding.table import EmbeddingTable, Reader
from recsys.embedding.unified import SALT_BYTES, HashedChunks, salt_of


class HashTable(DealtTable):
    """m = the rows that a vocabulary's share of the budget pays for, at least one; a hash spreads the ids over them.

    Memory: m x row_bytes(D, precision), and 8 bytes for the salt. The published benchmark takes `id mod m`, which keeps
    neighbours in a sorted vocabulary apart; a hash assumes nothing of their order, and two seeds collide otherwise.

        HashTable(embedding_dim=16, budget="10%")
    """

    def least_bytes(self, num_embeddings: int) -> int:
        """One row and its salt."""
        return row_bytes(self.embedding_dim, self.precision) + SALT_BYTES

    def compressed(self, name: str, reader: Reader, most: int, seed: int) -> EmbeddingTable:
        """A single chunk over a store of the reader's own."""
        rows = (most - SALT_BYTES) // row_bytes(self.embedding_dim, self.precision)
        store = self.store(name, reader, rows)
        return HashedChunks(reader.salt, store, [salt_of(reader.salt, 0, seed)], (0, rows), reader.num_embeddings)

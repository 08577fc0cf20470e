"""The table without compression, one row per id: what every other method is measured against.

Shapes: N flat ids, D width of a vector.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field
from torch import Tensor

from recsys.embedding.store import Init, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, TableSpec, known_num_embeddings


class DenseTable(TableSpec):
    """One row per id: no collision, no compression but for `precision`. One store "<specification>.<vocabulary>" each.

    Every vector is embedding_dim wide; a feature's `chunks` concern multiplexed tables and change nothing here, so that
    one schema serves both. Memory: sum of num_embeddings x row_bytes(embedding_dim, precision).

        DenseTable(embedding_dim=16, init=Normal(std=0.01), precision="int4")
    """

    embedding_dim: int = Field(ge=1)
    init: Init = Uniform()

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table over a store of its own per reader; every reader must know its number of ids."""
        return {reader.name: self._table(name, reader) for reader in readers}

    def _table(self, name: str, reader: Reader) -> "RowPerId":
        store = Store(
            name=f"{name}.{reader.name}",
            num_embeddings=known_num_embeddings(name, "dense", reader),
            embedding_dim=self.embedding_dim,
            init=self.init,
            precision=self.precision,
        )
        return RowPerId(reader.salt, store)


class RowPerId(EmbeddingTable):
    """The row of an id is the id: the vector of id i is row i of its store."""

    def __init__(self, name: str, store: Store) -> None:
        super().__init__(name, [store], store.embedding_dim, store.num_embeddings)
        self.store = store.name

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids, one access each."""
        return {self.store: ids.unsqueeze(1)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The one vector of each id."""
        return vectors[self.store].squeeze(1)  # [N, D]

    def settings(self) -> dict[str, Any]:
        """Its name and its store."""
        return {"name": self.name, "store": self.store}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table."""
        return cls(settings["name"], stores[settings["store"]])

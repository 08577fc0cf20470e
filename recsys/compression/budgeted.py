"""What methods share whose size is a budget, and what those share that deal it to the vocabularies, one by one.

A budget is dealt in proportion to the bytes that the vocabularies take without compression (`recsys.embedding.budget`).
A vocabulary whose share is enough for all its rows gets them: it is compressed only if that makes it smaller.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import Field

from recsys.embedding.budget import Budget, budget_bytes, share
from recsys.embedding.dense import RowPerId
from recsys.embedding.precision import row_bytes
from recsys.embedding.store import Init, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, TableSpec, known_num_embeddings


class BudgetedTable(TableSpec, ABC):
    """A method whose tables follow from `budget`: "158kB", or "10%" of what float32 rows for every id would take.

    embedding_dim: D of every vector. init: initial values of the rows, as the method reads them.
    """

    embedding_dim: int = Field(ge=1)
    budget: Budget
    init: Init = Uniform()

    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int:
        """The budget."""
        return budget_bytes(self.budget, name, dict.fromkeys(readers, self.embedding_dim))

    def full_bytes(self, name: str, reader: Reader) -> int:
        """Served bytes of a row per id."""
        rows = known_num_embeddings(name, f"budget {self.budget}", reader)
        return rows * row_bytes(self.embedding_dim, self.precision)


class DealtTable(BudgetedTable, ABC):
    """A method that compresses each vocabulary by itself, within its share of the budget."""

    @abstractmethod
    def least_bytes(self, num_embeddings: int) -> int:
        """Served bytes of the smallest compressed table of so many ids."""

    @abstractmethod
    def compressed(self, name: str, reader: Reader, most: int, seed: int) -> EmbeddingTable:
        """The table of a reader in at most so many served bytes; its stores are made by `store`."""

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader; ValueError naming the minimum when the budget is below it."""
        shares = self._shares(name, readers)
        return {
            reader.name: self.whole(name, reader)
            if shares[reader.name] >= self.full_bytes(name, reader)
            else self.compressed(name, reader, shares[reader.name], seed)
            for reader in readers
        }

    def whole(self, name: str, reader: Reader) -> EmbeddingTable:
        """A row per id."""
        return RowPerId(reader.salt, self.store(name, reader, known_num_embeddings(name, "whole", reader)))

    def store(self, name: str, reader: Reader, num_embeddings: int, part: str = "", width: int | None = None) -> Store:
        """A store of a reader: "<specification>.<reader>", with ".<part>" where it has several."""
        return Store(
            name=f"{name}.{reader.name}.{part}" if part else f"{name}.{reader.name}",
            num_embeddings=num_embeddings,
            embedding_dim=width or self.embedding_dim,
            init=self.init,
            precision=self.precision,
        )

    def _shares(self, name: str, readers: Sequence[Reader]) -> dict[str, int]:
        sizes = {reader.name: known_num_embeddings(name, f"budget {self.budget}", reader) for reader in readers}
        full = {reader.name: self.full_bytes(name, reader) for reader in readers}
        least = {reader: min(full[reader], self.least_bytes(size)) for reader, size in sizes.items()}
        return share(self.max_bytes(name, readers), full, least, f"table {name!r}: budget {self.budget}")

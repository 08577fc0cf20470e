"""What methods with tables of their own per vocabulary share: a budget, dealt to them, and a whole table where it fits.

A budget is dealt in proportion to the bytes that the vocabularies take without compression (`recsys.embedding.budget`).
A vocabulary whose share is enough for all its rows gets them: it is compressed only if that makes it smaller.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import Field, field_validator

from recsys.embedding.budget import budget_bytes, parse_budget, share
from recsys.embedding.dense import RowPerId
from recsys.embedding.precision import row_bytes
from recsys.embedding.table import EmbeddingTable, Init, Reader, Store, TableSpec, Uniform, known_num_embeddings


class BudgetedTable(TableSpec, ABC):
    """A method whose tables follow from `budget`: "158kB", or "10%" of what float32 rows for every id would take.

    embedding_dim: D of every vector. init: initial values of the rows, as the method reads them.
    """

    embedding_dim: int = Field(ge=1)
    budget: str
    init: Init = Uniform()

    @field_validator("budget")
    @classmethod
    def _is_budget(cls, budget: str) -> str:
        parse_budget(budget)
        return budget

    @abstractmethod
    def least_bytes(self, reader: Reader) -> int:
        """The smallest compressed table of a reader, in served bytes."""

    @abstractmethod
    def compressed(self, name: str, reader: Reader, most: int, seed: int) -> EmbeddingTable:
        """The table of a reader in at most so many served bytes; stores are named by `store_name`."""

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader; ValueError naming the minimum when the budget is below it."""
        shares = self._shares(name, readers)
        return {
            reader.name: self.whole(name, reader)
            if shares[reader.name] >= self._full_bytes(name, reader)
            else self.compressed(name, reader, shares[reader.name], seed)
            for reader in readers
        }

    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int:
        """The budget."""
        return budget_bytes(self.budget, name, dict.fromkeys(readers, self.embedding_dim))

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

    def _full_bytes(self, name: str, reader: Reader) -> int:
        rows = known_num_embeddings(name, f"budget {self.budget}", reader)
        return rows * row_bytes(self.embedding_dim, self.precision)

    def _shares(self, name: str, readers: Sequence[Reader]) -> dict[str, int]:
        full = {reader.name: self._full_bytes(name, reader) for reader in readers}
        least = {reader.name: min(full[reader.name], self.least_bytes(reader)) for reader in readers}
        return share(self.max_bytes(name, readers), full, least, f"table {name!r}: budget {self.budget}")

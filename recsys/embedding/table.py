"""What an embedding table is: ids -> rows of a few named stores -> vectors of those rows -> one vector per id.

    ids [N] --rows()--> {store: rows [N, P]} --lookup--> {store: vectors [N, P, d]} --combine()--> vectors [N, D]

A table says which rows it reads and what it makes of them; it holds no weights of a store. Stores belong to the
collection, which keeps them in plain tensors, in fbgemm's fused op or sharded over ranks; so a method that fits this
form has all of these without a line of its own. `DenseTable`, one row per id, is the table without compression.

Shapes: N flat ids, P accesses of one store per id, d width of a store, D width of the finished vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from features.values import Value
from features.vocab import hash64

BLOCK_ROWS = 4096


class Uniform(Value):
    """Initial values uniform in [low, high)."""

    kind: Literal["uniform"] = "uniform"
    low: float = -0.05
    high: float = 0.05

    def fill(self, values: Tensor, generator: torch.Generator) -> None:
        """Overwrite `values` from the generator."""
        values.uniform_(self.low, self.high, generator=generator)


class Normal(Value):
    """Initial values normal with mean 0."""

    kind: Literal["normal"] = "normal"
    std: float = Field(default=0.01, ge=0)

    def fill(self, values: Tensor, generator: torch.Generator) -> None:
        """Overwrite `values` from the generator."""
        values.normal_(0.0, self.std, generator=generator)


class Constant(Value):
    """One initial value everywhere, for instance 1 for the factor of a product."""

    kind: Literal["constant"] = "constant"
    value: float = 0.0

    def fill(self, values: Tensor, generator: torch.Generator) -> None:
        """Overwrite `values`; the generator is not drawn from."""
        values.fill_(self.value)


Init = Annotated[Uniform | Normal | Constant, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class Store:
    """A physical table of float32 rows, owned by the collection and read by one table or by many.

    training_only: what a method needs while it trains but does not serve; no frozen table may read it.
    Memory: num_embeddings x embedding_dim x 4 bytes.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    init: Uniform | Normal | Constant = field(default_factory=Uniform)
    training_only: bool = False

    def __post_init__(self) -> None:
        if self.num_embeddings < 1 or self.embedding_dim < 1:
            shape = (self.num_embeddings, self.embedding_dim)
            raise ValueError(f"store {self.name!r} needs at least one row and one column, got {shape}")

    @property
    def num_bytes(self) -> int:
        """Bytes of its float32 values, without padding."""
        return self.num_embeddings * self.embedding_dim * 4

    def initialise(self, rows: Tensor, seed: int, start: int = 0) -> None:
        """Write the initial values of rows start, start + 1, ... into `rows` [n, d], a view of any layout.

        A value depends on (seed, store name, row, column) alone: equal in every backend, for any part of the store that
        a rank holds, and unchanged when the store gets more rows. A block of BLOCK_ROWS rows is drawn at a time.
        """
        stop = start + len(rows)
        with torch.no_grad():
            for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
                first = block * BLOCK_ROWS
                low, high = max(first, start), min(first + BLOCK_ROWS, stop)
                rows[low - start : high - start] = self._block(block, seed)[low - first : high - first].to(rows.device)

    def _block(self, block: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash64(f"{self.name}#{block}", salt=f"init#{seed}"))
        values = torch.empty(BLOCK_ROWS, self.embedding_dim, device="cpu")
        self.init.fill(values, generator)
        return values


class EmbeddingTable(nn.Module, ABC):
    """The vectors of one vocabulary (or one hashed feature): which rows it reads and how they combine.

    `rows` is a pure function of the ids and of buffers. `combine` may use dense parameters of the module (projections,
    gates), which train as any dense parameter does. num_embeddings: ids lie in [0, num_embeddings); None: any int64 is
    an id. Subclasses that hold tensors which are neither saved nor served register them as non-persistent buffers.
    """

    def __init__(self, name: str, stores: Sequence[Store], embedding_dim: int, num_embeddings: int | None) -> None:
        super().__init__()
        self.name = name
        self.stores = tuple(stores)
        self.embedding_dim = embedding_dim
        self.num_embeddings = num_embeddings

    @abstractmethod
    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """Ids [N] int64 -> for every store that is read, by name, its rows [N, P] int64."""

    @abstractmethod
    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Store name -> vectors [N, P, d] of the rows asked for, and the ids [N] -> vectors [N, D]."""

    def forward(self, ids: Tensor, stores: Mapping[str, Tensor]) -> Tensor:
        """The definition, by plain indexing: ids [N] and the weights [n, d] of the stores -> vectors [N, D].

        Raises ValueError naming the table and the id when an id is out of range.
        """
        check_ids(ids, self.num_embeddings, f"table {self.name!r}")
        rows = self.rows(ids)
        vectors = {store: F.embedding(found, stores[store]) for store, found in rows.items()}
        return self.combine(vectors, ids)

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple["EmbeddingTable", dict[str, Tensor]]:
        """The serving form: a table, and the arrays of the stores that it reads, from the trained weights.

        Default: a copy of itself over the same stores. A method whose serving form differs from its training form
        (pruned, quantised, without its training-only stores) overrides this.
        """
        return deepcopy(self), {store.name: stores[store.name] for store in self.stores}


def check_ids(ids: Tensor, num_embeddings: int | None, what: str) -> None:
    """Raise ValueError naming `what` and the id unless ids are int64 in [0, num_embeddings); None = any int64."""
    if ids.dtype != torch.int64:
        raise ValueError(f"{what}: ids must be int64, got {ids.dtype}")
    if num_embeddings is None or not ids.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= num_embeddings:
        raise ValueError(f"{what}: id {low if low < 0 else high} is outside 0..{num_embeddings - 1}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """Who reads a table specification: one vocabulary, or one hashed feature and those that share its ids.

    salt: what separates it from other readers in a shared hash; a name, never a position. num_embeddings: ids lie in
    [0, num_embeddings), None for hashed ids and where only a schema is known. chunks: pieces of a multiplexed vector.
    counts: [num_embeddings] int64 occurrences of each id in the train split, None where unknown.
    """

    name: str
    salt: str
    num_embeddings: int | None = None
    chunks: int = 1
    counts: Tensor | None = None


class TableSpec(Value, ABC):
    """What a config says of a table: a frozen value object that builds one table per reader."""

    @abstractmethod
    def build(self, name: str, readers: Sequence[Reader]) -> dict[str, EmbeddingTable]:
        """One table for each reader, by the reader's name.

        name: the specification's key, the first part of the names of its stores. readers: in the order of their names.
        Raises ValueError when the readers or the budget do not suit.
        """

    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int | None:
        """The most bytes that the served tables of these readers take together; None where nothing is promised."""
        return None


class DenseTable(TableSpec):
    """One row per id: no collision, no compression. One store "<specification>.<vocabulary>" per vocabulary.

    Every vector is embedding_dim wide; a feature's `chunks` concern multiplexed tables and change nothing here, so that
    one schema serves both. Memory: sum of num_embeddings x embedding_dim x 4 bytes.

        DenseTable(embedding_dim=16, init=Normal(std=0.01))
    """

    embedding_dim: int = Field(ge=1)
    init: Init = Uniform()

    def build(self, name: str, readers: Sequence[Reader]) -> dict[str, EmbeddingTable]:
        """One table over a store of its own per reader; every reader must know its number of ids."""
        return {reader.name: self._table(name, reader) for reader in readers}

    def _table(self, name: str, reader: Reader) -> "RowPerId":
        count = known_num_embeddings(name, "dense", reader)
        store = Store(
            name=f"{name}.{reader.name}", num_embeddings=count, embedding_dim=self.embedding_dim, init=self.init
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


def known_num_embeddings(table: str, method: str, reader: Reader) -> int:
    """The reader's number of ids; ValueError when it is hashed or only a schema was given."""
    if reader.num_embeddings is None:
        raise ValueError(
            f"table {table!r} ({method}) needs the number of ids of {reader.name!r}: give the collection an Encoder "
            "instead of a bare FeatureSchema, and do not mark the feature as hashed"
        )
    return reader.num_embeddings

"""What an embedding table is: ids -> rows of a few named stores -> vectors of those rows -> one vector per id.

    ids [N] --rows()--> {store: rows [N, P]} --lookup--> {store: vectors [N, P, d]} --combine()--> vectors [N, D]

A table says which rows it reads and what it makes of them; it holds no weights of a store. Stores belong to the
collection, which keeps them in plain tensors, in fbgemm's fused op or sharded over ranks; so a method that fits this
form has all of these without a line of its own.

Shapes: N flat ids, P accesses of one store per id, d width of a store, D width of the finished vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from features.values import Value
from recsys.embedding.precision import Precision, read_rows
from recsys.embedding.store import Store
from recsys.phases import Phase


class EmbeddingTable(nn.Module, ABC):
    """The vectors of one vocabulary (or one hashed feature): which rows it reads and how they combine.

    `rows` is a pure function of the ids and of buffers. `combine` may use dense parameters of the module (projections,
    gates), which train as any dense parameter does. num_embeddings: ids lie in [0, num_embeddings); None: any int64 is
    an id. Persistent buffers are saved, served and counted: salts, remaps, codes, all that a seed or training decided.
    What follows from `settings` is a non-persistent one.

    Optional: `on_step` and `penalty`, called in training, `freeze` where the serving form is another one, and one_rank:
    why the method cannot train over several ranks ("" = it can), for instance because a rank would need all rows.
    distinct_ids: an id that stands several times in a lookup is read and combined once, which pays where `combine` is
    heavy and ids repeat, and costs a sort elsewhere.
    """

    one_rank: ClassVar[str] = ""
    distinct_ids: ClassVar[bool] = False

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
        declared = {store.name: store for store in self.stores}
        vectors = {
            name: read_rows(stores[name], rows, declared[name].precision, declared[name].embedding_dim)
            for name, rows in self.rows(ids).items()
        }
        return self.combine(vectors, ids)

    # --- while it trains ---

    def on_step(self, weights: Mapping[str, Tensor], touched: Mapping[str, Tensor]) -> None:
        """Called after every update in training, to prune, clip or round.

        weights: store -> its live values [n, d]. touched: store -> the rows that the step read, flat, with repeats.
        What it counts (steps) belongs into a persistent buffer, so that a resumed run goes on alike.
        """

    def penalty(self) -> Tensor | None:
        """A scalar added to the loss of a step, made of what the last `combine` in training saw; None adds nothing."""
        return None

    # --- when it serves ---

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple["EmbeddingTable", dict[str, Tensor]]:
        """The serving form: a table, and the float32 arrays [n, d] of the stores that it reads, from trained weights.

        Default: a copy of itself over the same stores. A method whose serving form differs from its training form
        (pruned, merged, without its training-only stores) overrides this. The collection packs the arrays to the
        precision of the frozen table's stores.
        """
        return deepcopy(self), {store.name: stores[store.name] for store in self.stores}

    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_settings` makes this table again, but for the tensors of its `state_dict`.

        Default: the arguments of this class's constructor. A class with another constructor overrides both.
        """
        return {
            "name": self.name,
            "stores": [store.name for store in self.stores],
            "embedding_dim": self.embedding_dim,
            "num_embeddings": self.num_embeddings,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The table of these settings over these stores; parameters and persistent buffers are loaded afterwards."""
        own = [stores[name] for name in settings["stores"]]
        return cls(settings["name"], own, settings["embedding_dim"], settings["num_embeddings"])


def check_ids(ids: Tensor, num_embeddings: int | None, what: str) -> None:
    """Raise ValueError naming `what` and the id unless ids are int64 in [0, num_embeddings); None = any int64."""
    if ids.dtype != torch.int64:
        raise ValueError(f"{what}: ids must be int64, got {ids.dtype}")
    if num_embeddings is None or torch.compiler.is_exporting() or not ids.numel():
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


@dataclass(frozen=True, kw_only=True)
class Search:
    """The tables of one specification within a run: what a method that trains in stages does its searching with.

    tables: reader -> its table. weights(): store -> its live values [n, d], float32; writing changes the store.
    evaluate(): the validation metrics of the model as it stands; None without a validation split. metric: the one that
        counts, and whether higher_is_better. restart(): all weights, dense and of stores, go back to their initial
        values and all optimizers forget; what tables found, their buffers, stays.
    """

    tables: Mapping[str, EmbeddingTable]
    weights: Callable[[], Mapping[str, Tensor]]
    evaluate: Callable[[], Mapping[str, float]] | None
    metric: str
    higher_is_better: bool
    restart: Callable[[], None]
    seed: int

    def score(self) -> float:
        """The validation metric now, higher being better. Raises ValueError without a validation split."""
        if self.evaluate is None:
            names = sorted(self.tables)
            raise ValueError(f"the tables of {names} search by a validation metric: give data.split.validation")
        value = self.evaluate()[self.metric]
        return value if self.higher_is_better else -value


class TableSpec(Value, ABC):
    """What a config says of a table: a frozen value object that builds one table per reader.

    precision: of the rows that are served; training is in float32. Budgets count bytes at this precision.
    """

    precision: Precision = "float32"

    @abstractmethod
    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table for each reader, by the reader's name.

        name: the specification's key, the first part of the names of its stores. readers: in the order of their names.
        seed: of salts and of initial values of dense parameters, which also depend on names.
        Raises ValueError when the readers or the budget do not suit.
        """

    def schedule(self, phases: Sequence[Phase], search: Search) -> list[Phase]:
        """The phases of a training whose tables follow this specification; a method that searches adds its own.

        Called when a run starts and whenever it resumes: the same phases each time, and nothing is changed by the call.
        """
        return list(phases)

    @property
    def adds_phases(self) -> bool:
        """Whether its tables train in stages of their own."""
        return type(self).schedule is not TableSpec.schedule

    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int | None:
        """The most bytes that the served tables of these readers take together; None where nothing is promised."""
        return None


def known_num_embeddings(table: str, method: str, reader: Reader) -> int:
    """The reader's number of ids; ValueError when it is hashed or only a schema was given."""
    if reader.num_embeddings is None:
        raise ValueError(
            f"table {table!r} ({method}) needs the number of ids of {reader.name!r}: a hashed feature has none, take "
            "method 'unified' with a budget in bytes for it (as \"4kB\") or give it a vocabulary; a bare FeatureSchema "
            "knows none, give the collection an Encoder"
        )
    return reader.num_embeddings

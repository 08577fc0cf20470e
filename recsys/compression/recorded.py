"""Tables as they were served, as a specification: `RecordedTables`, what a converted run's config holds.

A served table comes back from its class and its settings (`recsys.embedding.frozen`), whatever budget, search or counts
it came from. So rows that are trained already can be served at another precision, which a method's own settings cannot
say: its budget would buy other rows at other bytes. The record is made by `served_in`, and not meant to be written by
hand; values come from a checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.frozen import describe_tables, rebuild_table
from recsys.embedding.precision import Precision
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader, TableSpec


class RecordedTables(TableSpec):
    """tables: reader -> {"class", "settings"}. stores: name -> {"num_embeddings", "embedding_dim"}, and "precision"
    for those that do not follow the specification's.

    Memory: that of the tables recorded, at `precision`.
    """

    tables: Mapping[str, Mapping[str, Any]]
    stores: Mapping[str, Mapping[str, Any]]

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """The recorded table of each reader; ValueError when the readers are others than those recorded."""
        if {reader.name for reader in readers} != set(self.tables):
            wanted = sorted(reader.name for reader in readers)
            raise ValueError(f"table {name!r}: recorded are {sorted(self.tables)}, the schema's readers are {wanted}")
        stores = {store: Store(name=store, **self._shape(store)) for store in self.stores}
        return {reader: rebuild_table(given, stores, allowed=None) for reader, given in self.tables.items()}

    def _shape(self, store: str) -> dict[str, Any]:
        return {"precision": self.precision, **self.stores[store]}


def served_in(
    precision: Precision, trained: EmbeddingCollection, before: Mapping[str, Precision]
) -> tuple[dict[str, RecordedTables], dict[str, Tensor]]:
    """The specifications that serve a trained collection's tables at another precision, and the state to load.

    before: specification -> the precision that it had; stores that had another, by choice of their method, keep it.
    The state is a `state_dict` in float32: an `EmbeddingCollection` of the specifications, loaded with it, gives the
    vectors that `trained` gives, and packs its rows when it is frozen.
    """
    weights = trained.backend.whole_weights()
    frozen = {key: table.freeze(weights) for key, table in trained.by_key.items()}
    arrays = {store: array for _, own in frozen.values() for store, array in own.items()}
    tables = {key: table for key, (table, _) in frozen.items()}
    table_of = {spec.name: key for spec in trained.schema.inputs if (key := trained.table_key(spec.name)) is not None}
    plain = EmbeddingCollection.serving(trained.schema, tables, table_of, arrays)
    record = describe_tables(plain)
    specs = {}
    for name, old in before.items():
        own = {key.partition("/")[2]: given for key, given in record["tables"].items() if key.startswith(f"{name}/")}
        read = {store.name for key, table in tables.items() if key.startswith(f"{name}/") for store in table.stores}
        stores = {store: _recorded(record["stores"][store], old) for store in sorted(read)}
        specs[name] = RecordedTables(precision=precision, tables=own, stores=stores)
    return specs, plain.state_dict()


def _recorded(store: Mapping[str, Any], old: Precision) -> dict[str, Any]:
    """A store's shape; its precision only where that is not its specification's."""
    return {key: value for key, value in store.items() if (key, value) != ("precision", old)}

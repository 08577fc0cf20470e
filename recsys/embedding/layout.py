"""Which tables a schema asks for, which features read each, and which stores they stand on.

Features that share ids (one vocabulary, or one hashed feature and those that share it) and name the same table
specification are one `Reader`: they get one table, and so the same vectors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from features.hashes import hash64
from features.spec import FeatureSchema, FeatureSpec
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader, TableSpec


class KnowsIds(Protocol):
    """What an encoder tells of the ids of a feature (`features.encoder.Encoder` does)."""

    @property
    def schema(self) -> FeatureSchema:
        """The features."""

    def num_embeddings(self, feature: str) -> int | None:
        """Ids lie in [0, this); None for hashed ids."""

    def counts(self, feature: str) -> Tensor | None:
        """[num_embeddings] int64: occurrences of each id in the train split; None where they were not counted."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Tables by "<specification>/<reader>", and for each id feature the key of its table."""

    schema: FeatureSchema
    tables: Mapping[str, EmbeddingTable]
    table_of: Mapping[str, str]

    @staticmethod
    def build(source: FeatureSchema | KnowsIds, specs: Mapping[str, TableSpec], seed: int) -> "Layout":
        """Build the table of every reader; dense parameters of a table are drawn from (seed, specification).

        Raises ValueError naming the table that is missing, read by no feature, or cannot be built.
        """
        schema = source if isinstance(source, FeatureSchema) else source.schema
        readers = readers_by_table(source)
        for what, names in (("is missing", set(readers) - set(specs)), ("has no reader", set(specs) - set(readers))):
            if names:
                raise ValueError(f"table {min(names)!r} {what}: named {sorted(readers)}, given {sorted(specs)}")
        tables: dict[str, EmbeddingTable] = {}
        table_of: dict[str, str] = {}
        for table, features_of in readers.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(hash64(table, salt=f"table#{seed}"))
                built = specs[table].build(table, sorted(features_of, key=lambda reader: reader.name), seed)
            tables |= {f"{table}/{reader.name}": built[reader.name] for reader in features_of}
            table_of |= {name: f"{table}/{reader.name}" for reader, names in features_of.items() for name in names}
        return Layout(schema=schema, tables=tables, table_of=table_of)

    @property
    def stores(self) -> list[Store]:
        """Every store once; ValueError when two tables mean different stores by one name."""
        return unique_stores(self.tables.values())

    def accesses(self) -> dict[str, int | None]:
        """Rows of each store that one row of a batch reads; None where lists or distinct ids make that vary."""
        found: dict[str, int | None] = {}
        for feature, table in self.table_of.items():
            varies = self.schema.feature(feature).is_list or self.tables[table].distinct_ids
            for store, rows in self.tables[table].rows(torch.zeros(1, dtype=torch.int64)).items():
                before = found.get(store, 0)
                found[store] = None if varies or before is None else before + rows.shape[1]
        return found


def unique_stores(tables: Iterable[EmbeddingTable]) -> list[Store]:
    """The stores of the tables, each once; ValueError when two tables mean different stores by one name."""
    stores: dict[str, Store] = {}
    for table in tables:
        for store in table.stores:
            if stores.setdefault(store.name, store) != store:
                raise ValueError(f"store {store.name!r} is declared twice: {stores[store.name]} and {store}")
    return list(stores.values())


def readers_by_table(source: FeatureSchema | KnowsIds) -> dict[str, dict[Reader, list[str]]]:
    """Table specification -> its readers, each with its features, in the schema's order."""
    schema = source if isinstance(source, FeatureSchema) else source.schema
    shared: dict[tuple[str, str], list[FeatureSpec]] = {}
    for spec in schema.inputs:
        if spec.is_id:
            shared.setdefault((str(spec.table), spec.salt), []).append(spec)
    found: dict[str, dict[Reader, list[str]]] = {}
    for (table, salt), specs in shared.items():
        found.setdefault(table, {})[_reader(salt, specs, source)] = [spec.name for spec in specs]
    return found


def _reader(salt: str, specs: list[FeatureSpec], source: FeatureSchema | KnowsIds) -> Reader:
    kinds = {spec.name: {"hashed": spec.hashed, "chunks": spec.chunks} for spec in specs}
    first = specs[0]
    if any(kind != kinds[first.name] for kind in kinds.values()):
        raise ValueError(f"features that share the ids of {salt!r} in table {first.table!r} must agree, got {kinds}")
    known = None if isinstance(source, FeatureSchema) else source
    num_embeddings = known.num_embeddings(first.name) if known else None
    counts = known.counts(first.name) if known else None
    return Reader(name=salt, salt=salt, num_embeddings=num_embeddings, chunks=first.chunks, counts=counts)

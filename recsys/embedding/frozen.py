"""The serving form of a collection as a JSON record and named tensors, and back.

A record says everything about the tables but the values: their classes with settings, their stores, who reads which.
So a bundle is read without the config, the counts or the search that its tables came from, and without a second copy
of their weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from features.spec import FeatureSchema
from recsys.config import import_name
from recsys.embedding.collection import STORES, EmbeddingCollection
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable

TABLES = "tables."
OURS = "recsys"


def describe_tables(collection: EmbeddingCollection) -> dict[str, Any]:
    """The record of a frozen collection, JSON values; its tensors are its `state_dict()`."""
    stores = collection.stores.values()
    return {
        "tables": {
            name: {"class": _class_name(table), "settings": table.settings()}
            for name, table in sorted(collection.by_key.items())
        },
        "stores": {
            store.name: {
                "num_embeddings": store.num_embeddings,
                "embedding_dim": store.embedding_dim,
                "precision": store.precision,
            }
            for store in stores
        },
        "features": {
            spec.name: key for spec in collection.schema.inputs if (key := collection.table_key(spec.name)) is not None
        },
    }


def rebuild_tables(
    record: Mapping[str, Any], schema: FeatureSchema, tensors: Mapping[str, Tensor], allowed: Sequence[str] | None = ()
) -> EmbeddingCollection:
    """The frozen collection that a record and the tensors of its `state_dict()` describe; they are used as they are.

    allowed: packages of the user's whose table classes may be imported (None = any). Raises ConfigError for a class
    that is not allowed, ValueError naming a tensor that is missing, unknown or of another shape.
    """
    stores = {name: Store(name=name, **given) for name, given in record["stores"].items()}
    tables = {name: rebuild_table(given, stores, allowed) for name, given in record["tables"].items()}
    for name, table in tables.items():
        start = f"{TABLES}{name}."
        own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        try:
            table.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ValueError(f"served table {name!r}: {error}") from None
    known = (STORES, *(f"{TABLES}{name}." for name in tables))
    unknown = sorted(key for key in tensors if not key.startswith(known))
    missing = sorted(name for name in stores if STORES + name not in tensors)
    if unknown or missing:
        raise ValueError(f"served tables: tensors {unknown} are unknown, stores {missing} are missing")
    weights = {name: tensors[STORES + name] for name in stores}
    for name, store in stores.items():
        if len(weights[name]) != store.num_embeddings or weights[name].nbytes != store.num_bytes:
            got = f"{weights[name].dtype} {tuple(weights[name].shape)}"
            raise ValueError(f"served store {name!r} is {got}, expected {store.num_bytes} bytes in {store.precision}")
    return EmbeddingCollection.serving(schema, tables, record["features"], weights)


def _class_name(table: EmbeddingTable) -> str:
    return f"{type(table).__module__}:{type(table).__qualname__}"


def rebuild_table(
    given: Mapping[str, Any], stores: Mapping[str, Store], allowed: Sequence[str] | None = ()
) -> EmbeddingTable:  # fmt: skip
    """One table of a record, its tensors to be loaded; `allowed` and errors as in `rebuild_tables`."""
    found = import_name(given["class"], None if allowed is None else (*allowed, OURS))
    if not (isinstance(found, type) and issubclass(found, EmbeddingTable)):
        raise ValueError(f"{given['class']!r} is no table")
    return found.from_settings(given["settings"], stores)

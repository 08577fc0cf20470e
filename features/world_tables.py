"""What a world consists of: `WorldTables`, the raw tables that a generator makes, or `WorldStream`, events in batches.

`worlds` names the generators.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np
import pyarrow as pa


class WorldData(Protocol):
    """The raw data of a world."""

    @property
    def content_hash(self) -> str:
        """SHA-256, hex, over the names and values of all columns; how the rows lie in memory has no part in it."""
        ...

    def readers(self) -> dict[str, pa.RecordBatchReader]:
        """Role ("events", perhaps "users" and "items") -> its rows, from the first one on at every call."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorldTables:
    """The raw tables of a world, in memory.

    events: user, item, timestamp (seconds since 1970), click, probability, and what a world adds (a shop: device, hour;
    the planted one: viewed); in time order. click is 0 or 1, or what the world says of events that could have none.
    users: user (a shop: age_group, gender, city). items: item, category (a shop: brand, price, tags joined by "|",
    launched in seconds). triples: head, relation, tail; what is known about items and brands, as text.
    """

    events: pa.Table
    users: pa.Table
    items: pa.Table
    triples: pa.Table

    @property
    def content_hash(self) -> str:
        """SHA-256, hex, over the names and values of all columns."""
        digest = sha256()
        for name in ("events", "users", "items", "triples"):
            table = getattr(self, name)
            for column in table.column_names:
                digest.update(f"{name}.{column}\n".encode())
                digest.update("\n".join(map(repr, table[column].to_pylist())).encode())
        return digest.hexdigest()

    def readers(self) -> dict[str, pa.RecordBatchReader]:
        """Events, users and items."""
        return {name: getattr(self, name).to_reader() for name in ("events", "users", "items")}


@dataclass(frozen=True, kw_only=True)
class WorldStream:
    """The events of a world that need not fit in memory; it has no tables of users and items.

    schema: of the batches; columns of numbers, without nulls. batches: makes them all, anew at every call.
    """

    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]

    @property
    def content_hash(self) -> str:
        """SHA-256, hex, over each column's name, type and SHA-256 of little-endian values; all batches are made."""
        digests = [sha256() for _ in self.schema]
        for batch in self.batches():
            for digest, column in zip(digests, batch.columns, strict=True):
                values = column.to_numpy()
                digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
        whole = sha256()
        for field, digest in zip(self.schema, digests, strict=True):
            whole.update(f"{field.name} {field.type} {digest.hexdigest()}\n".encode())
        return whole.hexdigest()

    def readers(self) -> dict[str, pa.RecordBatchReader]:
        """The events."""
        return {"events": pa.RecordBatchReader.from_batches(self.schema, self.batches())}

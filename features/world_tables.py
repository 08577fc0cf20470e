"""What a world consists of: `WorldTables`, the raw tables that a generator makes. `worlds` names the generators."""

from dataclasses import dataclass
from hashlib import sha256

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class WorldTables:
    """The raw tables of a world.

    events: user, item, timestamp (seconds since 1970), click (0 or 1), probability, device, hour; in time order.
    users: user, age_group, gender, city. items: item, category, brand, price, tags (joined by "|"), launched (seconds).
    triples: head, relation, tail; what is known about items and brands, as text.
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

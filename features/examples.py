"""Events -> histories and examples, streamed: what a log, split and learned from, is stored as.

An example is (user, position, target): the position says which part of the user's history it may see (`histories`), so
that nothing later than the example can reach it. Examples are Parquet, `<split>/part-*.parquet` in row groups of
`ROW_GROUP` rows, in the order of the raw files; the columns are those that `Loader` reads:

    user, item           positions in the entity tables, -1 for a missing id (where the schema has users, items)
    position             in the user's history (where the schema has sequences)
    time                 of the example, as in the log (where the histories are ordered)
    event features       encoded: int64 rows, float32 numbers, lists; `<name>:weights` of an id_score_list
    label:<name>, weight, probability (float32), group (int64)

One batch of `BATCH_ROWS` events is in memory at a time, beside entity tables and vocabularies.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Jagged
from features.database import Database
from features.encoder import Encoder
from features.entities import EntityTable
from features.hashes import hash_ids
from features.histories import Histories, history_label
from features.history_files import EventChunk
from features.log_columns import (
    CODE,
    EXAMPLE,
    GROUP,
    NUMBER,
    PROBABILITY,
    TIME,
    WEIGHT,
    label_column,
    without_negatives,
)
from features.raw_ids import arrow_ids
from features.source_files import SPLITS
from features.spec import FeatureSchema, FeatureSpec

ROW_GROUP = 65_536
ROW_GROUPS_PER_FILE = 64
RESERVED = ("user", "item", "position", "time", "weight", "group", "probability")
Progress = Callable[[str, int, int], None]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What events are encoded with. users, items: None where the schema has none. ticks_per_second: of times."""

    encoder: Encoder
    users: EntityTable | None
    items: EntityTable | None
    histories: Histories | None = None
    ticks_per_second: int = 1

    @property
    def schema(self) -> FeatureSchema:
        """The schema of the encoder."""
        return self.encoder.schema

    def positions(self, rows: pa.Table) -> dict[str, Ints]:
        """Positions of the rows' users and items, by role."""
        roles = {"user": (self.users, self.schema.user), "item": (self.items, self.schema.item)}
        return {
            role: entities.positions(rows[self.schema.feature(name).column]).numpy()
            for role, (entities, name) in roles.items()
            if entities is not None
        }


def check_examples(schema: FeatureSchema, positive: bool) -> None:
    """Raise ValueError where examples of this schema cannot be stored or their histories not be cut."""
    if positive and not (schema.user and schema.item):
        raise ValueError("data.examples = 'positive' needs `user` and `item` in the schema; otherwise take 'all'")
    for spec in schema.of_entity("event"):
        if spec.name in RESERVED:
            raise ValueError(
                f"feature {spec.name!r}: an event's feature cannot be named {', '.join(RESERVED)}; "
                f'call it otherwise and set column = "{spec.column}"'
            )
    kinds = {group.name: group.ordered for group in schema.sequences}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"schema {schema.name!r}: sequence groups must all be ordered, or none: {kinds}")
    if any(kinds.values()) and not schema.timestamp:
        raise ValueError(
            f"schema {schema.name!r}: ordered sequences need `timestamp`; without times, set ordered = false"
        )
    history_label(schema)


def keeps_histories(schema: FeatureSchema, positive: bool) -> bool:
    """Histories are for sequences, and for retrieval, which must know what a user has seen."""
    return bool(schema.user and schema.item) and (bool(schema.sequences) or positive)


def history_events(events: ir.Table, schema: FeatureSchema) -> ir.Table:
    """The events that belong to histories: those of the sequences, or the examples where there are none."""
    user, item = schema.feature(schema.user).column, schema.feature(schema.item).column
    events = without_negatives(events)
    belongs: Any = events[EXAMPLE]
    if schema.sequences:
        label = history_label(schema)
        belongs = events[label_column(label)] > 0 if label else True
    return events.filter(events[user].notnull(), events[item].notnull(), belongs)


def write_histories(
    database: Database, events: ir.Table, learned: Learned, path: Path, progress: Progress
) -> Histories:
    """Build the histories of all users: every event that belongs to them, of every split."""
    assert learned.users is not None
    chunks = event_chunks(database, events, learned, progress)
    ordered, ticks = learned.schema.orders_events, learned.ticks_per_second
    return Histories.build(path, chunks, num_users=len(learned.users), ordered=ordered, ticks_per_second=ticks)


def event_chunks(
    database: Database, events: ir.Table, learned: Learned, progress: Progress
) -> Iterator[EventChunk]:  # fmt: skip
    """The events that belong to histories, encoded, in the order of raw user ids and then of the raw rows."""
    schema = learned.schema
    user, item = schema.feature(schema.user).column, schema.feature(schema.item).column
    ordered = schema.orders_events
    beside = _event_features_in_sequences(schema)
    columns = [user, item, CODE, NUMBER, *([TIME] if ordered else []), *(spec.column for spec in beside)]
    named = history_events(events, schema)
    rows = named.select(*dict.fromkeys(columns)).order_by(user, NUMBER)
    total = int(database.value(named.count()))
    for table in _counted(_tables(database, rows), "histories", total, progress):
        yield _event_chunk(table, learned, ordered, beside)


def _event_features_in_sequences(schema: FeatureSchema) -> list[FeatureSpec]:
    repeated = dict.fromkeys(name for group in schema.sequences for name in group.of.values())
    return [spec for name in repeated if (spec := schema.feature(name)).entity == "event"]


def _event_chunk(table: pa.Table, learned: Learned, ordered: bool, beside: list[FeatureSpec]) -> EventChunk:
    positions = learned.positions(table)
    encoded = learned.encoder.encode(table, [spec.name for spec in beside])
    return EventChunk(
        users=positions["user"],
        items=positions["item"],
        splits=table[CODE].to_numpy(),
        timestamps=table[TIME].to_numpy() if ordered else None,
        columns={name: _numpy(column) for name, column in encoded.items()},
    )


def write_examples(
    database: Database, events: ir.Table, learned: Learned, folder: Path, progress: Progress
) -> dict[str, int]:
    """Write the examples of every split that has some; returns split -> rows."""
    examples = events.filter(events[EXAMPLE])
    total = int(database.value(examples.count()))
    written: dict[str, int] = {}
    for code, split in enumerate(SPLITS):
        done = sum(written.values())
        rows = _tables(database, examples.filter(examples[CODE] == code))
        encoded = (_encode(table, learned, first) for first, table in _numbered(rows))
        counted = _counted(encoded, "examples", total, progress, done)
        num_rows = _write_parts(_evenly(counted), folder / split)
        if num_rows:
            written[split] = num_rows
    return written


def _tables(database: Database, rows: ir.Table) -> Iterator[pa.Table]:
    """Batches as tables; an empty result is one empty table, so that its columns are known."""
    empty = True
    for batch in database.stream(rows):
        empty = False
        yield pa.Table.from_batches([batch])
    if empty:
        yield database.fetch(rows.limit(0))


def _numbered(tables: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Each table with the number of rows before it; the order of the raw files is checked."""
    before, last = 0, -1
    for table in tables:
        numbers = table[NUMBER].to_numpy()
        assert not len(numbers) or (numbers[0] > last and (np.diff(numbers) > 0).all()), "events lost their order"
        yield before, table
        before += len(table)
        last = int(numbers[-1]) if len(numbers) else last


def _counted(
    tables: Iterable[pa.Table], stage: str, total: int, progress: Progress, done: int = 0
) -> Iterator[pa.Table]:
    for table in tables:
        yield table
        done += len(table)
        progress(stage, done, total)


def _encode(table: pa.Table, learned: Learned, first_row: int) -> pa.Table:
    """The columns of an example file, for the rows of a log."""
    schema = learned.schema
    columns: dict[str, Any] = dict(learned.positions(table))
    if learned.histories is not None and schema.sequences:
        columns["position"] = _positions(table, learned, columns)
        columns |= {"time": table[TIME]} if schema.orders_events else {}
    names = [spec.name for spec in schema.of_entity("event") if not spec.history_only]
    for name, column in learned.encoder.encode(table, names, first_row=first_row).items():
        columns |= _arrow_columns(name, column)
    for label in schema.labels:
        columns[f"label:{label.name}"] = table[label_column(label.name)].cast(pa.float32())
    for name, stored in (("weight", WEIGHT), ("probability", PROBABILITY)):
        if stored in table.column_names:
            columns[name] = table[stored].cast(pa.float32())
    if GROUP in table.column_names:
        ids = arrow_ids(table[GROUP], "group")
        columns["group"] = ids if pa.types.is_int64(ids.type) else hash_ids(ids)
    return pa.table(columns)


def _positions(table: pa.Table, learned: Learned, positions: dict[str, Any]) -> Ints:
    histories = learned.histories
    assert histories is not None
    if histories.ordered:
        return histories.positions(positions["user"], timestamps=table[TIME].to_numpy())
    return histories.positions(positions["user"], items=positions["item"])


def _arrow_columns(name: str, column: Tensor | Jagged) -> dict[str, Any]:
    if not isinstance(column, Jagged):
        return {name: column.numpy()}
    offsets = pa.array(column.offsets.numpy())
    named = {name: column.values} | ({f"{name}:weights": column.weights} if column.weights is not None else {})
    return {key: pa.LargeListArray.from_arrays(offsets, pa.array(values.numpy())) for key, values in named.items()}


def _numpy(column: Tensor | Jagged) -> NDArray[Any]:
    assert not isinstance(column, Jagged), "the schema lets sequences repeat ids only"
    return column.numpy()


def _evenly(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `ROW_GROUP` rows, the last one shorter; nothing where there are none."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(len(part) for part in held) >= ROW_GROUP:
            joined = pa.concat_tables(held)
            yield joined.slice(0, ROW_GROUP)
            held = [joined.slice(ROW_GROUP)]
    if any(len(part) for part in held):
        yield pa.concat_tables(held)


def _write_parts(row_groups: Iterable[pa.Table], folder: Path) -> int:
    """Write part-00000.parquet and so on; the folder is made with the first. Returns the rows written."""
    num_rows = 0
    left = iter(row_groups)
    for number, first in enumerate(left):
        folder.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", first.schema, compression="zstd") as writer:
            for table in chain([first], islice(left, ROW_GROUPS_PER_FILE - 1)):
                writer.write_table(table, row_group_size=ROW_GROUP)
                num_rows += len(table)
    return num_rows

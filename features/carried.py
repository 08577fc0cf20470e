"""Histories that go on: the newest events of an older folder, and behind them later ones, streamed.

In memory are about CHUNK_EVENTS older events and the later ones of the same users.

Shapes: U users.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.database import Database
from features.histories import Histories
from features.history_files import EventChunk, joined, part_of

Array = NDArray[Any]
CHUNK_EVENTS = 1 << 18
_USER, _PLACE, _COLUMN = "user", "place", "column."


def carried_on(older: Histories, max_length: int, later: Iterable[EventChunk]) -> Iterator[EventChunk]:
    """The last `max_length` events of every user, and then the user's later events, users in the order of positions.

    later: at least one chunk (it may be empty), users rising; it may have users that the older histories have not.
    """
    left = iter(later)
    waiting = next(left, None)
    for chunk, stop in _newest(older, max_length):
        parts = [chunk]
        while waiting is not None:
            cut = int(np.searchsorted(waiting.users, stop))
            parts.append(part_of(waiting, slice(0, cut)))
            waiting = part_of(waiting, slice(cut, None))
            if len(waiting.users):
                break
            waiting = next(left, None)
        both = joined(parts)
        yield part_of(both, np.argsort(both.users, kind="stable"))
    yield from chain([] if waiting is None else [waiting], left)


def _newest(older: Histories, max_length: int) -> Iterator[tuple[EventChunk, int]]:
    """The last `max_length` events of some users, oldest first, and the first user that comes after them."""
    ends = np.cumsum(np.minimum(np.diff(older.offsets), max_length))  # [U]
    first, before = 0, 0
    while first < len(ends):
        stop = max(first + 1, int(np.searchsorted(ends, before + CHUNK_EVENTS, side="right")))
        users = np.arange(first, stop)
        events, offsets = older.slice(users, np.full(len(users), -1), max_length)
        chunk = EventChunk(
            users=np.repeat(users, np.diff(offsets)),
            items=older.column("items", events),
            splits=older.column("splits", events),
            timestamps=older.column("timestamps", events),
            columns={name: older.column(name, events) for name in older.columns},
        )
        yield chunk, stop
        first, before = stop, int(ends[stop - 1])


def in_position_order(database: Database, chunks: Iterable[EventChunk]) -> Iterator[EventChunk]:
    """Events in any order, again in the order of user positions, those of a user in the order in which they came.

    They are sorted on disk. At least one chunk must come, which may be empty (it names the columns).
    """
    left = iter(chunks)
    first = next(left)
    stored = database.store_arrow("history_events", _reader(first, left))
    empty = True
    for batch in database.stream(stored.order_by(_USER, _PLACE)):
        empty = False
        yield _chunk(batch)
    if empty:
        yield first


def _reader(first: EventChunk, others: Iterator[EventChunk]) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        place = 0
        for chunk in chain([first], others):
            yield _batch(chunk, place)
            place += len(chunk.users)

    return pa.RecordBatchReader.from_batches(_batch(first, 0).schema, batches())


def _batch(chunk: EventChunk, place: int) -> pa.RecordBatch:
    places = np.arange(place, place + len(chunk.users))
    arrays = {_USER: np.asarray(chunk.users, np.int64), _PLACE: places} | chunk.arrays()
    return pa.RecordBatch.from_pydict({name: pa.array(array) for name, array in arrays.items()})


def _chunk(batch: pa.RecordBatch) -> EventChunk:
    arrays = {name: batch[name].to_numpy() for name in batch.schema.names}
    return EventChunk(
        users=arrays[_USER],
        items=arrays["items"],
        splits=arrays["splits"],
        timestamps=arrays.get("timestamps"),
        columns={name.removeprefix(_COLUMN): array for name, array in arrays.items() if name.startswith(_COLUMN)},
    )

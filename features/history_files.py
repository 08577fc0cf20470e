"""Writing histories: events that come grouped by user, in chunks, to one growing .npy file per column.

The stored order of the two kinds (`ordered` and set) is decided here; what it means, and how it is read, stands in
`histories`.

Shapes: n events of a chunk, U users.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from features.hashes import mix64
from features.storage import folder_aside, third_party, write_json

Array = NDArray[Any]
FORMAT = 1
_SET_ORDER_SALT = 0x5E7


@dataclass(frozen=True, kw_only=True)
class EventChunk:
    """Some events, grouped by user: `users` must not fall, within a chunk and from one chunk to the next.

    Shapes: all [n]. users, items: positions in the entity tables (item -1: unknown); splits: index into
    `histories.SPLITS`; timestamps: any unit (None for sets); columns: encoded event features that sequences repeat,
    int64 rows or float32 numbers.
    """

    users: Array
    items: Array
    splits: Array
    timestamps: Array | None = None
    columns: Mapping[str, Array] = field(default_factory=dict)

    def arrays(self) -> dict[str, Array]:
        """What is stored per event, by file name, in the stored types."""
        named: dict[str, Array] = {
            "items": np.asarray(self.items, np.int64),
            "splits": np.asarray(self.splits, np.uint8),
        }
        if self.timestamps is not None:
            named["timestamps"] = np.asarray(self.timestamps, np.int64)
        return named | {f"column.{name}": _column(name, column) for name, column in self.columns.items()}


def write_histories(
    path: Path, chunks: Iterable[EventChunk], num_users: int, ordered: bool, ticks_per_second: int = 1
) -> None:
    """The folder that `Histories.open` maps; `Histories.build` says what is accepted."""
    counts = np.zeros(num_users, np.int64)
    with folder_aside(path) as folder:
        with third_party("histories", folder), _ColumnFiles(folder) as columns:
            for chunk in _whole_users(chunks, num_users):
                arranged = _arranged(chunk, ordered)
                counts += np.bincount(arranged.users, minlength=num_users)
                columns.append(arranged.arrays())
            files = columns.finish()
            np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
        about = {"format": FORMAT, "ordered": ordered, "ticks_per_second": ticks_per_second, "files": files}
        write_json(folder / "histories.json", about)


def place_in_set(items: Array) -> Array:
    """What a user's events of one split are sorted by in a set, [n]: a one-to-one hash of the item position."""
    return mix64(np.asarray(items, np.int64), _SET_ORDER_SALT)


def _whole_users(chunks: Iterable[EventChunk], num_users: int) -> Iterator[EventChunk]:
    """Re-cut chunks so that no user spans two of them; checks that users rise and are known."""
    held: list[EventChunk] = []
    last = 0
    for chunk in chunks:
        _check_columns(chunk, held[-1] if held else chunk)
        _check_users(chunk.users, last, num_users)
        if len(chunk.users) == 0:
            held.append(chunk)
            continue
        earlier, last = last, int(chunk.users[-1])
        complete = int(np.searchsorted(chunk.users, last))
        if complete or earlier != last:
            yield joined([*held, part_of(chunk, slice(0, complete))])
            held = []
        held.append(part_of(chunk, slice(complete, None)))
    if not held:
        raise ValueError("no chunk of history events came; give an empty one when there are none")
    yield joined(held)


def _check_columns(chunk: EventChunk, earlier: EventChunk) -> None:
    names, wanted = sorted(chunk.arrays()), sorted(earlier.arrays())
    if names != wanted:
        raise ValueError(f"chunks of history events differ in columns: {wanted} and then {names}")


def _check_users(users: Array, last: int, num_users: int) -> None:
    falls = (np.diff(users, prepend=last) < 0).nonzero()[0]
    if len(falls):
        raise ValueError(f"history events must be grouped by rising user position; user {users[falls[0]]} comes late")
    if len(users) and users[-1] >= num_users:
        raise ValueError(f"history event of user position {users[-1]}, but there are {num_users} users")


def part_of(chunk: EventChunk, rows: Any) -> EventChunk:
    """Some events of a chunk: a slice, a mask or indices."""
    return EventChunk(
        users=chunk.users[rows],
        items=chunk.items[rows],
        splits=chunk.splits[rows],
        timestamps=None if chunk.timestamps is None else chunk.timestamps[rows],
        columns={name: column[rows] for name, column in chunk.columns.items()},
    )


def joined(chunks: Sequence[EventChunk]) -> EventChunk:
    """Chunks one after the other, in the order given."""
    times = [chunk.timestamps for chunk in chunks if chunk.timestamps is not None]  # of all chunks, or of none
    return EventChunk(
        users=np.concatenate([chunk.users for chunk in chunks]),
        items=np.concatenate([chunk.items for chunk in chunks]),
        splits=np.concatenate([chunk.splits for chunk in chunks]),
        timestamps=np.concatenate(times) if times else None,
        columns={name: np.concatenate([chunk.columns[name] for chunk in chunks]) for name in chunks[0].columns},
    )


def _arranged(chunk: EventChunk, ordered: bool) -> EventChunk:
    """The chunk in the stored order of its kind."""
    if ordered:
        if chunk.timestamps is None:
            raise ValueError(
                "an ordered history needs timestamps; declare the sequences `ordered = false` without them"
            )
        return part_of(chunk, np.lexsort((chunk.splits, chunk.timestamps, chunk.users)))
    return part_of(chunk, _order_of_set(chunk))


def _order_of_set(chunk: EventChunk) -> Array:
    places = place_in_set(chunk.items)
    order = np.lexsort((chunk.splits, places, chunk.users))
    users, items = chunk.users[order], chunk.items[order]
    first = np.ones(len(order), bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    order = order[first]
    return order[np.lexsort((places[order], chunk.splits[order], chunk.users[order]))]


def _column(name: str, column: Array) -> Array:
    array = np.asarray(column)
    if array.dtype not in (np.int64, np.float32):
        raise ValueError(
            f"history column {name!r} has type {array.dtype}, accepted are int64 (ids) and float32 (dense)"
        )
    return array


class _ColumnFiles(AbstractContextManager["_ColumnFiles"]):
    """One .npy file per array, appended to chunk by chunk; its header is completed by `finish`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        self._length = 0

    def append(self, arrays: Mapping[str, Array]) -> None:
        if not self._files:
            for number, (name, array) in enumerate(arrays.items()):
                self._files[name] = (self._folder / f"{_file_stem(name, number)}.npy").open("wb")
                self._types[name] = array.dtype
            self._write_headers()
        for name, array in arrays.items():
            self._files[name].write(np.ascontiguousarray(array, self._types[name]).data)
        self._length += len(arrays["items"])

    def finish(self) -> dict[str, str]:
        """Complete the files; which array lies in which."""
        ends = {name: file.tell() for name, file in self._files.items()}
        self._write_headers()
        for name, file in self._files.items():
            assert ends[name] == file.tell() + self._length * self._types[name].itemsize, name
        return {name: Path(file.name).name for name, file in self._files.items()}

    def _write_headers(self) -> None:
        """NumPy pads a header so that a longer length fits in the same bytes."""
        for name, file in self._files.items():
            file.seek(0)
            about = {"descr": self._types[name].str, "fortran_order": False, "shape": (self._length,)}
            np.lib.format.write_array_header_1_0(file, about)

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


def _file_stem(name: str, number: int) -> str:
    """A feature may be called anything, a file may not."""
    return f"column-{number}" if name.startswith("column.") else name

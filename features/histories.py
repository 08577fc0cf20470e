"""Each user's past events, stored once: `Histories`, and the one kernel that cuts what an example may see.

An example is (user, position, target); its sequences are cut out of the stored events when a batch is made, by the
same kernel when training (`Loader`) and when serving (`Histories.of_request`). Nothing here knows labels, files of
examples or models.

Two kinds, as the schema's sequence group states (`SequenceGroup.ordered`):

- **ordered**: events stand in time order (ties: earlier split first, then as they came). The position of an example is
  the number of its user's events with a timestamp *strictly before* its own, so an event never sees itself nor one of
  its own second. It sees the last `max_length` events before the position.
- **set** (no timestamps): each (user, item) once, in the earliest split that has it, ordered by split and then by a
  hash of the item, so that a set cut at `max_length` is a fair sample. The position of an example is the index of its
  own item among its user's events, or -1 when it is not there. It sees all but that event, starting after it and
  wrapping round.

Position -1 means "all that is visible", in both kinds.

How long ago an event was (`SequenceGroup.age`) is counted when it is cut: by its place from the newest one that the
example sees, or by the seconds to the example's time.

A request's own history (`of_request`) is one more ordered history. Where its events carry times they may come in any
order: they are sorted by time (ties stay as given), and an event at or after the request's time is not visible, as no
event at or after an example's time is. An empty history is an empty row of every sequence; of one longer than
`max_length` the newest events are read.

How `prepare` uses it: filter the events to those that belong (the sequence groups' `label`, see `history_label`),
hand them over grouped by rising user position, then ask for the positions of any examples, whether they belong or not:

    histories = Histories.build(path, chunks, num_users=len(users), ordered=True)
    histories.positions(user, timestamps=timestamp)      # ordered
    histories.positions(user, items=item)                # set

Shapes: U users, E events, B examples, N events cut for a batch. User and item positions are rows of the entity tables.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from features.batch import Jagged
from features.entities import EntityTable
from features.history_files import FORMAT, EventChunk, place_in_set, write_histories
from features.spec import Age, FeatureSchema, SequenceGroup

Array = NDArray[Any]
SPLITS = ("train", "validation", "test")


class Histories:
    """The events of all users, in memory or memory-mapped.

    offsets [U + 1]: user u's events are offsets[u]:offsets[u + 1]. arrays: "items", "splits", perhaps "timestamps",
    and "column.<feature>", each [E]. ticks_per_second: the unit of timestamps.
    """

    def __init__(
        self, offsets: Array, arrays: Mapping[str, Array], *, ordered: bool, ticks_per_second: int = 1
    ) -> None:
        self.offsets = offsets
        self.ordered = ordered
        self.ticks_per_second = ticks_per_second
        self._arrays = dict(arrays)
        wrong = {name: len(array) for name, array in arrays.items() if len(array) != int(offsets[-1])}
        if wrong:
            raise ValueError(f"histories: offsets end at event {int(offsets[-1])}, but columns hold {wrong} events")

    @staticmethod
    def build(
        path: Path, chunks: Iterable[EventChunk], *, num_users: int, ordered: bool, ticks_per_second: int = 1
    ) -> "Histories":
        """Write the histories of `num_users` users as a new folder and open it.

        At least one chunk, which may be empty (it names the columns). Memory is bounded by one chunk and one user's
        events. Raises ValueError when users fall, lie outside [0, num_users), when chunks differ in columns, or when
        an ordered history has no timestamps.
        """
        write_histories(path, chunks, num_users, ordered, ticks_per_second)
        return Histories.open(path)

    @staticmethod
    def open(path: Path) -> "Histories":
        """Map a folder written by `build`."""
        about = json.loads((path / "histories.json").read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"{path}: histories of format {about['format']}, this version reads {FORMAT}")
        offsets = np.load(path / "offsets.npy")
        mode: Literal["r"] | None = "r" if offsets[-1] else None
        arrays = {name: np.asarray(np.load(path / file, mmap_mode=mode)) for name, file in about["files"].items()}
        ticks = about.get("ticks_per_second", 1)
        return Histories(offsets, arrays, ordered=about["ordered"], ticks_per_second=ticks)

    @staticmethod
    def of_request(
        items: ArrayLike,
        columns: Mapping[str, Array] | None = None,
        *,
        ordered: bool = True,
        timestamps: ArrayLike | None = None,
        ticks_per_second: int = 1,
    ) -> "Histories":
        """The history of one request, as user 0: item positions [E] (-1: an item that is not known), in time order.

        With timestamps [E] the events of an ordered one may come in any order. Raises ValueError for columns of other
        lengths.
        """
        positions = np.asarray(items, np.int64)
        none = np.zeros(len(positions), np.int64)
        times = None if timestamps is None else np.asarray(timestamps, np.int64)
        chunk = EventChunk(users=none, items=positions, splits=none, timestamps=times, columns=columns or {})
        arrays = chunk.arrays()
        if times is not None and ordered and len(times) == len(positions):
            order = np.argsort(times, kind="stable")
            arrays = {name: array[order] for name, array in arrays.items()}
        offsets = np.array([0, len(positions)])
        return Histories(offsets, arrays, ordered=ordered, ticks_per_second=ticks_per_second)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """E."""
        return int(self.offsets[-1])

    @property
    def items(self) -> Array:
        """Item positions, [E] int64."""
        return self._arrays["items"]

    @property
    def columns(self) -> tuple[str, ...]:
        """The event features kept beside the items."""
        return tuple(name.removeprefix("column.") for name in self._arrays if name.startswith("column."))

    @property
    def keeps_times(self) -> bool:
        """Whether the events carry timestamps."""
        return "timestamps" in self._arrays

    def latest(self, ends: Array | None = None) -> int:
        """The time of the newest event before `ends` [U] (default: of all), of ordered histories; 0 without events."""
        stops = self.offsets[1:] if ends is None else ends
        last = stops[stops > self.offsets[:-1]] - 1
        return int(self.column("timestamps", last).max()) if len(last) and self.keeps_times else 0

    def column(self, name: str, events: ArrayLike) -> Array:
        """An event feature, or "items", "timestamps", "splits", of the events, [N]."""
        stored = name if name in self._arrays else f"column.{name}"
        if stored not in self._arrays:
            raise ValueError(f"the histories keep no event feature {name!r}; they have {sorted(self._arrays)}")
        return np.asarray(self._arrays[stored][np.asarray(events)])

    def ends(self, splits: Sequence[str]) -> Array:
        """Where each user's events of these splits end, [U] int64: what is visible when those splits are all known.

        Raises ValueError when in some user's history they are not a prefix (an ordered history with a random split):
        then no end separates them from the others.
        """
        counts = self._counts_before(splits)
        starts = self.offsets[:-1]
        ends = starts + counts[self.offsets[1:]] - counts[starts]
        broken = (counts[ends] - counts[starts] != ends - starts).nonzero()[0]
        if len(broken):
            raise ValueError(
                f"events of splits {list(splits)} and others are mixed in the history of user position {broken[0]}; "
                "split by time, or declare the sequences `ordered = false`"
            )
        return ends

    def positions(
        self, users: ArrayLike, *, timestamps: ArrayLike | None = None, items: ArrayLike | None = None
    ) -> Array:
        """The positions of examples [B]: give their timestamps for an ordered history, their items for a set.

        A user position of -1 (unknown) has no events.
        """
        users = np.asarray(users, np.int64)
        if self.ordered:
            if timestamps is None or items is not None:
                raise ValueError("positions in an ordered history are found by `timestamps` alone")
            return self._events_before(users, np.asarray(timestamps, np.int64))
        if items is None or timestamps is not None:
            raise ValueError("positions in a set history are found by `items` alone")
        return self._index_of(users, np.asarray(items, np.int64))

    def slice(
        self, users: ArrayLike, positions: ArrayLike, max_length: int, ends: Array | None = None
    ) -> tuple[Array, Array]:
        """The events that examples see: indices [N], and offsets [B + 1] into them, in time order.

        users, positions: [B]; user -1 (unknown) has no events, position -1 sees all up to `ends` [U] (default: all).
        """
        starts, stops = self._visible(np.asarray(users, np.int64), ends)
        cut = _cut_ordered if self.ordered else _cut_set
        return cut(starts, stops, np.asarray(positions, np.int64), max_length)

    def cut(
        self,
        group: SequenceGroup,
        users: ArrayLike,
        positions: ArrayLike,
        items: EntityTable,
        ends: Array | None = None,
        times: ArrayLike | None = None,
    ) -> dict[str, Jagged]:
        """The aligned sequences of one group, a row for each example: an item feature through the item table, an event
        feature from the columns kept here, the age of events from their places or their times.

        times: of the examples, [B], in the unit of the log; for an age by time alone.
        """
        if group.ordered != self.ordered:
            raise ValueError(f"sequence group {group.name!r} has ordered = {group.ordered}, the histories have not")
        events, offsets = self.slice(users, positions, group.max_length, ends)
        of_items = [source for source in group.of.values() if source in items.features.features]
        named = items.gather(torch.from_numpy(self.column("items", events)), of_items)
        bounds = torch.from_numpy(offsets)
        cut = {
            sequence: named.ids(source) if source in of_items else torch.from_numpy(self.column(source, events))
            for sequence, source in group.of.items()
        }
        if group.age is not None:
            cut[group.age.name] = torch.from_numpy(self._ages(group.age, events, offsets, times))
        return {sequence: Jagged(values=values, offsets=bounds) for sequence, values in cut.items()}

    def _ages(self, age: Age, events: Array, offsets: Array, times: ArrayLike | None) -> Array:
        """The ids of the age of the events [N] of examples that offsets [B + 1] tell apart."""
        lengths = np.diff(offsets)
        if age.by == "position":
            return age.ids(np.repeat(offsets[1:], lengths) - np.arange(len(events)))
        if times is None or not self.keeps_times:
            raise ValueError(f"age {age.name!r} is by time, which needs the times of examples and of their events")
        elapsed = np.repeat(np.asarray(times, np.int64), lengths) - self.column("timestamps", events)
        return age.ids(elapsed // self.ticks_per_second)

    def _visible(self, users: Array, ends: Array | None) -> tuple[Array, Array]:
        """First and past-the-last visible event of each user, [B] each."""
        if self.num_users == 0:
            return np.zeros_like(users), np.zeros_like(users)
        if len(users) and not (users.min() >= -1 and users.max() < self.num_users):
            raise ValueError(f"user positions span {users.min()}..{users.max()}, accepted -1..{self.num_users - 1}")
        starts = self.offsets[users]
        stops = self.offsets[users + 1] if ends is None else ends[users]
        return starts, np.where(users >= 0, stops, starts)

    def _events_before(self, users: Array, timestamps: Array) -> Array:
        starts, stops = self._visible(users, None)
        stored = self._arrays["timestamps"]
        return _lower_bound(lambda events: stored[events], starts, stops, timestamps) - starts

    def _index_of(self, users: Array, items: Array) -> Array:
        """Search each split's stretch, which is sorted by hash, for the item."""
        starts, _ = self._visible(users, None)
        wanted = place_in_set(items)
        found = np.full(len(users), -1, np.int64)
        low = starts
        for ends in self._ends_of_splits:
            high = self._visible(users, ends)[1]
            at = _lower_bound(lambda events: place_in_set(self.items[events]), low, high, wanted)
            hit = at < high
            hit[hit] = self.items[at[hit]] == items[hit]
            found = np.where(hit, at - starts, found)
            low = high
        return found

    @cached_property
    def _ends_of_splits(self) -> tuple[Array, ...]:
        return tuple(self.ends(SPLITS[: code + 1]) for code in range(len(SPLITS)))

    def _counts_before(self, splits: Sequence[str]) -> Array:
        """For each event index, how many events before it belong to the splits, [E + 1]."""
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown:
            raise ValueError(f"unknown splits {unknown}, accepted {list(SPLITS)}")
        codes = [SPLITS.index(split) for split in splits]
        inside = np.isin(self._arrays["splits"], codes)
        return np.concatenate([[0], np.cumsum(inside)])


def history_label(schema: FeatureSchema) -> str:
    """The label whose positive events make up the histories ("" = every event); ValueError when groups disagree."""
    labels = {group.name: group.label for group in schema.sequences}
    if len(set(labels.values())) > 1:
        raise ValueError(
            f"schema {schema.name!r}: sequence groups must name one label, as there is one history: {labels}"
        )
    return next(iter(labels.values()), "")


def _cut_ordered(starts: Array, stops: Array, positions: Array, max_length: int) -> tuple[Array, Array]:
    before = np.where(positions >= 0, np.minimum(starts + positions, stops), stops)
    firsts = np.maximum(starts, before - max_length)
    return _ranges(firsts, np.maximum(before - firsts, 0))


def _cut_set(starts: Array, stops: Array, positions: Array, max_length: int) -> tuple[Array, Array]:
    sizes = stops - starts
    own = (positions >= 0) & (positions < sizes)
    lengths = np.minimum(sizes - own, max_length)
    turns, offsets = _ranges(np.where(own, positions + 1, 0), lengths)
    turns %= np.repeat(np.maximum(sizes, 1), lengths)
    return turns + np.repeat(starts, lengths), offsets


def _ranges(firsts: Array, lengths: Array) -> tuple[Array, Array]:
    """firsts[i] .. firsts[i] + lengths[i] - 1 one after the other [N], and the offsets [B + 1]."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.repeat(firsts - offsets[:-1], lengths) + np.arange(offsets[-1]), offsets


def _lower_bound(key_of: Callable[[Array], Array], low: Array, high: Array, wanted: Array) -> Array:
    """The first event of low..high whose key is not below `wanted` (else high), for each of [B] stretches that rise."""
    low, high = low.copy(), high.copy()
    while (searching := low < high).any():
        middle = (low + high) // 2
        below = np.zeros(len(low), bool)
        below[searching] = key_of(middle[searching]) < wanted[searching]
        low = np.where(below, middle + 1, low)
        high = np.where(searching & ~below, middle, high)
    return low

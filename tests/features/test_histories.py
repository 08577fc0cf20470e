"""Histories against a naive loop over rows, the positions of examples, and aligned sequences."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.random import Generator

from features.encoder import Encoder
from features.entities import EntityTable
from features.histories import SPLITS, Histories, history_label
from features.history_files import EventChunk
from features.spec import FeatureSchema, SequenceGroup, parse_schema

NUM_USERS, NUM_ITEMS = 7, 12
ITEMS = {"item": {"entity": "item", "table": "ids"}, "category": {"entity": "item", "table": "ids"}}
USER = {"user": {"entity": "user", "table": "ids"}}
GROUP = {"of": {"past": "item", "past_category": "category", "past_action": "action"}, "max_length": 3}


def schema_with(**groups: dict[str, Any]) -> FeatureSchema:
    features = USER | ITEMS | {"action": {"table": "ids"}}
    labels: dict[str, dict[str, str]] = {name: {} for group in groups.values() if (name := group.get("label"))}
    named = {"name": "s", "user": "user", "item": "item", "features": features, "sequences": groups, "labels": labels}
    return parse_schema(named, "test")


def item_table() -> EntityTable:
    raw = pa.table({"item": np.arange(NUM_ITEMS), "category": np.arange(NUM_ITEMS) % 4})
    users_and_events = {"user": np.zeros(NUM_ITEMS, int), "action": np.zeros(NUM_ITEMS, int)}
    schema = schema_with(history=GROUP)
    encoder = Encoder.fit(schema, pa.table({name: raw[name] for name in raw.column_names} | users_and_events))
    return EntityTable.build(schema, encoder, "item", raw)


def random_events(rng: Generator, size: int, ordered: bool) -> EventChunk:
    """Of few users, items and seconds, so that ties and repetitions abound; one user has none."""
    users = np.sort(rng.integers(0, NUM_USERS - 1, size))
    seconds = rng.integers(0, 20, size)
    return EventChunk(
        users=users,
        items=rng.integers(0, NUM_ITEMS, size),
        splits=np.minimum(seconds // 7, 2),
        timestamps=seconds if ordered else None,
        columns={"action": np.arange(size), "price": rng.random(size, np.float32)},
    )


def in_chunks(events: EventChunk, rng: Generator) -> list[EventChunk]:
    cuts = np.sort(rng.integers(0, len(events.users) + 1, 4))
    parts = [np.split(np.asarray(values), cuts) for values in (events.users, events.items, events.splits)]
    times = [None] * 5 if events.timestamps is None else np.split(events.timestamps, cuts)
    columns = {name: np.split(column, cuts) for name, column in events.columns.items()}
    return [
        EventChunk(users=u, items=i, splits=s, timestamps=t, columns={name: columns[name][k] for name in columns})
        for k, (u, i, s, t) in enumerate(zip(*parts, times, strict=True))
    ]


def built(path: Path, seed: int, ordered: bool, size: int = 60) -> tuple[Histories, EventChunk, Generator]:
    rng = np.random.default_rng(seed)
    events = random_events(rng, size, ordered)
    chunks = in_chunks(events, rng)
    return Histories.build(path / "h", chunks, num_users=NUM_USERS, ordered=ordered), events, rng


def naive_slice(histories: Histories, user: int, position: int, max_length: int, ends: Any = None) -> list[int]:
    """One row by its definition."""
    if user < 0:
        return []
    start, stop = histories.offsets[user], histories.offsets[user + 1] if ends is None else ends[user]
    if histories.ordered:
        seen = [event for event in range(start, stop) if position < 0 or event < start + position]
        return seen[-max_length:]
    turned = [event for event in range(start, stop) if event > start + position]
    turned += [event for event in range(start, stop) if event <= start + position]
    if not 0 <= position < stop - start:
        return list(range(start, stop))[:max_length]
    return [event for event in turned if event != start + position][:max_length]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_slice_equals_a_loop_over_rows(tmp_path: Path, ordered: bool, seed: int) -> None:
    histories, _, rng = built(tmp_path, seed, ordered)
    users, positions = rng.integers(-1, NUM_USERS, 200), rng.integers(-1, 15, 200)
    for ends in (None, histories.ends(["train"]), histories.ends(["train", "validation"])):
        for max_length in (1, 3, 100):
            events, offsets = histories.slice(users, positions, max_length, ends)
            rows = [events[offsets[row] : offsets[row + 1]].tolist() for row in range(200)]
            pairs = zip(users, positions, strict=True)
            assert rows == [naive_slice(histories, user, at, max_length, ends) for user, at in pairs]


@pytest.mark.parametrize("seed", range(4))
def test_ordered_history_keeps_every_event_in_time_order(tmp_path: Path, seed: int) -> None:
    histories, events, _ = built(tmp_path, seed, ordered=True)
    order = sorted(range(60), key=lambda e: (events.users[e], events.timestamps[e], events.splits[e], e))  # type: ignore[index]
    assert histories.column("action", np.arange(60)).tolist() == order
    assert histories.items.tolist() == events.items[order].tolist()
    assert np.array_equal(histories.column("price", np.arange(60)), events.columns["price"][order])


@pytest.mark.parametrize("seed", range(4))
def test_set_history_keeps_each_item_once_in_its_earliest_split(tmp_path: Path, seed: int) -> None:
    histories, events, _ = built(tmp_path, seed, ordered=False)
    wanted: dict[tuple[int, int], int] = {}
    for user, item, split in zip(events.users.tolist(), events.items.tolist(), events.splits.tolist(), strict=True):
        wanted[user, item] = min(split, wanted.get((user, item), 9))
    users = np.repeat(np.arange(NUM_USERS), np.diff(histories.offsets)).tolist()
    splits = histories.column("splits", np.arange(histories.num_events)).tolist()
    assert dict(zip(zip(users, histories.items.tolist(), strict=True), splits, strict=True)) == wanted
    assert len(users) == len(wanted)


@pytest.mark.parametrize("seed", range(4))
def test_position_counts_events_strictly_before(tmp_path: Path, seed: int) -> None:
    histories, events, rng = built(tmp_path, seed, ordered=True)
    users, seconds = rng.integers(-1, NUM_USERS, 100), rng.integers(-1, 22, 100)
    pairs = zip(users, seconds, strict=True)
    before = [int(((events.users == user) & (events.timestamps < second)).sum()) for user, second in pairs]
    assert histories.positions(users, timestamps=seconds).tolist() == before


def test_event_sees_neither_itself_nor_its_own_second(tmp_path: Path) -> None:
    histories, events, _ = built(tmp_path, 1, ordered=True)
    positions = histories.positions(events.users, timestamps=events.timestamps)
    seen, offsets = histories.slice(events.users, positions, 100)
    own_second = np.repeat(np.asarray(events.timestamps), np.diff(offsets))
    assert (histories.column("timestamps", seen) < own_second).all()


@pytest.mark.parametrize("seed", range(4))
def test_position_in_a_set_is_the_own_item(tmp_path: Path, seed: int) -> None:
    histories, events, rng = built(tmp_path, seed, ordered=False)
    users, items = rng.integers(-1, NUM_USERS, 200), rng.integers(0, NUM_ITEMS, 200)
    positions = histories.positions(users, items=items)
    owned = set(zip(events.users.tolist(), events.items.tolist(), strict=True))
    has = [pair in owned for pair in zip(users.tolist(), items.tolist(), strict=True)]
    assert (positions >= 0).tolist() == has
    found = positions >= 0
    assert histories.items[histories.offsets[users[found]] + positions[found]].tolist() == items[found].tolist()
    seen, offsets = histories.slice(users, positions, 100)
    assert not (histories.items[seen] == np.repeat(items, np.diff(offsets))).any()


def test_ends_count_the_events_of_the_splits(tmp_path: Path) -> None:
    histories, _, _ = built(tmp_path, 2, ordered=True)
    users = np.repeat(np.arange(NUM_USERS), np.diff(histories.offsets))
    splits = histories.column("splits", np.arange(60))
    for stop in (1, 2, 3):
        counts = np.bincount(users[splits < stop], minlength=NUM_USERS)
        assert (histories.ends(SPLITS[:stop]) - histories.offsets[:-1]).tolist() == counts.tolist()


def test_ends_refuse_mixed_splits(tmp_path: Path) -> None:
    chunk = EventChunk(
        users=np.array([2, 2]), items=np.zeros(2, int), splits=np.array([1, 0]), timestamps=np.array([5, 6])
    )
    histories = Histories.build(tmp_path / "h", [chunk], num_users=3, ordered=True)
    with pytest.raises(ValueError, match="mixed in the history of user position 2"):
        histories.ends(["train"])
    with pytest.raises(ValueError, match=r"unknown splits \['tset'\]"):
        histories.ends(["tset"])


def test_cut_sequences_stay_aligned(tmp_path: Path) -> None:
    histories, _, rng = built(tmp_path, 3, ordered=True)
    group = schema_with(history=GROUP).sequences[0]
    users, positions = torch.from_numpy(rng.integers(-1, NUM_USERS, 50)), torch.from_numpy(rng.integers(-1, 12, 50))
    table = item_table()
    cut = histories.cut(group, users, positions, table)
    events, offsets = histories.slice(users, positions, 3)
    of_item = torch.from_numpy(histories.items[events])
    assert cut["past"].offsets.tolist() == cut["past_action"].offsets.tolist() == offsets.tolist()
    assert cut["past"].values.tolist() == table.features.ids("item")[of_item].tolist()
    assert cut["past_category"].values.tolist() == table.features.ids("category")[of_item].tolist()
    assert cut["past_action"].values.tolist() == histories.column("action", events).tolist()


def test_request_history_is_cut_as_the_stored_one() -> None:
    group = SequenceGroup(name="history", of={"past": "item"}, max_length=3)
    cut = Histories.of_request([5, 1, -1, 4]).cut(group, [0], [-1], item_table())
    assert cut["past"].values.tolist() == [2, 0, 5]  # row 0: an unknown item
    everything = Histories.of_request([5, 1], ordered=False)
    assert everything.cut(group.model_copy(update={"ordered": False}), [0], [-1], item_table())["past"].lengths == 2


def test_request_history_with_times_may_come_in_any_order() -> None:
    times, items, actions = [30, 10, 20, 10], [5, 1, 4, 2], [0, 1, 2, 3]
    request = Histories.of_request(items, {"action": np.array(actions)}, timestamps=times)
    assert request.items.tolist() == [1, 2, 4, 5]  # ties as they came
    assert request.column("action", np.arange(4)).tolist() == [1, 3, 2, 0]
    assert request.latest() == 30
    with pytest.raises(ValueError, match="columns hold"):
        Histories.of_request(items, timestamps=[1, 2])


@pytest.mark.parametrize(("now", "seen"), [(5, []), (10, []), (11, [1, 2]), (30, [1, 2, 4]), (31, [1, 2, 4, 5])])
def test_request_history_sees_nothing_of_its_own_time_or_later(now: int, seen: list[int]) -> None:
    request = Histories.of_request([5, 1, 4, 2], timestamps=[30, 10, 20, 10])
    events, _ = request.slice([0], request.positions([0], timestamps=[now]), 9)
    assert request.items[events].tolist() == seen


def aged(by: str, **values: Any) -> SequenceGroup:
    group = {"name": "history", "of": {"past": "item"}, "max_length": 3, "age": {"name": "age", "by": by, "table": "t"}}
    return SequenceGroup.model_validate(group | values)


@pytest.mark.parametrize("seed", range(3))
def test_age_by_position_numbers_what_is_seen_from_the_newest(tmp_path: Path, seed: int) -> None:
    histories, _, rng = built(tmp_path, seed, ordered=True)
    users, positions = rng.integers(-1, NUM_USERS, 50), rng.integers(-1, 12, 50)
    cut = histories.cut(aged("position"), users, positions, item_table())
    expected = [age for length in cut["past"].lengths.tolist() for age in range(length, 0, -1)]
    assert cut["age"].values.tolist() == expected
    assert cut["age"].offsets.tolist() == cut["past"].offsets.tolist()


@pytest.mark.parametrize("ticks", [1, 1000])
def test_age_by_time_is_that_of_the_seconds_to_the_example(tmp_path: Path, ticks: int) -> None:
    events = random_events(np.random.default_rng(3), 60, ordered=True)
    assert events.timestamps is not None
    times = events.timestamps * 700
    chunk = EventChunk(users=events.users, items=events.items, splits=events.splits, timestamps=times)
    path = tmp_path / "h"
    Histories.build(path, [chunk], num_users=NUM_USERS, ordered=True, ticks_per_second=ticks)
    histories = Histories.open(path)
    positions = histories.positions(events.users, timestamps=times)
    cut = histories.cut(aged("time"), events.users, positions, item_table(), times=times)["age"]
    seen, offsets = histories.slice(events.users, positions, 3)
    seconds = (np.repeat(times, np.diff(offsets)) - histories.column("timestamps", seen)) // ticks
    assert cut.values.tolist() == [1 + int(np.log2(1 + second)) for second in seconds]
    with pytest.raises(ValueError, match="'age' is by time, which needs the times of examples"):
        histories.cut(aged("time"), events.users, positions, item_table())


def test_latest_is_the_newest_visible_event(tmp_path: Path) -> None:
    histories, events, _ = built(tmp_path, 2, ordered=True)
    assert events.timestamps is not None
    assert histories.latest() == events.timestamps.max()
    assert histories.latest(histories.ends(["train"])) == events.timestamps[events.splits == 0].max()
    assert Histories.of_request([], timestamps=[]).latest() == 0


def test_ten_thousand_events_are_cut_as_a_few() -> None:
    size = 10_000
    group = aged("position", max_length=size)
    cut = Histories.of_request(np.arange(2 * size) % NUM_ITEMS).cut(group, [0, 0], [-1, size // 2], item_table())
    assert cut["past"].lengths.tolist() == [size, size // 2]
    expected = [*range(size, 0, -1), *range(size // 2, 0, -1)]
    assert cut["age"].values.tolist() == expected


def test_cut_refuses_the_other_kind_and_missing_columns(tmp_path: Path) -> None:
    histories, _, _ = built(tmp_path, 4, ordered=True)
    unordered = SequenceGroup(name="history", of={"past": "item"}, max_length=3, ordered=False)
    with pytest.raises(ValueError, match="'history' has ordered = False"):
        histories.cut(unordered, [0], [-1], item_table())
    other = SequenceGroup(name="history", of={"past": "distance"}, max_length=3)
    with pytest.raises(ValueError, match="no event feature 'distance'"):
        histories.cut(other, [0], [-1], item_table())
    with pytest.raises(ValueError, match=r"span 0\.\.7, accepted -1\.\.6"):
        histories.slice([0, 7], [0, 0], 3)


def test_histories_without_events_or_users(tmp_path: Path) -> None:
    none = np.zeros(0, np.int64)
    chunk = EventChunk(users=none, items=none, splits=none, timestamps=none, columns={"action": none})
    for num_users in (0, 3):
        histories = Histories.build(tmp_path / str(num_users), [chunk], num_users=num_users, ordered=True)
        events, offsets = histories.slice([-1] * 2, [-1, 0], 5)
        assert histories.columns == ("action",)
        assert (len(events), offsets.tolist()) == (0, [0, 0, 0])
        assert histories.positions([-1], timestamps=[3]).tolist() == [0]


def test_labels_of_sequence_groups_must_agree() -> None:
    clicks = GROUP | {"label": "click"}
    others = {"of": {"shown": "item"}, "max_length": 3}
    assert history_label(schema_with(one=clicks)) == "click"
    assert history_label(schema_with()) == ""
    with pytest.raises(ValueError, match="must name one label"):
        history_label(schema_with(one=clicks, two=others))

"""Histories that go on, against concatenating each user's events in a loop."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from features import carried
from features.carried import carried_on, in_position_order
from features.database import Database
from features.histories import Histories
from features.history_files import EventChunk, joined, part_of

OLD_USERS, ALL_USERS = 9, 13


def events(rng: Generator, size: int, num_users: int, start: int) -> EventChunk:
    """In order of time; item, action and timestamp tell every event apart."""
    users = rng.integers(0, num_users, size)
    users[users == 3] = 4  # one has none
    number = np.arange(start, start + size)
    columns: dict[str, NDArray[Any]] = {"action": number * 10, "price": number.astype(np.float32)}
    return EventChunk(users=users, items=number, splits=np.zeros(size), timestamps=number, columns=columns)


def by_user(chunk: EventChunk) -> EventChunk:
    return part_of(chunk, np.argsort(chunk.users, kind="stable"))


def cut(chunk: EventChunk, rng: Generator) -> list[EventChunk]:
    bounds = [0, *np.sort(rng.integers(0, len(chunk.users) + 1, 4)), len(chunk.users)]
    return [part_of(chunk, slice(low, high)) for low, high in pairwise(bounds)]


@pytest.mark.parametrize("chunk_events", [1, 7, 1000])
@pytest.mark.parametrize(("older", "later"), [(60, 50), (0, 30), (40, 0), (0, 0)])
def test_carried_on_is_each_users_newest_events_and_then_the_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_events: int, older: int, later: int
) -> None:
    monkeypatch.setattr(carried, "CHUNK_EVENTS", chunk_events)
    rng = np.random.default_rng(0)
    first, second = events(rng, older, OLD_USERS, 0), events(rng, later, ALL_USERS, older)
    before = Histories.build(tmp_path / "before", [by_user(first)], num_users=OLD_USERS, ordered=True)
    stream = carried_on(before, 3, cut(by_user(second), rng))
    after = Histories.build(tmp_path / "after", stream, num_users=ALL_USERS, ordered=True)
    for user in range(ALL_USERS):
        mine = np.arange(after.offsets[user], after.offsets[user + 1])
        expected = [*first.items[first.users == user][-3:], *second.items[second.users == user]]
        assert after.items[mine].tolist() == expected
        assert after.column("action", mine).tolist() == [10 * item for item in expected]
    assert after.columns == ("action", "price")


def test_events_are_sorted_by_user_and_stay_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chunk = events(rng, 200, ALL_USERS, 0)
    with Database.open(tmp_path) as database:
        found = joined(list(in_position_order(database, cut(chunk, rng))))
    expected = by_user(chunk)
    assert found.users.tolist() == expected.users.tolist()
    assert {name: array.tolist() for name, array in found.arrays().items()} == {
        name: array.tolist() for name, array in expected.arrays().items()
    }
    assert {name: array.dtype for name, array in found.arrays().items()} == {
        name: array.dtype for name, array in expected.arrays().items()
    }


def test_no_events_are_one_empty_chunk(tmp_path: Path) -> None:
    empty = events(np.random.default_rng(0), 0, ALL_USERS, 0)
    with Database.open(tmp_path) as database:
        assert [len(chunk.users) for chunk in in_position_order(database, [empty])] == [0]

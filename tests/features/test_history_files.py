"""What histories cannot be built from, and writing that fails half-way; what is built is tested by test_histories."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.histories import Histories
from features.history_files import EventChunk
from features.storage import inject

NUM_USERS = 7


def one_event(user: int, **columns: Any) -> EventChunk:
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    return EventChunk(users=np.array([user]), items=np.zeros(1, int), splits=np.zeros(1, int), columns=arrays)


@pytest.mark.parametrize(
    ("users", "timestamps", "message"),
    [
        ([1, 0], [0, 0], "user 0 comes late"),
        ([-1, 0], [0, 0], "user -1 comes late"),
        ([0, 9], [0, 0], "user position 9, but there are 7"),
        ([0, 1], None, "needs timestamps"),
    ],
)
def test_build_refuses(tmp_path: Path, users: list[int], timestamps: list[int] | None, message: str) -> None:
    times = None if timestamps is None else np.array(timestamps)
    chunk = EventChunk(users=np.array(users), items=np.zeros(2, int), splits=np.zeros(2, int), timestamps=times)
    with pytest.raises(ValueError, match=message):
        Histories.build(tmp_path / "h", [chunk], num_users=NUM_USERS, ordered=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("second_user", [0, 1])
def test_build_refuses_columns_that_differ(tmp_path: Path, second_user: int) -> None:
    for first, second in ((one_event(0), one_event(second_user, x=[1])), (one_event(0, x=[1]), one_event(second_user))):
        with pytest.raises(ValueError, match="differ in columns"):
            Histories.build(tmp_path / "h", [first, second], num_users=2, ordered=False)
    assert list(tmp_path.iterdir()) == []


def test_build_refuses_text_and_silence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chunk"):
        Histories.build(tmp_path / "h", [], num_users=2, ordered=False)
    with pytest.raises(ValueError, match="'x' has type <U1, accepted are int64"):
        Histories.build(tmp_path / "h", [one_event(0, x=["a"])], num_users=2, ordered=False)


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_files_are_plain_npy(tmp_path: Path, kind: type) -> None:
    chunks = [one_event(user, **{"../x": np.array([user], kind)}) for user in range(1_000)]
    histories = Histories.build(tmp_path / "h", chunks, num_users=1_000, ordered=False)
    stored = np.load(tmp_path / "h" / "column-2.npy")
    assert (stored.dtype, stored.tolist()) == (kind, list(range(1_000)))
    assert np.load(tmp_path / "h" / "offsets.npy").tolist() == list(range(1_001))
    assert np.array_equal(histories.column("../x", np.arange(1_000)), stored)


def test_build_leaves_nothing_half_written(tmp_path: Path) -> None:
    with inject() as points:
        Histories.build(tmp_path / "whole" / "h", [one_event(0)], num_users=1, ordered=False)
    assert "half-written:histories" in points
    for number in range(1, len(points) + 1):
        path = tmp_path / str(number)
        with inject(number, "enospc"), pytest.raises(OSError, match="space"):
            Histories.build(path / "h", [one_event(0)], num_users=1, ordered=False)
        left = [child.name for child in path.iterdir()] if path.exists() else []
        assert left in ([], ["h"])
        if left:
            assert Histories.open(path / "h").num_events == 1


def test_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    Histories.build(tmp_path / "h", [one_event(0)], num_users=1, ordered=False)
    record = tmp_path / "h" / "histories.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(ValueError, match="histories of format 7, this version reads 1"):
        Histories.open(tmp_path / "h")

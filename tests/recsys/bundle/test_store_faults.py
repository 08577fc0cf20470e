import os
import signal
from pathlib import Path

import pytest

from features import storage
from recsys.bundle import BundleStore


def published(store: BundleStore, text: str) -> str:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "vectors").write_text(text)
        (folder / "sub" / "ids").write_text(text)

    return store.publish({"index": store.add_component("index", write)}, {"k": text}, {"note": text}, label="stable")


def killed_at(point: int, store: BundleStore) -> bool:
    """Publish "two" in a child process that dies at that point; whether it died."""
    child = os.fork()
    if child == 0:
        with storage.inject(point, "kill"):
            published(store, "two")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def points_of_publishing(folder: Path) -> list[str]:
    store = BundleStore(folder)
    published(store, "one")
    with storage.inject() as points:
        published(store, "two")
    return points


def test_publish_killed_at_every_point_leaves_a_whole_store(tmp_path: Path) -> None:
    points = points_of_publishing(tmp_path / "recorded")
    assert {point.partition(":")[0] for point in points} >= {"write", "rename", "fsync", "half-written", "create"}
    for number in range(1, len(points) + 1):
        store = BundleStore(tmp_path / str(number))
        old = published(store, "one")
        assert killed_at(number, store)
        assert store.verify() == []
        moved = store.open().id != old
        assert moved == ("rename:labels.json" in points[: number - 1])
        new = published(store, "two")  # finishes what was broken off, and cleans up
        assert store.open().id == new
        assert store.verify() == []
        left = [path.name for path in Path(store.location).rglob(".aside-*")]
        assert not [name for name in left if name.endswith("-component")]
    assert not killed_at(len(points) + 1, store)


def test_publish_on_a_full_disk_raises_and_leaves_a_whole_store(tmp_path: Path) -> None:
    points = points_of_publishing(tmp_path / "recorded")
    for number in range(1, len(points) + 1):
        store = BundleStore(tmp_path / str(number))
        published(store, "one")
        with storage.inject(number, "enospc"), pytest.raises(OSError, match="no space left"):
            published(store, "two")
        assert store.verify() == []
        assert published(store, "two") == store.open().id


def test_uri_publish_killed_at_every_point_leaves_the_old_label(tmp_path: Path) -> None:
    recorded = BundleStore((tmp_path / "recorded").as_uri(), cache=tmp_path / "cache")
    published(recorded, "one")
    with storage.inject() as points:
        published(recorded, "two")
    last_write = max(i for i, point in enumerate(points) if point == "write:labels.json")
    for number in range(1, len(points) + 1):
        store = BundleStore((tmp_path / str(number)).as_uri(), cache=tmp_path / f"cache{number}")
        old = published(store, "one")
        assert killed_at(number, store)
        assert BundleStore(tmp_path / str(number)).verify() == []
        moved = store.open().id != old
        assert moved == ("rename:labels.json" in points[last_write + 1 : number - 1])
        assert published(store, "two") == store.open().id


def test_writers_at_the_same_time_lose_no_label(tmp_path: Path) -> None:
    store = BundleStore(tmp_path)
    bundle = published(store, "one")
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            for step in range(5):
                store.label(f"l{number}-{step}", bundle)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(store.labels()) == 21

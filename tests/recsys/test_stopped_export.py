"""An export, or a preparing, that is killed or finds the disk full leaves what was there whole, and can be repeated.

Points are those of features/faults.py. By default one point of each kind is tried, and of an export every one of its
last steps, from manifest to label; `slow` tries all.
"""

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.recsys.forked import Forker, kind_of, once_each
from tests.recsys.small_project import write_project

FULL = "error: no space left on device"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def forker(folder: Path) -> Iterator[Forker]:
    with Forker(folder) as started:
        yield started


# --- export ---


@dataclass(frozen=True)
class Exported:
    """The folder `old` is a store with the bundle `before`; exporting the retriever there makes `after`."""

    before: str
    after: str
    points: list[str]


@pytest.fixture(scope="module")
def exported(forker: Forker, folder: Path) -> Exported:
    for name in ("retriever", "popularity"):
        assert forker.run("train", f"{name}.toml").code == 0
    assert forker.run("export", "runs/popularity", "--out", "old").code == 0
    shutil.copytree(folder / "old", folder / "new")
    points = forker.run("export", "runs/retriever", "--out", "new").points
    before, after = (forker.ask("verified", store)["stable"] for store in ("old", "new"))
    assert before != after
    assert points[-1] == "fsync-folder:of labels.json"
    return Exported(before, after, points)


def check_stopped(forker: Forker, exported: Exported, number: int, kind: str) -> None:
    shutil.copytree(forker.folder / "old", forker.folder / "store")
    export = ("export", "runs/retriever", "--out", "store")
    stopped = forker.run(*export, fault=f"{number}:{kind}")
    if kind == "kill":
        assert stopped.code == -signal.SIGKILL
    else:
        assert (stopped.code, stopped.err.startswith(FULL), stopped.err.count("\n")) == (2, True, 1)
    labelled = "rename:labels.json" in exported.points[: number - 1]
    stable = exported.after if labelled else exported.before
    assert forker.ask("verified", "store") == {"faults": [], "labels": {"stable": stable}, "stable": stable}
    assert forker.run(*export).code == 0
    stable = exported.after
    assert forker.ask("verified", "store") == {"faults": [], "labels": {"stable": stable}, "stable": stable}
    shutil.rmtree(forker.folder / "store")


def some_points(exported: Exported) -> list[int]:
    last = max(number for number, point in enumerate(exported.points, 1) if point.startswith("after:component"))
    return sorted({*once_each(exported.points, kind_of), *range(last, len(exported.points) + 1)})


def test_export_killed_leaves_a_whole_store(forker: Forker, exported: Exported) -> None:
    for number in some_points(exported):
        check_stopped(forker, exported, number, "kill")


def test_export_on_a_full_disk_leaves_a_whole_store(forker: Forker, exported: Exported) -> None:
    for number in once_each(exported.points, kind_of):
        check_stopped(forker, exported, number, "enospc")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "enospc"])
def test_export_stopped_at_every_point_leaves_a_whole_store(forker: Forker, exported: Exported, kind: str) -> None:
    for number in range(1, len(exported.points) + 1):
        check_stopped(forker, exported, number, kind)


# --- preparing ---


def check_preparing_stopped(forker: Forker, kind: str, every: int) -> None:
    prepare = ("prepare", "retriever.toml", "--json", "--prepared")
    whole = forker.run(*prepare, "whole")
    for number in once_each(whole.points, kind_of)[::every]:
        stopped = forker.run(*prepare, "again", fault=f"{number}:{kind}")
        if kind == "kill":
            assert stopped.code == -signal.SIGKILL
        else:
            assert stopped.code == 2
            assert stopped.err.splitlines()[-1].startswith(FULL)  # before it, lines of progress
            assert "Traceback" not in stopped.err
        again = forker.run(*prepare, "again")
        assert (again.code, again.out) == (0, whole.out.replace('"whole/', '"again/'))
        shutil.rmtree(forker.folder / "again")
    shutil.rmtree(forker.folder / "whole")


@pytest.mark.parametrize("kind", ["kill", "enospc"])
def test_preparing_stopped_leaves_nothing_by_its_name(forker: Forker, kind: str) -> None:
    check_preparing_stopped(forker, kind, every=6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "enospc"])
def test_preparing_stopped_at_each_kind_of_point_leaves_nothing_by_its_name(forker: Forker, kind: str) -> None:
    check_preparing_stopped(forker, kind, every=1)

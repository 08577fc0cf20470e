"""Writes are all or nothing at every point where they can fail; URIs are read through a verified cache."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from features import storage
from features.faults import plan_of
from features.storage import (
    file_aside,
    folder_aside,
    inject,
    local,
    put,
    remove_leftovers,
    remove_tree,
    replace,
    third_party,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = b"old " * 500, b"new " * 1000
WRITE_FILE = "from features.storage import write_bytes; write_bytes('target', b'new ' * 1000)"
WRITE_FOLDER = """
from features.storage import *
with folder_aside('target') as aside:
    write_bytes(aside / 'a' / 'one', b'1' * 100)
    with third_party('library', aside):
        (aside / 'two').write_bytes(b'2' * 100)
"""


def run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def points_of(program: str, folder: Path) -> list[str]:
    finished = run(program, folder, RECSYS_FAULT_LOG=str(folder / "log"))
    assert finished.returncode == 0, finished.stderr
    labels = (folder / "log").read_text().splitlines()
    (folder / "log").unlink()
    return labels


def test_write_bytes_round_trips_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "target"
    write_bytes(target, OLD)
    write_bytes(target, NEW)
    assert target.read_bytes() == NEW
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_write_bytes_killed_at_every_point_leaves_old_or_new(tmp_path: Path) -> None:
    points = points_of(WRITE_FILE, tmp_path)
    assert [point.partition(":")[0] for point in points] == ["create", "write", "fsync", "rename", "fsync-folder"]
    for number in range(1, len(points) + 1):
        (tmp_path / "target").write_bytes(OLD)
        killed = run(WRITE_FILE, tmp_path, RECSYS_FAULT=f"{number}:kill")
        assert killed.returncode == -signal.SIGKILL
        assert (tmp_path / "target").read_bytes() == (NEW if number == len(points) else OLD)
        remove_leftovers(tmp_path)
        assert list(contents(tmp_path)) == ["target"]


def test_folder_aside_killed_at_every_point_is_absent_or_whole(tmp_path: Path) -> None:
    points = points_of(WRITE_FOLDER, tmp_path)
    remove_tree(tmp_path / "target")
    assert {"half-written:library", "create:target", "rename:target"} < set(points)
    for number in range(1, len(points) + 1):
        assert run(WRITE_FOLDER, tmp_path, RECSYS_FAULT=f"{number}:kill").returncode == -signal.SIGKILL
        found = contents(tmp_path / "target")
        assert found == ({"a/one": b"1" * 100, "two": b"2" * 100} if (tmp_path / "target").exists() else {})
        assert (tmp_path / "target").exists() == (number == len(points))
        remove_tree(tmp_path / "target")
    assert run(WRITE_FOLDER, tmp_path).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["target"], "leftovers of the same name are swept by the next writer"


def test_write_bytes_on_a_full_disk_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write_bytes(target, OLD)
    with inject() as points:
        write_bytes(target, OLD)
    for number in range(1, len(points)):
        with inject(number, "enospc"), pytest.raises(OSError, match="no space left") as raised:
            write_bytes(target, NEW)
        assert raised.value.errno == errno.ENOSPC
        assert contents(tmp_path) == {"target": OLD}


def test_folder_aside_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with folder_aside(tmp_path / "target") as aside, third_party("library", aside):
            (aside / "file").write_bytes(NEW)

    with inject() as points:
        write()
    for number in range(1, len(points)):
        remove_tree(tmp_path / "target")
        with inject(number, "enospc"), pytest.raises(OSError, match="no space left"):
            write()
        assert not list(tmp_path.iterdir())


def test_third_party_half_written_point_truncates_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    with inject(2, "enospc"), pytest.raises(OSError, match="half-written:library"), third_party("library", tmp_path):
        pass
    assert (tmp_path / "file").read_bytes() == b"x" * 5


def test_folder_aside_refuses_an_existing_path(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(FileExistsError, match="never replaced"), folder_aside(tmp_path / "target"):
        pass


def test_folder_aside_never_replaces_what_another_process_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_refuse_existing", lambda path: None)
    write_bytes(tmp_path / "target" / "theirs", OLD)
    with pytest.raises(FileExistsError, match="another process"), folder_aside(tmp_path / "target"):
        pass
    assert contents(tmp_path) == {"target/theirs": OLD}


def test_folder_aside_error_in_the_block_removes_it(tmp_path: Path) -> None:
    def interrupted() -> None:
        with folder_aside(tmp_path / "target") as aside:
            (aside / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_remove_leftovers_spares_a_live_writer(tmp_path: Path) -> None:
    dead = tmp_path / f"{storage.ASIDE}0123456789ab-target"
    dead.mkdir()
    with folder_aside(tmp_path / "other"), file_aside(tmp_path / "third") as live:
        assert remove_leftovers(tmp_path) == [dead]
        assert live.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "third"]


def test_remove_tree_at_every_point_leaves_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for number in (1, 2):
        for name in "abc":
            write_bytes(target / name, OLD)
        with inject(number, "enospc"), pytest.raises(OSError, match="no space left"):
            remove_tree(target)
        assert len(contents(target)) in (0, 3)
    remove_tree(target)
    remove_tree(target)
    assert not target.exists()


def test_replace_renames(tmp_path: Path) -> None:
    write_bytes(tmp_path / "one", NEW)
    write_bytes(tmp_path / "two", OLD)
    replace(tmp_path / "one", tmp_path / "two")
    assert contents(tmp_path) == {"two": NEW}


def test_points_are_the_same_each_time(tmp_path: Path) -> None:
    def labels(name: str) -> list[str]:
        with inject() as points, folder_aside(tmp_path / name / "target") as aside:
            for file in ("b", "a/c", "a/b"):
                write_bytes(aside / file, NEW)
        return points

    assert labels("first") == labels("second")
    assert storage.fault_points() == []


@pytest.mark.parametrize("fault", ["kill", "0:kill", "2:burn", "x:kill", "-1:enospc"])
def test_fault_of_another_form_is_refused(fault: str) -> None:
    with pytest.raises(ValueError, match="RECSYS_FAULT must be"):
        plan_of(fault, None)


def test_write_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"b": 1, "a": "é"})
    assert (tmp_path / "file").read_text() == '{\n  "a": "é",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"a": float("nan")})


def test_sha256_file_equals_hashlib(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    write_bytes(tmp_path / "file", data)
    assert storage.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def source_folder(tmp_path: Path) -> Path:
    for name in ("one", "sub/two"):
        write_bytes(tmp_path / "source" / name, name.encode())
    return tmp_path / "source"


def test_local_path_stays_as_it_is(tmp_path: Path) -> None:
    assert local("some/where", tmp_path) == Path("some/where")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["", "/one"])
def test_local_copies_a_uri_once(tmp_path: Path, part: str) -> None:
    source = source_folder(tmp_path)
    uri = f"file://{source}{part}"
    copy = local(uri, tmp_path / "cache")
    expected = contents(source) if not part else (source / "one").read_bytes()
    assert (copy.read_bytes() if part else contents(copy)) == expected
    with inject() as points:
        assert local(uri + ("" if part else "/"), tmp_path / "cache") == copy
    assert points == []


def test_local_follows_a_changed_source_and_keeps_the_old_copy(tmp_path: Path) -> None:
    uri = f"file://{source_folder(tmp_path)}"
    before = local(uri, tmp_path / "cache")
    write_bytes(tmp_path / "source" / "one", b"changed")
    after = local(uri, tmp_path / "cache")
    assert (before / "one").read_bytes() == b"one"
    assert (after / "one").read_bytes() == b"changed"


def test_local_fetches_a_damaged_copy_again(tmp_path: Path) -> None:
    uri = f"file://{source_folder(tmp_path)}"
    (local(uri, tmp_path / "cache") / "one").write_bytes(b"")
    assert (local(uri, tmp_path / "cache") / "one").read_bytes() == b"one"


def test_local_interrupted_at_every_point_succeeds_later(tmp_path: Path) -> None:
    uri = f"file://{source_folder(tmp_path)}"
    with inject() as points:
        local(uri, tmp_path / "cache")
    for number in range(1, len(points)):
        remove_tree(tmp_path / "cache")
        with inject(number), pytest.raises(OSError, match="no space left"):
            local(uri, tmp_path / "cache")
        assert contents(local(uri, tmp_path / "cache")) == {"one": b"one", "sub/two": b"sub/two"}


@pytest.mark.parametrize("opened", [local, storage.open_input], ids=["local", "open_input"])
def test_absent_and_unknown_uris_are_named(tmp_path: Path, opened: Callable[[str], object]) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        opened(f"file://{tmp_path}/absent")
    with pytest.raises(ValueError, match="cannot open what://ever"):
        opened("what://ever")


def test_put_then_open_round_trips(tmp_path: Path) -> None:
    source = source_folder(tmp_path)
    put(source, f"file://{tmp_path}/published")
    put(source / "one", f"file://{tmp_path}/single")
    assert contents(tmp_path / "published") == contents(source)
    with storage.open_input(f"file://{tmp_path}/single") as file:
        assert file.read() == b"one"
    with pytest.raises(FileNotFoundError, match="nothing to publish"):
        put(tmp_path / "absent", f"file://{tmp_path}/x")


@pytest.mark.parametrize("aside", [file_aside, folder_aside])
def test_write_to_a_full_disk_names_what_was_to_be_written(
    tmp_path: Path, aside: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    """The error of a write to an open file names none."""
    with pytest.raises(OSError, match="No space left on device") as raised, aside(tmp_path / "made"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.filename == str(tmp_path / "made")
    with pytest.raises(OSError, match=r"^incomplete$"), aside(tmp_path / "made"):
        raise OSError("incomplete")
    with pytest.raises(FileNotFoundError) as absent, aside(tmp_path / "made"):
        (tmp_path / "absent").read_bytes()
    assert absent.value.filename == str(tmp_path / "absent")


def test_scratch_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with storage.scratch_folder(tmp_path / "work") as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path
    with pytest.raises(ValueError, match="stopped"), storage.scratch_folder(tmp_path / "work"):
        raise ValueError("stopped")
    assert not list(tmp_path.iterdir())


def test_scratch_folder_takes_away_what_a_killed_one_left(tmp_path: Path) -> None:
    left, other = tmp_path / ".aside-0123456789ab-work", tmp_path / ".aside-0123456789ab-else"
    for folder in (left, other):
        folder.mkdir()
    with storage.scratch_folder(tmp_path / "work") as one, storage.scratch_folder(tmp_path / "work") as two:
        assert one.is_dir() and two.is_dir() and one != two  # noqa: PT018
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [other]

"""A folder is held by one process at a time, and let go of at the end."""

from pathlib import Path

import pytest

from recsys.config import ConfigError
from recsys.held_folder import held


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    says = r"another sweep is at work in .*here; wait for it or choose another --out"
    with held(folder, "sweep", "--out"), pytest.raises(ConfigError, match=says), held(folder, "sweep", "--out"):
        pass
    with held(folder, "sweep", "--out"):
        assert folder.is_dir()
    assert not folder.exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    says = r"--out .*file is a file, a folder is needed"
    with pytest.raises(ConfigError, match=says), held(tmp_path / "file", "sweep", "--out"):
        pass


def test_a_folder_that_is_left_empty_is_removed(tmp_path: Path) -> None:
    with held(tmp_path / "empty", "sweep", "--out"):
        pass
    with held(tmp_path / "full", "sweep", "--out"):
        (tmp_path / "full" / "kept").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]

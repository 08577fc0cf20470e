"""A project with runs of several seeds, trained once, for the commands that look at runs."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recsys.cli import app
from tests.recsys.small_project import write_project


def call(*arguments: object) -> Result:
    """Run a command in this process; an error that is no user's is raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: runs ctr-seed1, ctr-seed2, wide-seed1, wide-seed2, wide-seed5, a click model; and popularity."""
    folder = write_project(tmp_path_factory.mktemp("seeded"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        for arguments in (
            ("ctr.toml", "--seeds", "2"),
            ("ctr.toml", "--seeds", "1,2,5", "--name", "wide", "model.hidden=[16]", "training.max_epochs=4"),
            ("popularity.toml",),
        ):
            assert call("train", *arguments).exit_code == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def project(seeded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the current one; what a test adds to it the next one sees."""
    monkeypatch.chdir(seeded)
    return seeded

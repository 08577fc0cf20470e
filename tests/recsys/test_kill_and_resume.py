"""A training that is killed anywhere loses nothing: resumed, it ends bit for bit as if it had never been stopped.

Points are those of features/faults.py. By default one point of each label, or of each kind, is tried; `slow` tries all.
"""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.recsys.forked import Ended, Forker, kind_of, once_each
from tests.recsys.small_project import write_project

RUNS = ("ctr", "retriever")  # fused with row-wise Adagrad; plain with Adam and a refit


@dataclass(frozen=True)
class Whole:
    """A training that nothing stopped."""

    digest: dict[str, Any]
    points: list[str]
    seconds: float


@dataclass
class Project:
    forker: Forker
    folder: Path
    wholes: dict[str, Whole] = field(default_factory=dict)

    def train(self, name: str, runs: str, *more: str, **options: Any) -> Ended:
        return self.forker.run("train", f"{name}.toml", "--runs", runs, *more, **options)

    def whole(self, name: str) -> Whole:
        if name not in self.wholes:
            assert self.forker.run("prepare", f"{name}.toml").code == 0
            started = time.monotonic()
            ended = self.train(name, "runs")
            seconds = time.monotonic() - started
            assert ended.code == 0, ended.err
            self.wholes[name] = Whole(self.forker.ask("digest", f"runs/{name}"), ended.points, seconds)
        return self.wholes[name]

    def check_resumed(self, name: str, runs: str) -> None:
        ended = self.train(name, runs, "--resume")
        assert ended.code == 0, ended.err
        assert self.forker.ask("digest", f"{runs}/{name}") == self.whole(name).digest
        shutil.rmtree(self.folder / runs)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    with Forker(folder) as forker:
        yield Project(forker, folder)


# --- training ---


def check_training_killed(project: Project, name: str, number: int) -> None:
    assert project.train(name, "killed", fault=f"{number}:kill").code == -signal.SIGKILL
    project.check_resumed(name, "killed")


def test_training_passes_every_kind_of_point(project: Project) -> None:
    points = project.whole("retriever").points
    files = ("run.json", "config.json", "metrics.jsonl", "last.json", "index.json", "shard-0.safetensors")
    assert {f"fsync:{name}" for name in files} <= set(points)
    assert {"half-written:shard-0.safetensors", "rename:last-1", "remove:last-1", "removing:last-1"} <= set(points)
    assert "rename:best.json" in project.whole("ctr").points


def test_ranker_killed_at_each_label_resumes_bit_equal(project: Project) -> None:
    for number in once_each(project.whole("ctr").points):
        check_training_killed(project, "ctr", number)


def test_retriever_killed_at_each_kind_of_point_resumes_bit_equal(project: Project) -> None:
    for number in once_each(project.whole("retriever").points, kind_of):
        check_training_killed(project, "retriever", number)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_training_killed_at_every_point_resumes_bit_equal(project: Project, name: str) -> None:
    for number in range(1, len(project.whole(name).points) + 1):
        check_training_killed(project, name, number)


@pytest.mark.parametrize("name", RUNS)
def test_training_killed_at_random_moments_resumes_bit_equal(project: Project, name: str) -> None:
    draw = random.Random(1)
    for _ in range(3):
        project.train(name, "killed", kill_after_s=draw.random() * project.whole(name).seconds)
        project.check_resumed(name, "killed")


def test_training_killed_again_and_again_resumes_bit_equal(project: Project) -> None:
    """Each try ends a step or two after the last: fewer than 50 points write the log and one checkpoint."""
    codes = [project.train("ctr", "killed", "--resume", fault="50:kill").code for _ in range(20)]
    finished = codes.index(0)
    assert codes[:finished] == [-signal.SIGKILL] * finished
    assert finished > 3
    project.check_resumed("ctr", "killed")


@pytest.mark.parametrize("name", RUNS)
def test_training_ended_by_sigterm_says_so_and_resumes_bit_equal(project: Project, name: str) -> None:
    ended = project.train(name, "stopped", term_at_step=2)
    assert ended.code == 75
    assert "continue with --resume" in ended.err
    refused = project.train(name, "stopped")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is an unfinished run; continue it with --resume" in refused.err
    project.check_resumed(name, "stopped")


def check_training_on_full_disk(project: Project, name: str, number: int) -> None:
    ended = project.train(name, "full", fault=f"{number}:enospc")
    *before, last = ended.err.splitlines()
    assert ended.code == 2
    assert last.startswith("error: no space left on device")
    assert not [line for line in before if line.startswith("error") or "Traceback" in line]
    project.check_resumed(name, "full")


def test_ranker_on_a_full_disk_says_so_and_resumes_bit_equal(project: Project) -> None:
    for number in once_each(project.whole("ctr").points, kind_of):
        check_training_on_full_disk(project, "ctr", number)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_training_on_a_full_disk_at_every_point_resumes_bit_equal(project: Project, name: str) -> None:
    for number in range(1, len(project.whole(name).points) + 1):
        check_training_on_full_disk(project, name, number)

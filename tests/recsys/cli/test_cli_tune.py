"""`recsys tune`: what it prints and leaves, killed anywhere it ends as if it had not been, and what it refuses."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from recsys.config import load_config
from tests.recsys.forked import Forker
from tests.recsys.small_project import write_project

SPACE = "optimizer.dense.lr={low=1e-3, high=1e-1, log=true}"
TUNE = ("tune", "ctr.toml", "training.max_epochs=1", "--space", SPACE, "--trials", 2, "--json")


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(write_project(tmp_path_factory.mktemp("project"))) as started:
        yield started


@pytest.fixture(scope="module")
def whole(forker: Forker) -> list[dict[str, Any]]:
    ended = forker.run(*TUNE, "--out", "whole")
    assert ended.code == 0, ended.err
    return trials(forker.folder / "whole")


def trials(folder: Path) -> list[dict[str, Any]]:
    """All that is kept of each but how long it took."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "trials").glob("*.json"))]
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in found]


def test_tune_prints_the_best_and_writes_it_as_a_config(forker: Forker, whole: list[dict[str, Any]]) -> None:
    ended = forker.run(*TUNE, "--out", "whole")
    said = json.loads(ended.out)
    assert said["trials"] == {"finished": 2}
    assert said["best"]["value"] == max(trial["value"] for trial in whole)
    best = load_config(forker.folder / "whole" / "best.toml")
    assert best.optimizer.dense.lr == said["best"]["settings"]["optimizer.dense.lr"]
    assert best.training.max_epochs == 1
    assert forker.run("train", "whole/best.toml", "training.max_epochs=1").code == 0


@pytest.mark.parametrize("number", [3, 17, 60])
def test_tune_killed_at_a_point_goes_on_as_if_it_had_not_been(
    forker: Forker, whole: list[dict[str, Any]], number: int
) -> None:
    out = f"killed{number}"
    assert forker.run(*TUNE, "--out", out, fault=f"{number}:kill").code == -signal.SIGKILL
    assert forker.run(*TUNE, "--out", out).code == 0
    assert trials(forker.folder / out) == whole


@pytest.mark.slow
def test_tune_killed_at_every_fifth_point_goes_on_as_if_it_had_not_been(
    forker: Forker, whole: list[dict[str, Any]]
) -> None:
    points = len(forker.run(*TUNE, "--out", "counted").points)
    assert points > 100
    for number in range(1, points, 5):
        out = f"each{number}"
        assert forker.run(*TUNE, "--out", out, fault=f"{number}:kill").code == -signal.SIGKILL
        assert forker.run(*TUNE, "--out", out).code == 0
        assert trials(forker.folder / out) == whole


def test_tune_refuses_what_it_cannot_search(forker: Forker) -> None:
    for space, says in (("optimizer.dense.lrr={low=1, high=2}", "did you mean 'lr'"), ("none.toml", "no space file")):
        ended = forker.run("tune", "ctr.toml", "--space", space)
        assert ended.code == 2
        assert says in ended.err

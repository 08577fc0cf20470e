import json
from pathlib import Path

import pytest

from recsys.cli.seeds import name_of_seed, seeds_of
from recsys.config import ConfigError
from recsys.run import Run
from tests.recsys.cli.conftest import call


def test_seeds_are_a_number_of_them_or_a_list() -> None:
    assert seeds_of("3") == [1, 2, 3]
    assert seeds_of("4,7") == seeds_of(" 4, 7") == [4, 7]
    assert seeds_of("4,") == [4]
    for text in ("", ",", "a", "1,b", "-1", "2,2", "1.5"):
        with pytest.raises(ConfigError, match="--seeds: got"):
            seeds_of(text)
    for text in ("0", "20260101"):
        with pytest.raises(
            ConfigError, match=f"--seeds: got {text} seeds, accepted: 1 to 1000; one seed of your choice"
        ):
            seeds_of(text)


def test_each_seed_is_an_ordinary_run_that_differs_in_seed_alone(project: Path) -> None:
    runs = [Run.open(project / "runs" / name_of_seed("wide", seed)) for seed in (1, 2, 5)]
    assert [(run.config.seed, run.finished) for run in runs] == [(1, True), (2, True), (5, True)]
    assert len({run.config.model_copy(update={"seed": 0, "name": "x"}).content_hash for run in runs}) == 1
    again = call("train", "ctr.toml", "seed=2", "--name", "by_hand", "--json")
    assert json.loads(again.stdout)["validation"] == Run.open(project / "runs/ctr-seed2").state.validation


def test_seeds_go_on_where_they_stopped_and_are_told_in_one_line(project: Path) -> None:
    ended = call("train", "ctr.toml", "--seeds", "3", "--resume", "--json")
    assert ended.exit_code == 0
    assert "runs/ctr-seed1 is finished" in ended.stderr
    assert "runs/ctr-seed3 is finished" not in ended.stderr
    assert ended.stdout.count("\n") == 1
    assert [run["run"] for run in json.loads(ended.stdout)["runs"]] == [f"runs/ctr-seed{seed}" for seed in (1, 2, 3)]

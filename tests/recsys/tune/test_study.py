"""A search over a small click model: killed anywhere it ends as if it had not been."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from features.prepared import Prepared, prepare
from recsys.config import ConfigError, load_config
from recsys.run import Run
from recsys.training.trainer import Interrupted, Progress
from recsys.tune.space import parse_space
from recsys.tune.study import Study
from tests.recsys.small_project import write_project

SPACE = ["optimizer.dense.lr={low=1e-4, high=1e-1, log=true}", "model.hidden={choices=[[2], [4, 4]]}"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    config = load_config(folder / "ctr.toml")
    return folder, prepare(config.data, data_root=None, schema_dir=folder, out=folder / "prepared")


def study(project: tuple[Path, Prepared], out: Path, *overrides: str, space: list[str] = SPACE) -> Study:
    folder, prepared = project
    return Study(out, folder / "ctr.toml", overrides, parse_space(space), prepared)


class StopAt:
    def __init__(self, step: int) -> None:
        self.left = step

    def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
        pass


def outcomes(searched: Study) -> list[object]:
    return [(trial.settings, trial.value, list(trial.values), trial.status) for trial in searched.trials()]


def test_study_stopped_and_resumed_equals_one_that_was_not(project: tuple[Path, Prepared], tmp_path: Path) -> None:
    whole = study(project, tmp_path / "whole")
    with whole.held():
        list(whole.run(3))
    stopped = study(project, tmp_path / "stopped")
    steps = StopAt(6)
    with stopped.held(), pytest.raises(Interrupted):
        list(stopped.run(3, observers=(steps,)))
    with stopped.held():
        list(stopped.run(3))
    assert outcomes(stopped) == outcomes(whole)
    best = whole.best(whole.trials())
    assert best is not None
    assert best.value == max(trial.value or 0.0 for trial in whole.trials())


def test_study_records_a_trial_that_cannot_be_trained(project: tuple[Path, Prepared], tmp_path: Path) -> None:
    searched = study(project, tmp_path, space=["tables.ids.num_embeddings={choices=[300, -1]}"])
    with searched.held():
        found = list(searched.run(3))
    assert {trial.status for trial in found if trial.settings["tables.ids.num_embeddings"] == -1} <= {"failed"}
    assert len(found) == 3


def test_study_goes_on_after_a_trial_without_memory(
    project: tuple[Path, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(run: Run, observers: object = ()) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes.")

    monkeypatch.setattr(Run, "train", fails)
    searched = study(project, tmp_path)
    with searched.held():
        found = list(searched.run(2))
    assert [trial.status for trial in found] == ["failed", "failed"]
    assert "can't allocate memory" in found[0].reason


def test_study_refuses_another_space_in_its_folder(project: tuple[Path, Prepared], tmp_path: Path) -> None:
    with study(project, tmp_path).held():
        pass
    other = study(project, tmp_path, space=SPACE[:1])
    with pytest.raises(ConfigError, match="belongs to a search with other space"), other.held():
        pass


def test_study_refuses_an_unknown_setting_before_it_trains(project: tuple[Path, Prepared], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        study(project, tmp_path, space=["optimizer.dense.lrr={low=1, high=2}"])
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        study(project, tmp_path, space=["model.hiden={choices=[[8], [16]]}"])

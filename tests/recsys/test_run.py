"""A run on disk: its stages, what it refuses, and that what it reports is what its finished model gives."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from features.prepared import Prepared, prepare
from recsys.cli.named_runs import describe_run
from recsys.config import ConfigError, RunConfig, load_config
from recsys.held_folder import held
from recsys.run import Run
from recsys.training.checkpoint import Checkpoints
from tests.recsys.small_project import write_project


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = write_project(folder)

    def config(self, name: str, *overrides: str) -> RunConfig:
        return load_config(self.folder / f"{name}.toml", overrides)

    def prepared(self, config: RunConfig) -> Prepared:
        return prepare(config.data, data_root=None, schema_dir=self.folder, out=self.folder / "prepared")

    def run(self, name: str, *overrides: str, folder: str = "", resume: bool = False) -> Run:
        config = self.config(name, *overrides)
        return Run.create(config, self.folder / "runs" / (folder or name), self.prepared(config), resume=resume)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("project"))
    for name in ("ctr", "retriever", "popularity"):
        made.run(name).train()
    return made


@pytest.mark.parametrize("name", ["ctr", "retriever", "popularity"])
def test_run_reopened_is_the_run(project: Project, name: str) -> None:
    run = Run.open(project.folder / "runs" / name)
    assert run.finished
    assert run.config == project.config(name)
    assert describe_run(run)["stage"] == "finished"
    assert run.state.validation
    json.dumps(describe_run(run))


def test_run_reports_the_validation_of_its_best_epoch(project: Project) -> None:
    run = Run.open(project.folder / "runs" / "ctr")
    assert run.state.validation is not None
    assert run.evaluate("validation").metrics["auc"] == pytest.approx(run.state.validation["auc"], abs=1e-6)


def test_run_refits_on_train_and_validation(project: Project) -> None:
    """The refitted model is the one that a run without validation gives after as many epochs."""
    run = Run.open(project.folder / "runs" / "retriever")
    stages = [Checkpoints(run.folder / "checkpoints" / stage).meta("last")["progress"] for stage in ("select", "refit")]
    assert stages[1]["epoch"] == run.state.best_epoch
    assert stages[1]["step"] != stages[0]["step"]
    first, again = run.model(), Run.open(run.folder).model()
    assert isinstance(first, nn.Module)
    assert isinstance(again, nn.Module)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_run_writes_its_report(project: Project) -> None:
    run = Run.open(project.folder / "runs" / "popularity")
    report = run.evaluate()
    written = json.loads((run.folder / "reports" / "test" / "report.json").read_text())
    assert written["recall@20"] == report.metrics["recall@20"]
    assert written["config_hash"] == run.config.content_hash


def test_run_known_before_a_split_ends_there(project: Project) -> None:
    run = Run.open(project.folder / "runs" / "retriever")
    assert run.seen_before("validation").splits == ("train",)
    assert run.seen_before("test").splits == ("train", "validation")


@pytest.mark.parametrize("name", ["retriever", "popularity"])
def test_run_refuses_to_score_what_it_was_finished_on(project: Project, name: str) -> None:
    run = Run.open(project.folder / "runs" / name)
    for split, says in (("validation", "not held out"), ("train", "masked")):
        with pytest.raises(ConfigError, match=says):
            run.evaluate(split)


def test_run_of_another_config_or_unfinished_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size"):
        project.run("ctr", "training.batch_size=77")
    with pytest.raises(ConfigError, match="is not a run"):
        Run.open(project.folder / "runs" / "nothing")
    unfinished = project.run("ctr", folder="unfinished")
    unfinished._begin()
    with pytest.raises(ConfigError, match="--resume"):
        project.run("ctr", folder="unfinished")
    with pytest.raises(ConfigError, match="not finished"):
        Run.open(unfinished.folder).model()
    project.run("ctr", folder="unfinished", resume=True).train()
    whole, resumed = (Run.open(project.folder / "runs" / name).model() for name in ("ctr", "unfinished"))
    assert isinstance(whole, nn.Module)
    assert isinstance(resumed, nn.Module)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_run_that_another_process_trains_is_refused(project: Project) -> None:
    run = project.run("ctr", folder="twice", resume=True)
    with held(run.folder, "training", "--name"), pytest.raises(ConfigError, match="another training is at work in"):
        run.train()
    assert not run.folder.exists()

"""A run that starts from another: what it begins with, that it does so once, and what is refused."""

from collections.abc import Mapping
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch
from torch import Tensor, nn

from features.prepared import Prepared, prepare
from recsys.cli.named_runs import describe_run
from recsys.config import ConfigError, RunConfig, load_config
from recsys.run import Run, build_model
from recsys.run_start import Parent
from recsys.run_state import REFIT, SELECT
from recsys.training.checkpoint import Checkpoints
from recsys.training.state import MODEL, model_tensors
from recsys.training.trainer import Interrupted, Progress
from tests.recsys.grown_data import grown_copy
from tests.recsys.small_project import write_project

STILL = ("optimizer.dense.lr=1e-30", "optimizer.tables.lr=1e-30")  # a step changes no weight
NAMES = ("ctr", "dense", "retriever")


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = write_project(folder)
        text = (self.folder / "ctr.toml").read_text()
        rows = 'method = "unified"\nnum_embeddings = 300\nchunk_dim = 4\nchunks = 2'
        (self.folder / "dense.toml").write_text(text.replace(rows, 'method = "dense"\nembedding_dim = 4'))
        self.newer: dict[str, Prepared] = {}

    def config(self, name: str, *overrides: str) -> RunConfig:
        return load_config(self.folder / f"{name}.toml", overrides)

    def prepared(self, name: str) -> Prepared:
        config = self.config(name)
        return prepare(config.data, data_root=None, schema_dir=self.folder, out=self.folder / "prepared")

    def grown(self, name: str) -> Prepared:
        data = self.config(name).data.name
        if data not in self.newer:
            self.newer[data] = grown_copy(self.prepared(name), self.folder / f"newer-{data}")
        return self.newer[data]

    def parent(self, name: str) -> Run:
        """Trained when first asked for."""
        run = Run.create(self.config(name), self.folder / "parents" / name, self.prepared(name))
        run.train()
        return run

    def child(self, name: str, folder: Path, *overrides: str, resume: bool = False, again: bool = True) -> Run:
        origin = self.parent(name).folder if again else None
        return Run.create(self.config(name, *overrides), folder, self.grown(name), resume=resume, init_from=origin)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("starts"))


class Stop:
    """Stops after some steps; every step has its checkpoint."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        if progress.step == self.after:
            raise Interrupted

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
        pass


def saved(run: Run) -> dict[str, Tensor]:
    stage = REFIT if run.config.training.refit else SELECT
    return Checkpoints(run.folder / "checkpoints" / stage).load("last")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_begins_with_its_parents_weights(project: Project, tmp_path: Path, name: str) -> None:
    """Trained at a rate too small to change anything: known rows are the parent's, new ones those of a fresh model."""
    parent, child = project.parent(name), project.child(name, tmp_path / "child", *STILL)
    child.train()
    before, after = saved(parent), saved(child)
    fresh_model = build_model(child.config, child.prepared.encoder)
    assert isinstance(fresh_model, nn.Module)
    fresh = model_tensors(fresh_model)
    grown = 0
    for key in (key for key in before if key.startswith(MODEL)):
        known = len(before[key]) if before[key].dim() else 0
        assert torch.equal(after[key][:known] if known else after[key], before[key]), key
        if known < (len(after[key]) if known else 0):
            grown += 1
            assert torch.equal(after[key][known:], fresh[key][known:]), key
    assert grown == (0 if name == "ctr" else 1)
    steps = [key for key in before if key.startswith("dense.") and key.endswith(".step")]
    assert all(after[key] > before[key] for key in steps), "Adam goes on counting"


def test_a_run_says_where_it_comes_from(project: Project, tmp_path: Path) -> None:
    parent, child = project.parent("ctr"), project.child("ctr", tmp_path / "child")
    child.train()
    assert describe_run(child)["init_from"] == str(parent.folder.resolve()) == child.state.init_from
    assert child.state.lineage == Parent.open(parent.folder).lineage
    grandchild = Run.create(child.config, tmp_path / "grandchild", child.prepared, init_from=child.folder)
    assert grandchild.state.lineage not in ("", child.state.lineage)
    assert "init_from" not in describe_run(parent)
    assert Run.create(child.config, child.folder, child.prepared).finished, "a finished one needs no parent"


@pytest.mark.parametrize("name", ["dense", "retriever"])
def test_a_resumed_run_does_not_start_from_its_parent_again(project: Project, tmp_path: Path, name: str) -> None:
    """Stopped in its second step and resumed, without a word of its parent, it ends as if it had never stopped."""
    whole = project.child(name, tmp_path / "whole")
    whole.train()
    with pytest.raises(Interrupted):
        project.child(name, tmp_path / "stopped").train([Stop(after=2)])
    resumed = project.child(name, tmp_path / "stopped", resume=True, again=False)
    resumed.train()
    for key, tensor in saved(whole).items():
        assert torch.equal(saved(resumed)[key], tensor), key
    with pytest.raises(ConfigError, match="did not start from another run"):
        Run.create(project.config(name), project.parent(name).folder, project.prepared(name), init_from=whole.folder)


def test_a_run_killed_before_its_first_checkpoint_starts_from_its_parent_again(
    project: Project, tmp_path: Path
) -> None:
    whole, killed = project.child("dense", tmp_path / "whole"), project.child("dense", tmp_path / "killed")
    whole.train()
    killed._begin()
    resumed = project.child("dense", tmp_path / "killed", resume=True, again=False)
    resumed.train()
    assert all(torch.equal(saved(resumed)[key], tensor) for key, tensor in saved(whole).items())


def test_a_parent_that_changed_is_refused_while_it_is_needed(project: Project, tmp_path: Path) -> None:
    origin, other = tmp_path / "origin", tmp_path / "other"
    copytree(project.parent("ctr").folder, origin)
    config, newer = project.config("ctr"), project.grown("ctr")
    Run.create(config, tmp_path / "child", newer, init_from=origin)._begin()
    Run.create(project.config("ctr", "seed=5"), other, project.prepared("ctr")).train()
    with pytest.raises(ConfigError, match=r"started from .*origin as it was then, not from .*other as it is now"):
        Run.create(config, tmp_path / "child", newer, resume=True, init_from=other)
    rmtree(origin)
    copytree(other, origin)
    with pytest.raises(ConfigError, match="origin was trained anew since this run started from it"):
        Run.create(config, tmp_path / "child", newer, resume=True).train()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.hidden=[5]", r"model\.options\.hidden"),
        ("tables.ids.chunk_dim=3", r"tables\.specs\.ids\.options\.chunk_dim"),
        ("optimizer.tables.name=adagrad", r"optimizer\.tables\.name"),
        ("tables.ids.precision=int8", r"tables\.specs\.ids\.options\.precision"),
    ],
)
def test_another_model_or_table_is_refused(project: Project, tmp_path: Path, override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"has another {key}"):
        project.child("ctr", tmp_path / "child", override)
    assert not (tmp_path / "child").exists(), "nothing was begun"


def test_settings_of_the_training_may_differ(project: Project, tmp_path: Path) -> None:
    changes = ("training.batch_size=900", "optimizer.tables.lr=0.01", "tables.backend=plain", "training.max_epochs=1")
    child = project.child("ctr", tmp_path / "child", *changes)
    child.train()
    assert child.finished


def test_what_cannot_be_a_parent_is_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        Parent.open(tmp_path)
    begun = Run.create(project.config("ctr"), tmp_path / "begun", project.prepared("ctr"))
    begun._begin()
    with pytest.raises(ConfigError, match="is an unfinished run"):
        Parent.open(begun.folder)
    with pytest.raises(ConfigError, match="model 'popularity' has no training to go on from"):
        Parent.open(project.parent("popularity").folder)


def test_data_that_does_not_extend_the_parents_is_refused(project: Project, tmp_path: Path) -> None:
    child = project.child("dense", tmp_path / "child", "training.max_epochs=1")
    child.train()
    back = Run.create(project.config("dense"), tmp_path / "back", project.prepared("dense"), init_from=child.folder)
    with pytest.raises(ConfigError, match="vocabulary 'item' does not extend the older one: it has 189 rows"):
        back.train()
    with pytest.raises(ConfigError, match=r"cannot be scored on .*: vocabulary 'item' does not extend"):
        child.evaluate_on(project.prepared("dense"), "test")

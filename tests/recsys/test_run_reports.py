"""A finished run scored on newer data gives what it gives on its own, where the rows are the same."""

from pathlib import Path

import pytest
import torch

from recsys.config import ConfigError
from tests.recsys.test_run_start import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("reports"))


@pytest.mark.parametrize("name", ["dense", "retriever"])
def test_a_run_sees_newer_ids_as_unseen(project: Project, name: str) -> None:
    """The newer data has the same examples, and rows for items that were unseen: the model must not read those."""
    run = project.parent(name)
    report, own = run.evaluate_on(project.grown(name), "test"), run.evaluate("test")
    assert report.metrics == own.metrics
    assert report.config_hash == run.config.content_hash
    key = "logits" if run.is_ranking else "users"
    assert torch.equal(report.arrays[key], own.arrays[key])


def test_a_run_is_not_written_to_by_newer_data(project: Project) -> None:
    run = project.parent("dense")
    before = sorted(path for path in run.folder.rglob("*"))
    report = run.evaluate_on(project.grown("dense"), "train")
    assert sorted(path for path in run.folder.rglob("*")) == before
    assert report.counts["rows"] == project.grown("dense").view("train").num_rows


def test_parent_and_child_are_scored_on_the_same_rows(project: Project, tmp_path: Path) -> None:
    """As on a day that neither has seen: the child knows more items, the pairs are those of the newer data."""
    child = project.child("dense", tmp_path / "child", "training.max_epochs=1")
    child.train()
    newer = project.grown("dense")
    mine, other = child.evaluate_on(newer, "test"), project.parent("dense").evaluate_on(newer, "test")
    assert not torch.equal(mine.arrays["logits"], other.arrays["logits"])
    for name in ("labels", "clusters"):
        assert torch.equal(mine.arrays[name], other.arrays[name])
    assert mine.metrics == child.evaluate("test").metrics


def test_what_newer_data_cannot_say_is_refused(project: Project) -> None:
    with pytest.raises(ConfigError, match="there is none before 'train'"):
        project.parent("retriever").evaluate_on(project.grown("retriever"), "train")
    with pytest.raises(ConfigError, match="'popularity' is computed from one catalogue"):
        project.parent("popularity").evaluate_on(project.grown("popularity"), "test")

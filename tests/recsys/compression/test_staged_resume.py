"""A run whose tables train in stages, stopped in any of them and resumed, ends bit for bit as if it had not been."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from recsys.training.checkpoint import Checkpoints
from tests.recsys.forked import Forker
from tests.recsys.small_project import CTR, write_project

SEARCH = "evolution = { mutated = 1, crossed = 1, parents = 2, generations = 1 }"
METHODS = {
    "mgqe": "parts = 2\nnum_centroids = 8\nrare_centroids = 4",
    "deeplight": 'budget = "30%"\nprune_epochs = 1',
    "optembed": 'budget = "40%"\nsupernet_epochs = 1\n' + SEARCH,
}
STAGES = {"mgqe": 2, "deeplight": 3, "optembed": 2}


@dataclass
class Project:
    forker: Forker
    folder: Path
    wholes: dict[str, Any] = field(default_factory=dict)

    def whole(self, name: str) -> Any:
        if name not in self.wholes:
            ended = self.forker.run("train", f"{name}.toml", "--runs", "runs")
            assert ended.code == 0, ended.err
            self.wholes[name] = self.forker.ask("digest", f"runs/{name}")
        return self.wholes[name]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    start, end = CTR.partition("[tables.ids]")[0], CTR[CTR.index("[optimizer.tables]") :]
    for old, new in (("max_epochs = 2", "max_epochs = 1"), ("batch_size = 4000", "batch_size = 600")):
        assert old in end
        end = end.replace(old, new)
    for name, settings in METHODS.items():
        table = f'[tables.ids]\nmethod = "{name}"\nembedding_dim = 4\n{settings}\n\n'
        (folder / f"{name}.toml").write_text(start + table + end.replace("checkpoint_every_s = 0\n", ""))
    with Forker(folder) as forker:
        assert forker.run("prepare", "ctr.toml").code == 0
        yield Project(forker, folder)


def steps(project: Project, name: str) -> list[int]:
    """A step in the midst of each stage; stages are of one epoch each."""
    meta = Checkpoints(project.folder / "runs" / name / "checkpoints" / "select").meta("last")
    each = meta["progress"]["step"] // STAGES[name]
    assert each > 10  # deeplight prunes within a stage, too
    return [each * stage + 7 for stage in range(STAGES[name])]


@pytest.mark.parametrize("name", METHODS)
def test_run_stopped_in_each_stage_resumes_bit_equal(project: Project, name: str) -> None:
    whole = project.whole(name)
    for step in steps(project, name):
        assert project.forker.run("train", f"{name}.toml", "--runs", "stopped", term_at_step=step).code == 75
        ended = project.forker.run("train", f"{name}.toml", "--runs", "stopped", "--resume")
        assert ended.code == 0, ended.err
        assert project.forker.ask("digest", f"stopped/{name}") == whole
        shutil.rmtree(project.folder / "stopped")

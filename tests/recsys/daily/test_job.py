"""The daily job killed anywhere ends as if it had not been; what it promotes, leaves out, keeps and refuses.

Points are those of features/faults.py. By default the job is killed every so many of them until it ends; `slow` kills
it before and after a rename of each kind (there are over a thousand points, most of them within what a rename hides).
"""

import hashlib
import json
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from features import storage
from features.worlds import generate
from recsys.config import load_config
from recsys.daily.job import Daily, Surroundings
from recsys.daily.trial import Trial
from recsys.run import Run
from recsys.run_start import Parent
from recsys.run_state import FINISHED, RunState
from recsys.training.checkpoint import Checkpoints
from tests.recsys.forked import Ended, Forker
from tests.recsys.small_project import CTR, SCHEMA, write_project

DAILY = CTR.replace('{ kind = "time", validation = 0.1, test = 0.1 }', '{ kind = "day" }').replace(
    'metric = "auc"\npatience = 1\n', ""
)
DAILY = DAILY.replace("batch_size = 4000", "batch_size = 100").replace("max_epochs = 2", "max_epochs = 1")
SPAN = ("--from", "2026-01-05", "--to", "2026-01-06")
START, DAY = 1_767_225_600, 86_400


@dataclass
class Project:
    forker: Forker
    folder: Path

    def daily(self, out: str, *more: str, **options: Any) -> Ended:
        places = ("--out", out, "--prepared", f"{out}/prepared", "--store", f"{out}/store")
        return self.forker.run("daily", "job.toml", *places, *(more or SPAN), **options)

    def digest(self, out: str) -> Any:
        ended = self.forker.run("tests.recsys.daily.test_job:digest", out)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "demo.toml").write_text(SCHEMA.read_text())
    (folder / "job.toml").write_text(DAILY)
    with Forker(folder) as forker:
        project = Project(forker, folder)
        ended = project.daily("whole")
        assert ended.code == 0, ended.err
        (folder / "points.json").write_text(json.dumps(ended.points))
        yield project


def digest(out: str) -> dict[str, str]:
    """Every file that a job left, without durations and places: of checkpoints the tensors, of the store its names."""
    root, found = Path(out), {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock"):
        name = path.relative_to(root).as_posix()
        if (
            "checkpoints" not in name
            and ".aside-" not in name
            and path.name not in ("index.html", "metrics.jsonl")
            and "notes" not in name
        ):
            found[name] = hashlib.sha256(_timeless(path)).hexdigest()
    for folder in sorted(root.glob("*/*/checkpoints/select")):
        for key, tensor in Checkpoints(folder).load("last").items():
            found[f"{folder.parent.parent.name} {key}"] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    if path.name not in ("report.jsonl", "run.json"):
        return path.read_bytes()
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    records = [json.loads(line) for line in lines]
    for record in records:
        for key in ("seconds", "prepared", "init_from"):
            record.pop(key, None)
    return json.dumps(records).encode()


def check_ends_whole(project: Project, out: str) -> None:
    ended = project.daily(out)
    assert ended.code == 0, ended.err
    assert project.digest(out) == project.digest("whole")
    assert not list((project.folder / out / "job").glob(".aside*"))
    shutil.rmtree(project.folder / out)


def test_job_killed_again_and_again_ends_as_if_it_never_was(project: Project) -> None:
    codes = [project.daily("killed", fault="150:kill").code for _ in range(8)]
    assert codes[0] == codes[1] == -signal.SIGKILL
    check_ends_whole(project, "killed")


@pytest.mark.slow
def test_job_killed_at_random_moments_ends_as_if_it_never_was(project: Project) -> None:
    draw = random.Random(1)
    for _ in range(2):
        assert project.daily("random", kill_after_s=0.2 + 2 * draw.random()).code in (-signal.SIGKILL, 0)
    check_ends_whole(project, "random")


@pytest.mark.slow
@pytest.mark.parametrize("label", ["rename:2026-01-06.json", "rename:promoted.json", "rename:labels.json"])
def test_job_killed_around_a_promotion_ends_as_if_it_never_was(project: Project, label: str) -> None:
    points = json.loads((project.folder / "points.json").read_text())
    for number in (points.index(label) + 1, points.index(label) + 2):
        assert project.daily("promoting", fault=f"{number}:kill").code == -signal.SIGKILL
    check_ends_whole(project, "promoting")


@pytest.mark.slow
def test_job_killed_around_every_kind_of_rename_ends_as_if_it_never_was(project: Project) -> None:
    """What a later process finds changes with renames alone: killed before and after the last one of each name."""
    points = json.loads((project.folder / "points.json").read_text())
    last = {label: number for number, label in enumerate(points, start=1) if label.startswith("rename:")}
    for number in sorted(last.values()):
        for point in (number, number + 1):
            assert project.daily("renames", fault=f"{point}:kill").code == -signal.SIGKILL
            check_ends_whole(project, "renames")


def test_job_a_day_at_a_time_is_the_job_of_all_days(project: Project) -> None:
    for day in ("2026-01-05", "2026-01-06"):
        assert project.daily("single", "--from", day, "--to", day).code == 0
    assert project.digest("single") == project.digest("whole")
    again = project.daily("single")
    assert again.code == 0
    assert "promoted, " not in again.err
    assert project.digest("single") == project.digest("whole")


@pytest.mark.slow
def test_job_ended_by_sigterm_says_so_and_goes_on(project: Project) -> None:
    ended = project.daily("stopped", term_at_step=1)
    assert ended.code == 75
    assert "the same command goes on" in ended.err
    check_ends_whole(project, "stopped")


def test_job_does_days_that_it_missed_first(project: Project) -> None:
    assert project.daily("missed", "--from", "2026-01-05", "--to", "2026-01-05").code == 0
    ended = project.daily("missed", "--from", "2026-01-07", "--to", "2026-01-07")
    assert ended.code == 0
    assert "1 days between 2026-01-05 and 2026-01-07 are not done; they come first" in " ".join(ended.err.split())
    assert sorted(path.name for path in (project.folder / "missed" / "job").glob("2026*")) == [
        "2026-01-05", "2026-01-06", "2026-01-07",
    ]  # fmt: skip


def test_job_starts_each_day_from_the_day_before(project: Project) -> None:
    first, second = (project.folder / "whole" / "job" / day for day in ("2026-01-05", "2026-01-06"))
    assert Run.open(second).state.init_from.endswith("whole/job/2026-01-05")
    assert Run.open(second).state.lineage == Parent.open(first).lineage
    Run.open(second).prepared.encoder.check_extends(Run.open(first).prepared.encoder)


def test_job_tests_before_it_trains(project: Project) -> None:
    job = project.folder / "whole" / "job"
    trials = [json.loads(path.read_text()) for path in sorted((job / "tested").iterdir())]
    assert [(trial["day"], trial["model"]) for trial in trials] == [
        ("2026-01-05", ""), ("2026-01-06", "2026-01-05"), ("2026-01-07", "2026-01-06"),
    ]  # fmt: skip
    times = generate("small").events["timestamp"].to_numpy()
    rows = [int(((times >= START + day * DAY) & (times < START + (day + 1) * DAY)).sum()) for day in (4, 5, 6)]
    assert [trial["counts"]["train"] for trial in trials] == rows
    report = Run.open(job / "2026-01-05").evaluate_on(Run.open(job / "2026-01-06").prepared, "train")
    assert trials[1]["metrics"] == pytest.approx(report.metrics)
    assert "ceiling_auc" in trials[1]["metrics"]


@pytest.mark.slow
def test_job_keeps_the_checkpoints_asked_for_and_the_promoted_ones(project: Project) -> None:
    assert project.daily("pruned", "--from", "2026-01-05", "--to", "2026-01-07", "--keep", "1").code == 0
    job = project.folder / "pruned" / "job"
    promoted = json.loads((job / "promoted.json").read_text())["run"]
    kept = {path.parent.name for path in job.glob("*/checkpoints")}
    assert kept == {promoted, "2026-01-07"}
    assert project.daily("pruned", "--from", "2026-01-05", "--to", "2026-01-07", "--keep", "1").code == 0


def test_pruning_keeps_the_run_that_the_newest_test_was_against(tmp_path: Path) -> None:
    """That day was not over, perhaps: it is tested again when its data has grown."""
    config = load_config(write_project(tmp_path / "project") / "ctr.toml")
    days = ["2026-01-05", "2026-01-06", "2026-01-07"]
    for day in days:
        (tmp_path / "job" / day / "checkpoints").mkdir(parents=True)
        storage.write_text(tmp_path / "job" / day / "config.json", config.to_json())
        state = RunState(prepared="", data_hash="", stage=FINISHED)
        storage.write_json(tmp_path / "job" / day / "run.json", vars(state))
    around = Surroundings(prepare=lambda day, before: None, train=lambda run: None, say=lambda line: None)
    job = Daily(config, tmp_path / "job", around, keep=1)
    for day, model, champion in (("2026-01-07", days[1], days[0]), ("2026-01-08", days[2], days[1])):
        job.trials.write(Trial(day=day, data_hash="", counts={}, model=model, champion=champion, promoted=True))
    storage.write_json(tmp_path / "job" / "promoted.json", {"run": days[2]})
    job._prune()
    assert [day for day in days if (tmp_path / "job" / day / "checkpoints").exists()] == days[1:]


def test_job_leaves_out_days_without_examples(project: Project) -> None:
    ended = project.daily("early", "--from", "2025-12-30", "--to", "2026-01-01")
    assert ended.code == 0
    assert ended.err.count("no examples, left out") == 2
    ended = project.daily("never", "--from", "2025-12-01", "--to", "2025-12-02")
    assert (ended.code, "no day of 2025-12-01..2025-12-02 has examples" in ended.err) == (2, True)
    ended = project.daily("late", "--from", "2026-01-30", "--to", "2026-01-30")
    assert "2026-01-31: no examples yet to test model 2026-01-30 on" in ended.err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (["seed=2"], "belongs to a config with other seed"),
        (["data.split.kind=time"], "data.split.kind is 'time'; the daily job needs 'day'"),
        (["training.patience=2"], "training.patience has no effect"),
        (["model.name=popularity"], "model 'popularity'"),
    ],
)
def test_job_refuses_in_one_line(project: Project, change: list[str], complaint: str) -> None:
    out = "whole" if "seed" in change[0] else "refused"
    ended = project.forker.run("daily", "job.toml", *change, "--out", out, "--prepared", f"{out}/prepared", *SPAN)
    assert ended.code == 2, ended.err
    assert complaint in ended.err
    assert "Traceback" not in ended.err

"""`recsys train` and `recsys evaluate`: the log of metrics, and what in a run on disk or in its labels is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from recsys.cli.train import Watcher, logged
from recsys.run import Run
from recsys.training.trainer import Progress
from tests.recsys.forked import Ended, Forker
from tests.recsys.small_project import CTR, write_project

SCHEMA = """
name = "log"
user = "user"
item = "item"
[features.user]
table = "ids"
[features.item]
table = "ids"
[labels.click]
"""


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    (folder / "log-schema.toml").write_text(SCHEMA)
    data = '[data]\nname = "log"\nsource = "csv"\npath = "log.csv"\nschema = "log-schema.toml"\n'
    split = 'split = { kind = "random", validation = 0.2, test = 0.2 }\n[model]'
    (folder / "log.toml").write_text(CTR.partition("[data]")[0] + data + split + CTR.partition("[model]")[2])
    with Forker(folder) as started:
        yield started


def refused(ended: Ended, says: str) -> None:
    """Exit code 2, and its last line, the only one that is an error (others tell of progress), says it."""
    *before, last = ended.err.splitlines()
    assert ended.code == 2, ended.err
    assert last.startswith("error: ")
    assert says in last
    assert not [line for line in before if line.startswith("error") or "Traceback" in line]


# --- the log of metrics ---


@dataclass
class Stage:
    stage: str


class Started:
    """As much of a run as a watcher looks at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = Stage("select")


def watched(run: Started) -> Watcher:
    return Watcher(run)  # type: ignore[arg-type]


def evaluate_at(watcher: Watcher, steps: range, auc: float = 0.5) -> None:
    for step in steps:
        watcher.on_step(Progress(step=step), 10, 1.0, 32)
        watcher.on_evaluation(Progress(step=step), {"auc": auc}, best=False)


def test_log_of_a_resumed_run_is_that_of_one_never_stopped(tmp_path: Path) -> None:
    run = Started(tmp_path)
    evaluate_at(watched(run), range(1, 6), auc=0.1)
    evaluate_at(watched(run), range(4, 7))  # the checkpoint was of step 3
    assert [(line["step"], line["auc"]) for line in logged(tmp_path / "metrics.jsonl")] == [
        (1, 0.1), (2, 0.1), (3, 0.1), (4, 0.5), (5, 0.5), (6, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize("resumed", [False, True])
def test_log_keeps_the_stage_before(tmp_path: Path, resumed: bool) -> None:
    run = Started(tmp_path)
    watcher = watched(run)
    evaluate_at(watcher, range(1, 4))
    run.state = Stage("refit")
    evaluate_at(watched(run) if resumed else watcher, range(1, 3))
    places = [(line["stage"], line["step"]) for line in logged(tmp_path / "metrics.jsonl")]
    assert places == [("select", 1), ("select", 2), ("select", 3), ("refit", 1), ("refit", 2)]


def test_log_that_a_kill_cut_short_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    run = Started(tmp_path)
    evaluate_at(watched(run), range(1, 3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["step"] for line in logged(path)] == [1]
    evaluate_at(watched(run), range(2, 4))
    assert [line["step"] for line in logged(path)] == [1, 2, 3]


def test_log_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\0\0\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged; repair or remove it"):
        logged(path)


# --- runs that are refused ---


def test_train_makes_a_run_of_the_name_given(forker: Forker) -> None:
    ended = forker.run("train", "ctr.toml", "--name", "named", "--json")
    assert (ended.code, json.loads(ended.out)["run"]) == (0, "runs/named")
    refused(forker.run("train", "ctr.toml", "--name", "a/b"), "name: String should match pattern")


def test_train_starts_from_another_run(forker: Forker) -> None:
    """Stopped at its first step and resumed, it ends with the same validation metrics as one that was not."""
    assert forker.run("train", "ctr.toml", "--name", "parent").code == 0
    start = ("train", "ctr.toml", "--json", "--init-from", "runs/parent")
    whole = json.loads(forker.run(*start, "--name", "child").out)
    assert whole["init_from"].endswith("runs/parent")
    assert forker.run(*start, "--name", "stopped", term_at_step=1).code == 75
    resumed = json.loads(forker.run(*start, "--name", "stopped", "--resume").out)
    assert resumed["validation"] == whole["validation"]
    refused(forker.run(*start, "--name", "parent"), "runs/parent did not start from another run")
    refused(forker.run(*start, "model.hidden=[3]", "--name", "other"), "has another model.options.hidden")


def test_evaluate_refuses_an_unfinished_run_and_a_split_that_is_not_there(forker: Forker) -> None:
    assert forker.run("train", "ctr.toml", "--name", "unfinished", term_at_step=1).code == 75
    refused(forker.run("evaluate", "runs/unfinished"), "runs/unfinished is not finished; continue it with")
    refused(forker.run("export", "runs/unfinished", "--out", "store"), "runs/unfinished is not finished")
    assert forker.run("train", "ctr.toml", "--name", "unfinished", "--resume").code == 0
    refused(forker.run("evaluate", "runs/unfinished", "--split", "tets"), "has no split 'tets', it has train, valid")


def test_evaluate_says_that_there_is_no_test_split(forker: Forker) -> None:
    assert forker.run("train", "ctr.toml", "data.split.test=0", "--name", "untested").code == 0
    refused(forker.run("evaluate", "runs/untested"), "has no split 'test', it has train, validation")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("pattern", ["last.json", "last-*/index.json", "last-*/shard-0.safetensors"])
def test_train_refuses_a_checkpoint_with_a_flipped_byte(forker: Forker, pattern: str) -> None:
    name = f"flipped-{pattern.partition('/')[2] or 'pointer'}"
    assert forker.run("train", "ctr.toml", "--name", name, term_at_step=1).code == 75
    path = next((forker.folder / "runs" / name / "checkpoints" / "select").glob(pattern))
    whole = path.read_bytes()
    flipped(path)
    refused(forker.run("train", "ctr.toml", "--name", name, "--resume"), "is damaged")
    path.write_bytes(whole)
    assert forker.run("train", "ctr.toml", "--name", name, "--resume").code == 0


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("run.json", lambda text: text[:-5], "run.json is damaged"),
        ("run.json", lambda text: text.replace("finished", "finishes"), "run.json is damaged or of another version"),
        ("config.json", lambda text: text[:-5], "config.json is damaged"),
        ("config.json", lambda text: text.replace("batch_size", "batch_sise"), "did you mean 'batch_size'"),
        ("config.json", lambda text: "[]", "holds no JSON object"),
    ],
)
def test_evaluate_refuses_a_damaged_run(forker: Forker, file: str, damage: Callable[[str], str], says: str) -> None:
    assert forker.run("train", "ctr.toml", "--name", "damaged").code == 0
    path = forker.folder / "runs" / "damaged" / file
    whole = path.read_text()
    path.write_text(damage(whole))
    refused(forker.run("evaluate", "runs/damaged"), says)
    path.write_text(whole)


def test_evaluate_says_that_the_prepared_data_is_gone(forker: Forker) -> None:
    assert forker.run("train", "ctr.toml", "--name", "alone", "--prepared", "elsewhere").code == 0
    (forker.folder / "elsewhere").rename(forker.folder / "moved")
    refused(forker.run("evaluate", "runs/alone"), "is no prepared data")
    (forker.folder / "moved").rename(forker.folder / "elsewhere")
    assert Run.open(forker.folder / "runs" / "alone").finished


# --- labels ---


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (lambda n: n % 5, "label 'click' is"),
        (lambda n: -(n % 2), "accepted is from 0 to 1: say which values are positive"),
        (lambda n: 0, "split 'validation', label 'click': auc needs rows of both classes"),
        (lambda n: 0.5, "label 'click' is 0.5 in some row of 'validation', accepted is 0 or 1 where"),
    ],
)
def test_train_refuses_labels_that_are_no_clicks(forker: Forker, label: Callable[[int], float], says: str) -> None:
    rows = "".join(f"u{n % 7},i{n % 5},{label(n)}\n" for n in range(200))
    (forker.folder / "log.csv").write_text("user,item,click\n" + rows)
    refused(forker.run("train", "log.toml", "--data", ".", "--name", f"labels{says[-9:-3]}"), says)


# --- where the time goes ---


def test_train_with_profile_says_where_the_time_goes(forker: Forker) -> None:
    ended = forker.run("train", "ctr.toml", "training.batch_size=200", "--name", "profiled", "--profile")
    assert ended.code == 0, ended.err
    (said,) = [line for line in ended.err.splitlines() if line.startswith("a step: ")]
    assert [part in said for part in ("loader", "forward", "backward", "update", "rest", "rows/s")] == [True] * 6
    assert json.loads((forker.folder / "runs" / "profiled" / "trace.json").read_text())["traceEvents"]
    short = forker.run("train", "ctr.toml", "--name", "short", "--profile")
    assert "no profile: training ended within the 10 steps of warm-up" in short.err

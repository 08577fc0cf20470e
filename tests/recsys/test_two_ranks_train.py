"""Two ranks train what one process trains, and either goes on from where the other was stopped or killed.

Through the command, on tables sharded by torchrec, with the uneven batches that trouble ranks: odd ones, and a last one
of a single row, of which one rank has nothing.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from recsys import distributed
from recsys.config import RunConfig
from recsys.models.interface import PhaseSettings, Ranker, Retriever
from recsys.phases import Until
from recsys.run import Run, build_model
from recsys.training.checkpoint import Checkpoints
from recsys.training.optimizers import make_optimizer
from recsys.training.state import dense_tensors, load_training, model_tensors, table_tensors
from tests.recsys.forked_ranks import Ended, RankForker
from tests.recsys.small_project import CTR, write_project

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = {
    # DCN-V2 over one store that all features read in chunks, histories too: epochs of 5 x 1,201 rows and 1
    "ctr": [
        "data.split.validation=0.13", "training.batch_size=1201", "evaluation.batch_size=201", "model.activation=silu",
    ],
    # two-tower, in-batch softmax over the rows of both ranks: epochs of 3 x 395 rows and 1
    "retriever": [
        "data.split.validation=0.14", "training.batch_size=395", "training.refit=false", "model.layers=[8]",
        "tables.backend=sharded", "tables.sharding=row_wise", "optimizer.tables.name=rowwise_adagrad",
        "optimizer.tables.lr=0.1",
    ],
    # the click model again, its store split by columns
    "columns": [
        "data.split.validation=0.13", "training.batch_size=1201", "evaluation.batch_size=201", "model.activation=silu",
        "tables.backend=sharded", "tables.sharding=column_wise", "tables.ids.chunk_dim=10",
        "optimizer.tables.name=adagrad",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A folder with configs, and the interpreter that runs them there."""

    forker: RankForker
    folder: Path
    wholes: dict[tuple[str, int], list[Ended]] = field(default_factory=dict)

    def train(self, name: str, runs: Path, *more: str, **options: Any) -> list[Ended]:
        """`recsys train`; options are those of `Job`."""
        return self.forker.run("train", f"{name}.toml", "--runs", runs, "--json", *SETTINGS[name], *more, **options)

    def whole(self, name: str, num_ranks: int) -> tuple[Path, list[Ended]]:
        """The run that nothing stopped, trained when it is first asked for, and how its ranks ended."""
        runs = self.folder / f"whole{num_ranks}"
        if (name, num_ranks) not in self.wholes:
            self.wholes[name, num_ranks] = self.train(name, runs, num_ranks=num_ranks)
        ended = self.wholes[name, num_ranks]
        assert [rank.code for rank in ended] == [0] * num_ranks, ended
        return runs / name, ended


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = write_project(tmp_path_factory.mktemp("two_ranks"))
    (folder / "columns.toml").write_text(CTR)
    with RankForker(folder) as forker:
        for name, settings in SETTINGS.items():
            assert forker.run("prepare", f"{name}.toml", *settings, num_ranks=1)[0].code == 0
        yield Project(forker, folder)


@pytest.fixture(params=["ctr", "retriever", pytest.param("columns", marks=pytest.mark.slow)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- equal ---


def test_two_ranks_train_what_one_process_trains(project: Project, name: str) -> None:
    (one, (alone,)), (two, ranks) = project.whole(name, 1), project.whole(name, 2)
    assert len(alone.losses) >= 8
    assert (ranks[0].losses, ranks[0].rows) == (ranks[1].losses, ranks[1].rows)
    assert list(ranks[0].rows.values()).count(1) == 2  # of which rank 0 has the row, and rank 1 a copy of weight 0
    assert_close(list(ranks[0].losses.values()), list(alone.losses.values()), rtol=0, atol=1e-5)
    for mine, other in zip(evaluations(two), evaluations(one), strict=True):
        assert_close(mine, other, rtol=0, atol=1e-4)
    assert_close(weights_of(two), weights_of(one), rtol=1e-4, atol=1e-5)


def test_two_ranks_start_from_what_one_process_trained(project: Project, tmp_path: Path, name: str) -> None:
    parent = project.whole(name, 1)[0]
    for ranks in (1, 2):
        more = ("--init-from", str(parent), "--name", f"child{ranks}", "training.max_epochs=1")
        ended = project.train(name, tmp_path, *more, num_ranks=ranks)
        assert [rank.code for rank in ended] == [0] * ranks, ended
    for mine, other in zip(evaluations(tmp_path / "child2"), evaluations(tmp_path / "child1"), strict=True):
        assert_close(mine, other, rtol=0, atol=1e-4)
    assert_close(weights_of(tmp_path / "child2"), weights_of(tmp_path / "child1"), rtol=1e-4, atol=1e-5)


def test_two_ranks_evaluate_what_one_process_evaluates(project: Project, name: str) -> None:
    """The test report of what two ranks trained, against that of what one process trained."""
    (one, _), (two, _) = project.whole(name, 1), project.whole(name, 2)
    mine, other = Run.open(two).evaluate().metrics, Run.open(one).evaluate().metrics
    assert_close(dict(mine), dict(other), rtol=0, atol=1e-4)


def test_epochs_are_of_odd_batches_and_a_single_row(project: Project, name: str) -> None:
    run = Run.open(project.whole(name, 2)[0])
    assert run.prepared.view("train").num_rows % run.config.training.batch_size == 1
    assert run.config.training.batch_size % 2 == 1


def evaluations(run: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says of each evaluation, without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in ("seconds", "stage")} for line in lines]
    found = [line for line in kept if "best" in line]
    assert found
    return found


def weights_of(run: Path) -> dict[str, Tensor]:
    model = Run.open(run).model()
    assert isinstance(model, Ranker | Retriever)
    return dict(model.state_dict())


# --- who speaks ---


def test_only_rank_zero_speaks_and_writes(project: Project, name: str) -> None:
    run, (first, second) = project.whole(name, 2)
    assert (second.out, second.err) == ("", "")
    assert json.loads(first.out)["stage"] == "finished"
    assert first.out.count("\n") == 1
    assert [line["epoch"] for line in evaluations(run)] == [0, 1]
    shards = sorted(path.name for path in run.glob("checkpoints/select/last-*/shard-*"))
    assert shards[0] == "shard-0.safetensors"


# --- stopped and killed ---


@pytest.mark.parametrize(
    ("signals", "codes"),
    [
        ([(1, 3, "TERM")], [75, 75]),
        ([(1, 8, "KILL")], [1, -signal.SIGKILL]),
        ([(0, 2, "KILL"), (1, 2, "KILL")], [-signal.SIGKILL, -signal.SIGKILL]),
    ],
    ids=["one asked to stop", "one killed", "both killed"],
)
def test_two_ranks_resume_bit_for_bit(
    project: Project, tmp_path: Path, signals: list[tuple[int, int, str]], codes: list[int]
) -> None:
    stopped = project.train("ctr", tmp_path, signals=signals)
    assert [rank.code for rank in stopped] == codes, stopped
    resumed = project.train("ctr", tmp_path, "--resume")
    assert [rank.code for rank in resumed] == [0, 0], resumed
    run, whole = project.whole("ctr", 2)
    assert resumed[0].losses
    assert resumed[0].losses.items() < whole[0].losses.items()
    assert_same_tensors(tmp_path / "ctr", run)


def test_a_stop_says_how_to_go_on(project: Project, tmp_path: Path) -> None:
    first, second = project.train("ctr", tmp_path, signals=[(1, 1, "TERM")])
    assert (first.out, second.out, second.err) == ("", "", "")
    (line,) = first.err.splitlines()
    assert line.startswith("stopped by a signal")
    assert line.endswith("continue with --resume")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_is_one_line(project: Project, tmp_path: Path, lost: int) -> None:
    ended = project.train("ctr", tmp_path, signals=[(lost, 1, "KILL")])
    assert ended[1 - lost].code == 1
    assert said_errors(ended) == ["error: another rank has ended or cannot be reached; continue with --resume"]


def said_errors(ended: list[Ended]) -> list[str]:
    """The errors of all ranks; torch too prints lines on a rank that has lost the one that counts."""
    return [line for rank in ended for line in rank.err.splitlines() if line.startswith("error:")]


def assert_same_tensors(run: Path, other: Path) -> None:
    """Every checkpoint of both runs holds the same, bit for bit."""
    pointers = sorted(path.relative_to(run) for path in run.glob("checkpoints/*/*.json"))
    assert pointers
    for pointer in pointers:
        mine, theirs = (Checkpoints((at / pointer).parent).load(pointer.stem) for at in (run, other))
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), key


# --- another number of ranks ---


@pytest.mark.parametrize(("began", "goes_on"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_goes_on(project: Project, tmp_path: Path, name: str, began: int, goes_on: int) -> None:
    stopped = project.train(name, tmp_path, num_ranks=began, signals=[(began - 1, 2, "TERM")])
    assert [rank.code for rank in stopped] == [75] * began, stopped
    run = tmp_path / name
    restored = project.forker.run(f"{__name__}:save_restored", run, tmp_path / "restored", num_ranks=goes_on)
    assert [rank.code for rank in restored] == [0] * goes_on, restored
    assert_same_checkpoint(Checkpoints(tmp_path / "restored"), Checkpoints(run / "checkpoints" / "select"))
    resumed = project.train(name, tmp_path, "--resume", num_ranks=goes_on)
    assert [rank.code for rank in resumed] == [0] * goes_on, resumed
    _, whole = project.whole(name, began)
    assert resumed[0].losses
    later = {step: loss for step, loss in whole[0].losses.items() if step in resumed[0].losses}
    assert_close(resumed[0].losses, later, rtol=0, atol=1e-5)


def save_restored(run: str, out: str) -> None:
    """Load a run's checkpoint into a new model and new optimizers, on however many ranks; save what they then hold."""
    with distributed.joined_ranks():
        opened = Run.open(run)
        config, prepared = opened.config, opened.prepared
        model = build_model(config, prepared.encoder)
        assert isinstance(model, Ranker | Retriever)
        phases = model.phases(prepared.view("train"), phase_settings(config))
        load_training(model, phases, Checkpoints(Path(run) / "checkpoints" / "select"), "last")
        held = model_tensors(model) | table_tensors(model) | dense_tensors(model, phases)
        Checkpoints(out).save(held, {})


def phase_settings(config: RunConfig) -> PhaseSettings:
    return PhaseSettings(
        batch_size=config.training.batch_size, seed=config.seed, until=Until(max_epochs=1),
        make_optimizer=lambda parameters: make_optimizer(config.optimizer.dense, parameters),
        rank=distributed.rank(), world_size=distributed.world_size(), gather=distributed.gather_rows,
    )  # fmt: skip


def assert_same_checkpoint(one: Checkpoints, other: Checkpoints) -> None:
    mine, theirs = one.load("last"), other.load("last")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# --- errors ---


def test_an_unreadable_shard_is_named_at_any_number_of_ranks(project: Project, tmp_path: Path) -> None:
    assert project.train("ctr", tmp_path, signals=[(0, 2, "TERM")])[0].code == 75
    shard = max((tmp_path / "ctr" / "checkpoints" / "select").glob("last-*/shard-*"))
    content = shard.read_bytes()
    for damaged, num_ranks in ((content[:-1] + bytes([content[-1] ^ 1]), 2), (content[: len(content) // 2], 1)):
        shard.write_bytes(damaged)
        ended = project.train("ctr", tmp_path, "--resume", num_ranks=num_ranks)
        assert [rank.code for rank in ended] == [2] * num_ranks, ended
        (error,) = said_errors(ended)
        assert shard.name in error
        assert "is damaged" in error
    shard.write_bytes(content)
    assert [rank.code for rank in project.train("ctr", tmp_path, "--resume")] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ctr.toml", "training.batch=1"], "unknown key 'batch'"),
        (["nothing.toml"], "there is no config file"),
        (["ctr.toml", "data.path=nowhere"], "there is no world 'nowhere'"),
        (["ctr.toml", "tables.backend=plain"], "'plain' is for one process"),
        (["ctr.toml", "tables.backend=sharded", "tables.sharding=column_wise"], "'column_wise' under RowWiseAdagrad"),
        (["ctr.toml", "tables.ids.num_embeddings=0"], "num_embeddings"),
        (["ctr.toml", "optimizer.tables.lr=1e30", "--runs", "endless"], "the loss is"),
    ],
    ids=["typo", "no config", "no data", "plain", "sharding", "table", "loss"],
)
def test_an_error_on_two_ranks_is_one_line_and_code_2(project: Project, arguments: list[str], said: str) -> None:
    ended = project.forker.run("train", *arguments)
    assert [rank.code for rank in ended] == [2, 2], ended
    (error,) = said_errors(ended)
    assert said in error


def test_an_unfinished_run_is_refused_on_two_ranks(project: Project, tmp_path: Path) -> None:
    assert project.train("ctr", tmp_path, signals=[(0, 1, "TERM")])[0].code == 75
    ended = project.train("ctr", tmp_path)
    assert [rank.code for rank in ended] == [2, 2], ended
    assert sum(rank.err.count("--resume") for rank in ended) == 1


# --- the demo, under torchrun ---


@pytest.mark.slow
def test_torchrun_trains_the_demo_as_one_process_does(tmp_path: Path) -> None:
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    train = ["-m", "recsys.cli", "train", "configs/demo_ctr.toml", "training.threads=1", "--json"]
    told = {}
    for name, launcher in launchers.items():
        folders = ["--prepared", str(tmp_path / "prepared"), "--runs", str(tmp_path / name)]
        command = [sys.executable, *launcher, *train, *folders]
        ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
        (line,) = ended.stdout.splitlines()
        told[name] = json.loads(line)
    one, two = told["one"], told["two"]
    assert one["best_epoch"] == two["best_epoch"]
    assert abs(one["validation"]["logloss"] - two["validation"]["logloss"]) < 1e-5
    assert abs(one["validation"]["auc"] - two["validation"]["auc"]) < 1e-4
    tested = [Run.open(tmp_path / name / "demo_ctr").evaluate().metrics for name in told]
    assert_close(dict(tested[1]), dict(tested[0]), rtol=0, atol=1e-4)

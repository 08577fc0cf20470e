"""Runs commands of ours in children of one interpreter that has imported everything once: a command costs its own work
alone, may be killed at a fault point or at a moment, and nothing that it does reaches the tests.

    with Forker(folder) as forker:
        ended = forker.run("train", "configs/ctr.toml", fault="7:kill")
        assert ended.code == -signal.SIGKILL

As a script this is that interpreter: it reads a job a line, forks a child for it, and writes how it ended.
"""

import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (minus the signal), what it printed, and the fault points that it passed."""

    code: int
    out: str
    err: str
    points: list[str]


class Forker:
    """The forking interpreter, in `folder`. Options of `run`, see `Job`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Forker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def run(self, *arguments: object, **options: Any) -> Ended:
        """Run `recsys ARGUMENTS`, or `module:function ARGUMENTS` of the tests' own."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = options | {"arguments": [str(argument) for argument in arguments]}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def ask(self, function: str, *arguments: object) -> Any:
        """What a function of this module returns in a child."""
        ended = self.run(f"tests.recsys.forked:{function}", *arguments)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)


@dataclass(frozen=True, kw_only=True)
class Job:
    """fault: "<number>:kill" or ":enospc". kill_after_s: SIGKILL that long after the start. term_at_step: SIGTERM to
    itself at that training step.
    """

    arguments: list[str]
    fault: str = ""
    kill_after_s: float | None = None
    term_at_step: int | None = None


def _serve() -> None:
    for line in sys.stdin:
        print(json.dumps(vars(_forked(Job(**json.loads(line))))), flush=True)


def _forked(job: Job) -> Ended:
    names = ("out.txt", "err.txt", "points.txt")
    for name in names:
        Path(name).write_text("")
    child = os.fork()
    if child == 0:
        _run(job)
    if job.kill_after_s is not None:
        time.sleep(job.kill_after_s)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out, err, points = (Path(name).read_text() for name in names)
    return Ended(code, out, err, points.splitlines())


def _run(job: Job) -> None:
    """The child: it never returns."""
    from features import faults

    for name, descriptor in (("out.txt", 1), ("err.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY), descriptor)
    faults._plan = faults.plan_of(job.fault, "points.txt")
    os.fsync = lambda fd: None  # what a killed process has written is there without it, and it waits for the disk
    code: Any = 1
    try:
        if job.term_at_step is not None:
            _terminate_at(job.term_at_step)
        code = _called(job.arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # whatever it is, this child must not go on with its parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


def _called(arguments: list[str]) -> int:
    if ":" in arguments[0]:
        module, function = arguments[0].split(":")
        print(json.dumps(getattr(importlib.import_module(module), function)(*arguments[1:])))
        return 0
    from recsys import cli

    sys.argv = ["recsys", *arguments]
    cli.main()
    return 0


def _terminate_at(step: int) -> None:
    from recsys.cli.train import Watcher
    from recsys.training.trainer import Progress

    shown = Watcher.on_step

    def on_step(self: Watcher, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        shown(self, progress, total_batches, loss, rows)
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    Watcher.on_step = on_step  # type: ignore[method-assign]


# --- what the tests run in a child, beside commands ---


def digest(run: str) -> dict[str, Any]:
    """Everything that a finished run found, without the times: state, test report, log of evaluations, every weight."""
    from recsys.cli.train import logged
    from recsys.run import Run
    from recsys.training.checkpoint import Checkpoints

    folder = Path(run)
    report = Run.open(folder).evaluate().to_json()
    state = json.loads((folder / "run.json").read_text())
    evaluations = [line for line in logged(folder / "metrics.jsonl") if "best" in line]
    for record in (state, *evaluations):
        record.pop("seconds")
    weights = {}
    for pointer in sorted((folder / "checkpoints").glob("*/*.json")):
        for name, tensor in Checkpoints(pointer.parent).load(pointer.stem).items():
            values = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
            weights[f"{pointer.parent.name}/{pointer.stem}/{name}"] = values
    return {"state": state, "report": report, "log": evaluations, "weights": weights}


def verified(store: str) -> dict[str, Any]:
    """The faults of a store, its labels, and the bundle that opens as "stable", every byte of it verified."""
    from recsys.bundle import BundleStore

    opened = BundleStore(store)
    return {"faults": opened.verify(), "labels": opened.labels(), "stable": opened.open("stable").id}


# --- which points ---


def label_of(point: str) -> str:
    """A point's label without what names one of many alike: numbers, ids, vocabularies."""
    return re.sub(r"[0-9a-f]{64}|[0-9]+", "#", re.sub(r"\w+\.parquet", "*.parquet", point))


def kind_of(point: str) -> str:
    """What happens at a point, and to what kind of file: "write:.json"."""
    return re.sub(r":.*?(\.\w+)?$", r":\1", point)


def once_each(points: list[str], key: Callable[[str], str] = label_of) -> list[int]:
    """The numbers (from 1) of one point for each key, which one is drawn with a seed."""
    alike: dict[str, list[int]] = {}
    for number, point in enumerate(points, 1):
        alike.setdefault(key(point), []).append(number)
    draw = random.Random(0)
    return sorted(draw.choice(numbers) for numbers in alike.values())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", module=r"(features|recsys|serving)\.")
    for imported_once in (
        "recsys.cli",
        "recsys.embedding.fused",
        "torch._dynamo",
        "pyarrow.dataset",
        "rich._emoji_codes",
    ):
        importlib.import_module(imported_once)
    _serve()

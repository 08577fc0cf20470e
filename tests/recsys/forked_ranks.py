"""Runs commands of ours on one or several ranks, forked from one interpreter that has imported everything once.

    with RankForker(folder) as forker:
        ended = forker.run("train", "ctr.toml", signals=[(1, 3, "KILL")])      # rank 1 dies after its step 3
        assert [rank.code for rank in ended] == [1, -signal.SIGKILL]

Ranks find each other as under torchrun, on a free port; at one rank there are no such variables: a plain process. No
launcher watches them, so a rank that waits for ever for another is seen as a hang. As a script this is that
interpreter: it reads a job a line and writes how its ranks ended.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
HUNG = 99


@dataclass(frozen=True)
class Ended:
    """How a rank ended: exit code (minus the signal; HUNG), what it printed, loss and rows of each step it took."""

    code: int
    out: str
    err: str
    losses: dict[int, float]
    rows: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run.

    arguments: of `recsys`, or "module:function" of the tests and its own. signals: (rank, step, name): a rank sends
    itself SIG<name> after a training step. timeout_s: ranks that run longer are killed, and have hung.
    """

    arguments: list[str]
    num_ranks: int = 2
    signals: Sequence[tuple[int, int, str]] = field(default_factory=list)
    timeout_s: float = 120.0


class RankForker:
    """The forking interpreter, in `folder`; options of `run` are those of `Job`."""

    def __init__(self, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "500"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "RankForker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def run(self, *arguments: object, **options: Any) -> list[Ended]:
        """Run `recsys ARGUMENTS`, or `module:function ARGUMENTS` of the tests' own; how each rank ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = options | {"arguments": [str(argument) for argument in arguments]}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return [_ended(rank) for rank in json.loads(self.process.stdout.readline())]


def _ended(rank: Mapping[str, Any]) -> Ended:
    steps = [line.split() for line in rank["steps"].splitlines()]
    losses = {int(step): float.fromhex(loss) for step, loss, _ in steps}
    rows = {int(step): int(count) for step, _, count in steps}
    return Ended(code=rank["code"], out=rank["out"], err=rank["err"], losses=losses, rows=rows)


# --- the interpreter ---


def _serve() -> None:
    for line in sys.stdin:
        job = Job(**json.loads(line))
        port = _free_port()
        children = [_fork(job, rank, port) for rank in range(job.num_ranks)]
        codes = _wait(children, job.timeout_s)
        print(json.dumps([_told(rank, code) for rank, code in enumerate(codes)]), flush=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(children: list[int], timeout_s: float) -> list[int]:
    """Exit codes in order; those that do not end in time are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(children):
        for child in (child for child in children if child not in codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = HUNG
        time.sleep(0.02)
    return [codes[child] for child in children]


def _files(rank: int) -> dict[str, Path]:
    return {name: Path(f"{name}-{rank}.txt") for name in ("out", "err", "steps")}


def _told(rank: int, code: int) -> dict[str, Any]:
    return {"code": code} | {name: path.read_text() for name, path in _files(rank).items()}


# --- a rank ---


def _fork(job: Job, rank: int, port: int) -> int:
    for path in _files(rank).values():
        path.write_text("")
    child = os.fork()
    if child:
        return child
    if job.num_ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.num_ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(_files(rank)[name], os.O_WRONLY), descriptor)
    code: Any = 1
    try:
        _watch(rank, {step: name for number, step, name in job.signals if number == rank})
        code = _called(job.arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # whatever it is, this child must not go on with its parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)


def _called(arguments: list[str]) -> int:
    if ":" in arguments[0]:
        module, function = arguments[0].split(":")
        getattr(importlib.import_module(module), function)(*arguments[1:])
        return 0
    from recsys import cli

    sys.argv = ["recsys", *arguments]
    cli.main()
    return 0


def _watch(rank: int, signals: dict[int, str]) -> None:
    """Every training of this rank is watched: steps are noted, signals sent after them."""
    from recsys.run import Run
    from recsys.training.trainer import Observer, Progress

    class Watch:
        def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
            with _files(rank)["steps"].open("a") as steps:
                steps.write(f"{progress.step} {loss.hex()} {rows}\n")
            if progress.step in signals:
                os.kill(os.getpid(), getattr(signal, f"SIG{signals[progress.step]}"))

        def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
            pass

    train = Run.train

    def watched(self: Run, observers: Sequence[Observer] = ()) -> None:
        train(self, (*observers, Watch()))

    Run.train = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", module=r"(features|recsys|serving)\.")
    from recsys import cli as _imported_once  # noqa: F401
    from recsys.embedding import sharded as _and_this  # noqa: F401

    _serve()

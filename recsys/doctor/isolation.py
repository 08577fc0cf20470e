"""Work done in processes that may die: a crash, an exception or a hang costs one job, not the command.

One interpreter imports what the jobs need, once, and forks the ranks that do them; ranks find each other as under
torchrun, over gloo. Ranks that die or do not answer cost the job they had in hand: it is `Lost`, with what was seen of
their end, and fresh ranks go on with the next one. A job is "module:function", a text that it is given, and the number
of ranks that call it together; rank 0's answer, JSON values, counts.

As a module this is that interpreter: it reads its work as JSON from stdin and writes an answer a line to stdout.
"""

import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from recsys import distributed

ROOT = Path(__file__).resolve().parents[2]
LAST_WORDS_S = 3.0
POLL_S = 0.2
GLOO = "/gloo/"  # in what a rank says that has lost another one


@dataclass(frozen=True)
class Job:
    """What to call, with which text, on how many ranks."""

    work: str
    argument: str
    num_ranks: int = 1


@dataclass(frozen=True)
class Lost:
    """A job whose ranks died, and how."""

    reason: str


class ImportFailedError(Exception):
    """The interpreter ended while it imported what the jobs need; the text says how."""


def run_jobs(jobs: Sequence[Job], imports: Sequence[str] = (), timeout_s: float = 120.0) -> Iterator[Any]:
    """The answer of each job, or `Lost`, in order, as they come.

    imports: modules to import before ranks are forked. timeout_s: what a job may take. Raises ImportFailedError.
    """
    with tempfile.TemporaryDirectory() as folder, _interpreter(Path(folder)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        work = {"jobs": [asdict(job) for job in jobs], "imports": list(imports), "timeout_s": timeout_s}
        process.stdin.write(json.dumps(work) + "\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise ImportFailedError(_ending(process.wait(), _errors(Path(folder))))
        for _ in jobs:
            line = process.stdout.readline()
            answer = json.loads(line) if line else {"lost": _ending(process.wait(), _errors(Path(folder)))}
            yield Lost(answer["lost"]) if "lost" in answer else answer["result"]


@contextmanager
def _interpreter(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The forking interpreter in a process group of its own, which is gone when this ends."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with (
        _errors(folder).open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "recsys.doctor.isolation"], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        finally:
            _kill_group(process.pid)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _errors(folder: Path, rank: int | None = None) -> Path:
    """Where an interpreter or a rank writes its stderr."""
    return folder / ("interpreter.txt" if rank is None else f"rank-{rank}.txt")


def _ending(code: int, errors: Path) -> str:
    """How a process ended: its signal, or the last line that it wrote, which of an exception is its text."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return re.sub(r"^\[rank\d+\]: ", "", lines[-1]) if lines else f"exit code {code}"


# --- the interpreter ---


def _serve() -> None:
    work = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    for module in work["imports"]:
        importlib.import_module(module)
    _tell(answers, {"imported": True})
    jobs = [Job(**job) for job in work["jobs"]]
    for num_ranks, group in groupby(jobs, key=lambda job: job.num_ranks):
        for answer in _answers(list(group), num_ranks, work["timeout_s"]):
            _tell(answers, answer)


def _tell(stream: Any, value: Any) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def _answers(jobs: Sequence[Job], num_ranks: int, timeout_s: float) -> Iterator[dict[str, Any]]:
    """An answer per job; ranks are forked as often as it takes."""
    while jobs:
        ranks = _Ranks(jobs, num_ranks)
        answered = 0
        for answer in ranks.lines(timeout_s):
            answered += 1
            yield {"result": json.loads(answer)}
        reason = ranks.end()
        jobs = jobs[answered:]
        if jobs:
            yield {"lost": reason}
            jobs = jobs[1:]


class _Ranks:
    """Forked ranks that do jobs, of which rank 0 writes a line each."""

    def __init__(self, jobs: Sequence[Job], num_ranks: int) -> None:
        port = _free_port()
        reader, writer = os.pipe()
        self.children = {_fork(jobs, rank, num_ranks, port, (reader, writer)): rank for rank in range(num_ranks)}
        self.codes: dict[int, int] = {}
        self.hung_s = 0.0
        os.close(writer)
        self.reader = reader

    def lines(self, timeout_s: float) -> Iterator[bytes]:
        """What rank 0 writes, until it ends, a while after another rank has died, or when nothing comes in time."""
        pending, since = b"", time.monotonic()
        while time.monotonic() - since < (LAST_WORDS_S if self._a_rank_has_died() else timeout_s):
            if not select.select([self.reader], [], [], POLL_S)[0]:
                continue
            read = os.read(self.reader, 1 << 16)
            if not read:
                return
            *whole, pending = (pending + read).split(b"\n")
            yield from whole
            since = time.monotonic()
        self.hung_s = time.monotonic() - since

    def _a_rank_has_died(self) -> bool:
        self._reap(os.WNOHANG)
        return any(self.codes.values())

    def _reap(self, options: int) -> None:
        for child in self.children.keys() - self.codes:
            done, status = os.waitpid(child, options)
            if done:
                self.codes[child] = os.waitstatus_to_exitcode(status)

    def end(self) -> str:
        """Kill what is left; how the ranks ended, for a job without an answer."""
        os.close(self.reader)
        deadline = time.monotonic() + LAST_WORDS_S
        while len(self.codes) < len(self.children) and time.monotonic() < deadline and not self.hung_s:
            self._reap(os.WNOHANG)
            time.sleep(0.01)
        killed = self.children.keys() - self.codes
        for child in killed:
            os.kill(child, signal.SIGKILL)
        self._reap(0)
        endings = {
            rank: _ending(self.codes[child], _errors(Path(), rank))
            for child, rank in self.children.items()
            if child not in killed and self.codes[child]
        }
        if not endings:
            return f"no answer within {self.hung_s:.0f} s"
        causes = {rank: ending for rank, ending in endings.items() if GLOO not in ending} or endings
        return "; ".join(f"rank {rank}: {ending}" for rank, ending in sorted(causes.items()))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _fork(jobs: Iterable[Job], rank: int, num_ranks: int, port: int, pipe: tuple[int, int]) -> int:
    child = os.fork()
    if not child:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        _be_rank(jobs, rank, pipe)
    return child


def _be_rank(jobs: Iterable[Job], rank: int, pipe: tuple[int, int]) -> NoReturn:
    """What a forked rank does; it never returns into its parent's code."""
    code = 1
    try:
        for unused in pipe[:1] if rank == 0 else pipe:
            os.close(unused)
        _redirect(_errors(Path(), rank))
        _work(jobs, pipe[1])
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def _redirect(path: Path) -> None:
    """Send stdout and stderr into a fresh file."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(opened, 1)
    os.dup2(opened, 2)


def _work(jobs: Iterable[Job], answers: int) -> None:
    with distributed.joined_ranks(timeout_s=60.0):
        for job in jobs:
            module, function = job.work.split(":")
            result = getattr(importlib.import_module(module), function)(job.argument)
            if distributed.rank() == 0:
                os.write(answers, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    _serve()

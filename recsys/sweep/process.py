"""Work in a process of its own: a crash or running out of memory is a failed cell, not the end of the sweep.

Processes are forked from a server that has imported everything and touched nothing, so that a cell costs its own work
alone and its peak memory is its own. What it prints goes to its log. It dies when the sweep does, however that dies,
so that the next sweep finds its folder to itself. Not here: what the work is (`cell`).
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from recsys.sweep.outcome import Outcome
from recsys.training.trainer import Interrupted

PRELOADED = ["recsys.sweep.cell", "recsys.embedding.fused", "torch._dynamo"]
INTERRUPTED = 75
Tell = Callable[[str], None]
Task = TypeVar("Task")
SIGNALLED = "by signal {0}, as when the memory of the machine ran out"


class CellFailed(Exception):  # noqa: N818  # an end that the sweep records
    """The training of a cell failed; the message is the reason, in one line."""


def run_in_process(work: Callable[[Task, Tell], Outcome], task: Task, log: Path, tell: Tell) -> Outcome:
    """What `work` returns in a new process, which is given the task and passes on what it tells.

    work, task: a function of a module and a value, which the other process can have. log: what it prints.
    Raises CellFailed with the reason, OSError where the machine rather than the method failed, and Interrupted after a
    signal, when the cell has written its checkpoint. A KeyboardInterrupt here ends it in the same way.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, task, log, other), daemon=True)
    process.start()
    other.close()
    try:
        said = _listen(mine, tell)
        process.join()
    except BaseException:
        process.terminate()  # it finishes its step and writes a checkpoint
        process.join()
        raise
    return _outcome(said, process.exitcode or 0, log)


def _listen(connection: Connection, tell: Tell) -> Mapping[str, Any]:
    """Pass on what the cell tells; returns the last thing it said of how it ended."""
    ended: Mapping[str, Any] = {}
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return ended
        if isinstance(message, str):
            tell(message)
        else:
            ended = message


def _outcome(said: Mapping[str, Any], code: int, log: Path) -> Outcome:
    if code == INTERRUPTED:
        raise Interrupted("stopped by a signal")
    if "os_error" in said:
        raise OSError(said["os_error"])
    if "outcome" in said:
        return Outcome.from_values(said["outcome"], str(log))
    if "failure" in said:
        raise CellFailed(said["failure"])
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    raise CellFailed(f"the process ended {SIGNALLED.format(-code)}" if code < 0 else f"{last} (see {log})")


def _child(work: Callable[[Task, Tell], Outcome], task: Task, log: Path, connection: Connection) -> None:
    """In the new process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _redirect(log)
    try:
        outcome = work(task, connection.send)
        connection.send({"outcome": outcome.values()})
    except Interrupted:
        sys.exit(INTERRUPTED)
    except OSError as error:
        connection.send({"os_error": f"{error.strerror or error}: {error.filename}" if error.filename else str(error)})
    except ValueError as error:
        connection.send({"failure": " ".join(str(error).split())})


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _redirect(log: Path) -> None:
    """What this process prints, and a traceback, go to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)

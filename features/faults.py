"""Fault injection: the numbered points at which a write can fail, and the means to make it fail there.

`features/storage.py` announces each of its steps here. Normally that is one comparison with None. In a test, or in a
process started with RECSYS_FAULT, the n-th step announced (from 1) raises "no space left" or kills the process, so
that a test can enumerate the points of an operation and try each of them:

    with inject() as points:            # only records
        write_bytes(path, data)
    for number in range(1, len(points) + 1):
        ...                             # run it with inject(number, "enospc"), or a process with RECSYS_FAULT="n:kill"

Environment: RECSYS_FAULT="<n>:kill" or "<n>:enospc" for the whole life of the process; RECSYS_FAULT_LOG=<path> appends
the label of each point announced, one a line. This is a tool of tests, not a safeguard.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Kind = Literal["kill", "enospc"]


class Plan:
    """Counts the points announced, and fails at the one it was told to.

    Raises OSError(ENOSPC) at that point, or kills the process with SIGKILL.
    """

    def __init__(self, number: int | None, kind: Kind, log: str | None = None) -> None:
        self.number = number
        self.kind = kind
        self.log = log
        self.labels: list[str] = []
        self._lock = threading.Lock()

    def reach(self, label: str, damage: Callable[[], None] | None) -> None:
        """Record the point; if it is the chosen one, do the damage first, then fail."""
        with self._lock:
            self.labels.append(label)
            self._write_log(label)
            fails = len(self.labels) == self.number
        if not fails:
            return
        if damage is not None:
            damage()
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, f"no space left on device (injected at point {self.number}, {label})")

    def _write_log(self, label: str) -> None:
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as lines:
                lines.write(label + "\n")


def plan_of(fault: str, log: str | None) -> Plan | None:
    """The plan that the environment asks for; None without one. Raises ValueError for a fault that is not "n:kind"."""
    if not fault:
        return Plan(None, "kill", log) if log else None
    number, _, kind = fault.partition(":")
    if not number.isdigit() or int(number) < 1 or kind not in ("kill", "enospc"):
        raise ValueError(f'RECSYS_FAULT must be "<point from 1>:kill" or ":enospc", got {fault!r}')
    return Plan(int(number), "kill" if kind == "kill" else "enospc", log)


_plan: Plan | None = plan_of(os.environ.get("RECSYS_FAULT", ""), os.environ.get("RECSYS_FAULT_LOG"))


def point(label: str, damage: Callable[[], None] | None = None) -> None:
    """Announce a step, "<verb>:<name>". `damage` leaves behind what a crash in the middle of the step would leave."""
    if _plan is not None:
        _plan.reach(label, damage)


def fault_points() -> list[str]:
    """The labels announced so far under `inject` or the environment's plan, in order; [] when there is none."""
    return [] if _plan is None else list(_plan.labels)


@contextmanager
def inject(point_number: int | None = None, kind: Kind = "enospc") -> Iterator[list[str]]:
    """Fail at that point (from 1) of the block; None only records. Yields the list of labels, filled as they pass."""
    global _plan
    outer, _plan = _plan, Plan(point_number, kind)
    try:
        yield _plan.labels
    finally:
        _plan = outer

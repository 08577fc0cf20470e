"""Pipelines that do what a test needs: answer slowly, fail, or be told when to go on."""

import threading
import time
from collections.abc import Callable

import numpy as np

from serving.deadline import Deadline
from serving.pipeline import Pipeline
from serving.queries import Retrieved, RetrieveQuery

BUNDLE = "ab" * 32
NOTHING = Retrieved(
    items=np.zeros(0, np.int64), scores=np.zeros(0, np.float32), sources=np.zeros(0, np.uint32), source_names=()
)


class Scripted(Pipeline):
    """Calls `stage` (may wait or raise), then asks the deadline, and answers with nothing. `begun` counts the calls."""

    def __init__(self, stage: Callable[[], object] = lambda: None) -> None:
        super().__init__(BUNDLE, {}, None, None)
        self.stage = stage
        self.begun = 0
        self.entered = threading.Event()
        self.ended: list[str] = []

    def retrieve(self, query: RetrieveQuery, deadline: Deadline | None = None) -> Retrieved:
        """One scripted stage."""
        self.begun += 1
        self.entered.set()
        self.stage()
        assert deadline is not None
        self.ended.append("expired" if deadline.remaining() <= 0 else "in time")
        deadline.check("reply")
        return NOTHING


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()

"""Where the time of training goes: `Profiler`, which watches some steps and then lets the training run on.

The trainer names four parts of a step; the rest of it is agreeing over ranks, penalties, Python. With fused and sharded
tables their update is part of "backward". An evaluation among the steps is in the trace, but not in the shares.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity

from features import storage

LOADER, FORWARD, BACKWARD, UPDATE = "training: loader", "training: forward", "training: backward", "training: update"
PARTS = (LOADER, FORWARD, BACKWARD, UPDATE)


class Timed(Protocol):
    """What is read of the trainer's progress."""

    @property
    def seconds(self) -> float:
        """In training so far, without loading."""


class Profiler:
    """An observer that profiles `steps` steps after `warmup` ones and writes them as a Chrome trace.

    trace: the file, for chrome://tracing or ui.perfetto.dev. `milliseconds` is then what a step took, by part, and
    `rows_per_s` how many rows of all ranks a second saw. Profiling slows small steps: shares mean more than speed. On a
    GPU a part is the time in which it was asked for; when its kernels ran, the trace shows.
    A training that is over earlier leaves what it has done, if it has passed the warm-up: call `close`.
    """

    def __init__(self, trace: Path, steps: int = 50, warmup: int = 10) -> None:
        if steps < 1 or warmup < 1:
            raise ValueError(f"a profile needs at least 1 step and 1 of warm-up, got {steps} and {warmup}")
        self.trace = trace
        self.steps = steps
        self.warmup = warmup
        self.milliseconds: Mapping[str, float] = {}
        self.rows_per_s = 0.0
        self._seen = 0
        self._rows = 0
        self._from_s = 0.0
        self._until_s = 0.0
        self._profile: torch.profiler.profile | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Each part of a step, as a share of the whole; {} before there is a profile."""
        whole = sum(self.milliseconds.values())
        return {part: spent / whole for part, spent in self.milliseconds.items()}

    def on_step(self, progress: Timed, total_batches: int, loss: float, rows: int) -> None:
        """Start after the warm-up, stop when there are enough."""
        self._seen += 1
        self._until_s = progress.seconds
        if self._profile is not None:
            self._rows += rows
            if self._seen == self.warmup + self.steps:
                self.close()
        elif self._seen == self.warmup:
            self._start()

    def on_evaluation(self, progress: Timed, metrics: Mapping[str, float], best: bool) -> None:
        """Nothing: evaluations have no part in this."""

    def _start(self) -> None:
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = torch.profiler.profile(activities=[ProfilerActivity.CPU, *cuda])
        self._from_s = self._until_s
        self._profile.start()

    def close(self) -> None:
        """Stop, write the trace, work out the parts. Without a step since the warm-up there is nothing to do."""
        profile, self._profile = self._profile, None
        if profile is None:
            return
        profile.stop()
        if steps := self._seen - self.warmup:
            self._sum_up(profile, steps)
            with storage.file_aside(self.trace) as aside:
                profile.export_chrome_trace(str(aside))

    def _sum_up(self, profile: torch.profiler.profile, steps: int) -> None:
        seconds = dict.fromkeys(PARTS, 0.0)
        for event in profile.key_averages():
            if event.key in PARTS:
                seconds[event.key] = event.cpu_time_total / 1e6
        whole = self._until_s - self._from_s + seconds[LOADER]  # the trainer's clock stands still while loading
        parts = seconds | {"training: rest": max(0.0, whole - sum(seconds.values()))}
        self.milliseconds = {name.removeprefix("training: "): 1e3 * spent / steps for name, spent in parts.items()}
        self.rows_per_s = self._rows / whole

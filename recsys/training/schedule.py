"""Learning rates by step: `Schedule`, a pure function of the step, so that a resumed run goes on exactly.

With s the step within the phase from 0, u = min(1, (s + 1) / warmup), and t the epochs trained before step s:

    constant   u
    cosine     u (floor + (1 - floor) (1 + cos(pi p)) / 2)     p = min(1, t / decay_epochs)
    linear     u (floor + (1 - floor) (1 - p))
    step       u factor^floor(t / every_epochs)

u is 1 without a warm-up. Each phase of a model begins anew, and so does a `refit`, over the same `decay_epochs`.
Loshchilov and Hutter 2017 for the cosine, without restarts; Goyal et al. 2017 for the warm-up.
"""

import math
from dataclasses import dataclass

from recsys.config import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """A section, and the epochs over which it decays where it does not say so itself."""

    section: ScheduleConfig
    max_epochs: int

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied by at a step of the phase, in (0, 1], or `floor` where that is 0."""
        section = self.section
        risen = min(1.0, (step + 1) / section.warmup_steps) if section.warmup_steps else 1.0
        epochs = step / max(steps_per_epoch, 1)
        decayed = min(1.0, epochs / (section.decay_epochs or self.max_epochs))
        if section.kind == "cosine":
            left = section.floor + (1 - section.floor) * (1 + math.cos(math.pi * decayed)) / 2
        elif section.kind == "linear":
            left = section.floor + (1 - section.floor) * (1 - decayed)
        elif section.kind == "step":
            left = section.factor ** math.floor(epochs / section.every_epochs)
        else:
            left = 1.0
        return risen * left


def make_schedule(section: ScheduleConfig, max_epochs: int) -> Schedule | None:
    """The schedule of a section; None where the learning rate stays as it is."""
    return None if section == ScheduleConfig() else Schedule(section, max_epochs)

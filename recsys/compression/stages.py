"""Training in stages: copies of a model's phases, each telling the tables which stage it is.

A stage is said by the phase at every step, not kept by the table: a run that resumes within it says it again, and what
a table has to remember (masks, counters) stays in its buffers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from features.batch import Batch
from recsys.phases import Phase, Step, Until


def searching(
    phases: Sequence[Phase], stage: str, epochs: int, *, before: Callable[[], None], after: Callable[[], None]
) -> list[Phase]:
    """The phases for so many epochs each, named "<phase>, <stage>"; they end with their last weights, not the best.

    before: called at each step, ahead of the loss. after: called once, when the last phase has ended. No epochs: none.
    """
    if not epochs:
        return []
    copies = [
        replace(phase, name=f"{phase.name}, {stage}", until=Until(max_epochs=epochs), keep_best=False)
        for phase in telling(phases, before)
    ]
    return [*copies[:-1], replace(copies[-1], on_end=_both(copies[-1].on_end, after))]


def telling(phases: Sequence[Phase], before: Callable[[], None]) -> list[Phase]:
    """The same phases, with `before` called at each step, ahead of the loss."""
    return [replace(phase, loss=_preceded(phase.loss, before)) for phase in phases]


def _preceded(
    loss: Callable[[Batch, Step], Tensor], before: Callable[[], None]
) -> Callable[[Batch, Step], Tensor]:  # fmt: skip
    def told(batch: Batch, step: Step) -> Tensor:
        before()
        return loss(batch, step)

    return told


def _both(first: Callable[[], None] | None, second: Callable[[], None]) -> Callable[[], None]:
    def ended() -> None:
        if first is not None:
            first()
        second()

    return ended

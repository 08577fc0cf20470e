"""What a model hands the trainer: `Phase`, one stretch of training, and `Step`, the place in it of one global batch.

The trainer runs phases and knows no model by name; a phase says nothing of checkpoints, ranks or progress.

Shapes: B rows of this rank's part of a global batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from features.batch import Batch
from features.hashes import hash64


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where training stands: the run's seed, the phase's name, the epoch, and the global batch within it, from 0.

    It is the same on all ranks, and so is everything drawn from `generator()`.
    """

    seed: int
    phase: str
    epoch: int
    index: int

    def generator(self) -> torch.Generator:
        """A new CPU generator, a pure function of the four fields: negatives and the like are redrawn on resuming."""
        key = f"{self.seed}/{self.phase}/{self.epoch}/{self.index}"
        return torch.Generator().manual_seed(hash64(key, salt="step"))


@dataclass(frozen=True, kw_only=True)
class Until:
    """When a phase ends: after `max_epochs`, or after `patience` evaluations in a row without a better metric.

    patience None: only `max_epochs` counts. Raises ValueError for a number below 1.
    """

    max_epochs: int
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_epochs", self.max_epochs), ("patience", self.patience)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training with its own batches, loss and optimizers.

    batches(epoch, start): this rank's part of the global batches start, start + 1, ... of the epoch, each with the
        position that follows it. num_batches: global batches per epoch.
    loss(batch, step): the loss of each row, [B], unweighted; the trainer weights and averages over all ranks. All table
        lookups of a step happen in one collection call inside it.
    optimizers: those of dense parameters; tables are updated by their own within `backward()`.
    penalty(batch, step): a scalar added once per step after averaging, equal on all ranks; None adds nothing.
    on_end: called once after the last epoch. Killed before the checkpoint that follows, it is called again.
    keep_best: whether evaluations choose the weights that the phase ends with; False: it ends with its last.
    Raises ValueError for an empty name or a negative number of batches.
    """

    name: str
    batches: Callable[[int, int], Iterator[tuple[Batch, int]]]
    num_batches: int
    loss: Callable[[Batch, Step], Tensor]
    optimizers: tuple[torch.optim.Optimizer, ...]
    until: Until
    penalty: Callable[[Batch, Step], Tensor] | None = None
    on_end: Callable[[], None] | None = None
    keep_best: bool = True

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a phase needs a name: checkpoints and generators are keyed by it")
        if self.num_batches < 0:
            raise ValueError(f"phase {self.name!r}: num_batches must not be negative, got {self.num_batches}")

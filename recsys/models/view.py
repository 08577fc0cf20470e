"""What models ask of data: `DataView`, so that they train on ours or on anything of the user's with these methods.

Nothing here reads a file; `features.prepared.View` is the platform's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from features.batch import Batch


class BatchLoader(Protocol):
    """Global batches of one epoch; `features.loader.Loader` is one."""

    @property
    def num_batches(self) -> int:
        """Global batches per epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The global batches from `start` on, of each this rank's rows and the position that follows it."""


@dataclass(frozen=True)
class OnDevice:
    """The batches of another loader, on a device."""

    loader: BatchLoader
    device: torch.device

    @property
    def num_batches(self) -> int:
        """Global batches per epoch."""
        return self.loader.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """See `BatchLoader`."""
        for batch, position in self.loader.epoch(epoch, start):
            yield batch.to(self.device), position


class DataView(Protocol):
    """The rows of some splits, and the catalogue. Users and items are named by position in the table of all of them."""

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""

    def loader(
        self, batch_size: int, *, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ) -> BatchLoader:
        """Training rows with user, item and event features, histories and labels."""

    def interactions(self) -> csr_matrix:
        """Binary [num users, num items] float32: who has which item in these rows."""

    def user_batch(self, users: Tensor) -> Batch:
        """Features and histories of users, as known at the end of these rows."""

    def item_batch(self, items: Tensor) -> Batch:
        """Features of items."""

"""Batches that two ranks share as the loader shares them, for tests that two ranks train what one process trains."""

from collections.abc import Iterator, Sequence

import torch

from features.batch import Batch
from recsys import distributed
from recsys.laws.checkerboard import Checkerboard


def global_batches(world: Checkerboard, sizes: Sequence[int]) -> Iterator[Batch]:
    """Batches of these sizes, of different rows drawn at random."""
    rows = torch.randperm(len(world.users), generator=torch.Generator().manual_seed(1))
    for chosen in rows[: sum(sizes)].split(list(sizes)):
        yield world.batch(world.users[chosen], world.items[chosen])


def ranks_part(batch: Batch) -> Batch:
    """Rows r, r + W, ..., or, as the loader does it, the first row at weight 0."""
    rows = torch.arange(len(batch))[distributed.rank() :: 2]
    part = batch.select(rows if len(rows) else torch.tensor([0]))
    weights = torch.full((len(part),), float(len(rows) > 0))
    return Batch(features=part.features, labels=part.labels, weights=weights, row_ids=part.row_ids)

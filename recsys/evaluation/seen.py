"""Newer data as an older model sees it: ids that its encoder has no row for read the row of unseen ids.

Encoders grow by appending (`Encoder.grown`), so a row that the older encoder has stands for the same id in both, and
all others are those at or above its number of rows:

    row -> row if row < n else 0

That is what the older encoder would have made of the raw data, without reading it again. Buckets, hashed ids, ages and
numbers are the same in both. What follows from the catalogue (positions, who has which item) is the newer data's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scipy.sparse import csr_matrix
from torch import Tensor

from features.batch import Batch, Jagged
from features.encoder import Encoder
from recsys.evaluation.evaluate import EvaluationView
from recsys.models.view import BatchLoader


def seen_by(encoder: Encoder, batch: Batch) -> Batch:
    """The batch with every id in the rows of `encoder`, which that of the batch extends (`Encoder.check_extends`).

    Raises ValueError naming the feature for an id that the encoder has not, where unseen ids are refused.
    """
    return replace(batch, features={name: _seen(encoder, name, column) for name, column in batch.features.items()})


def _seen(encoder: Encoder, name: str, column: Tensor | Jagged) -> Tensor | Jagged:
    source = encoder.schema.source(name)
    count = encoder.num_embeddings(name) if source.is_id else None
    if count is None:
        return column
    rows = column.values if isinstance(column, Jagged) else column
    unseen = rows >= count
    if source.unseen == "refuse" and bool(unseen.any()):
        raise ValueError(
            f"feature {name!r} has row {int(rows[unseen][0])}, the older encoder {count} rows and none for unseen ids"
        )
    seen = rows.masked_fill(unseen, 0)
    return column.with_values(seen) if isinstance(column, Jagged) else seen


@dataclass(frozen=True)
class SeenLoader:
    """The batches of another loader, in the rows of an older encoder."""

    loader: BatchLoader
    encoder: Encoder

    @property
    def num_batches(self) -> int:
        """Global batches of an epoch."""
        return self.loader.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """As the loader's."""
        for batch, position in self.loader.epoch(epoch, start):
            yield seen_by(self.encoder, batch), position


@dataclass(frozen=True)
class SeenView:
    """A view of newer data in the rows of an older encoder, which the data's extends.

    Example: evaluate_retrieval(model, SeenView(newer.view("train"), run.prepared.encoder), split="test")
    """

    view: EvaluationView
    encoder: Encoder

    @property
    def num_items(self) -> int:
        """Items of the newer catalogue."""
        return self.view.num_items

    def loader(
        self, batch_size: int, *, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ) -> SeenLoader:
        """As the view's."""
        loader = self.view.loader(batch_size, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)
        return SeenLoader(loader, self.encoder)

    def interactions(self) -> csr_matrix:
        """The view's."""
        return self.view.interactions()

    def truth(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """The view's."""
        return self.view.truth(split)

    def user_batch(self, users: Tensor) -> Batch:
        """As the view's."""
        return seen_by(self.encoder, self.view.user_batch(users))

    def item_batch(self, items: Tensor) -> Batch:
        """As the view's."""
        return seen_by(self.encoder, self.view.item_batch(items))

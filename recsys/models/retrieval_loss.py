"""What a step of a retriever costs each row: its positive against negatives shared by the rows of the global batch.

Each row is a positive pair of a user and an item; its first label, if it has one, is above 0. With the vectors u of the
user, v of the item, and the temperature t, s(u, v) = max over M of <u, v> / t. The pool of negatives is

    sampled_softmax, bpr   m items of the catalogue, drawn uniformly, the same for all rows and on all ranks
    in_batch               the R items of the global batch's rows, and m drawn ones

and in_batch with log_q uses s - log q, of the positive and of the negatives alike, where q(i) = R p(i) + m / n is the
expected count of item i in the pool and p(i) its share of the interactions. With m = 0 that is the correction of
Yi et al. 2019, with m > 0 the one of a mixed pool (Yang et al. 2020). Yi et al. estimate p from the stream; here it is
counted. Masked for a row: entries of its own positive's item and, with mask_known, of its user's other known items.

Shapes: B rows of this rank, R of all ranks, M vectors per user, D their width, m drawn items, P items in the pool,
n items of the catalogue.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from features.batch import Batch, concat
from features.spec import FeatureSchema, FeatureSpec
from recsys.models.losses import bpr, sampled_softmax
from recsys.models.options import RetrieverOptions
from recsys.models.sampling import KnownPairs, Numbering, uniform
from recsys.models.view import DataView
from recsys.phases import Step

Gather = Callable[[Tensor, Tensor | None], Tensor]


def own_rows(rows: Tensor, row_ids: Tensor | None) -> Tensor:
    """The rows of all ranks where there is one rank: its own."""
    return rows


class TwoSided(Protocol):
    """What the loss needs of a retriever."""

    @property
    def schema(self) -> FeatureSchema:
        """The schema, which names the features that identify users and items."""

    @property
    def config(self) -> RetrieverOptions:
        """The loss settings."""

    @property
    def item_inputs(self) -> tuple[FeatureSpec, ...]:
        """The features that items are encoded from."""

    def both_vectors(self, users: Batch, items: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of users [B, M, D] and of items [n, D] from one collection call."""


def part(batch: Batch, inputs: Sequence[FeatureSpec]) -> Batch:
    """The batch's columns of these features, without labels and weights."""
    return Batch(features={spec.name: batch[spec.name] for spec in inputs})


def scores_of(users: Tensor, items: Tensor) -> Tensor:
    """Users [B, M, D] and items [n, D] -> max over M of the inner products, [B, n]."""
    if users.shape[1] == 1:
        return users[:, 0] @ items.T
    return (users @ items.T).amax(1)


class RetrievalLoss:
    """The loss of a batch's rows, [B]; `data` gives the catalogue, `gather` the rows of all ranks with gradient."""

    def __init__(self, model: TwoSided, data: DataView, gather: Gather = own_rows) -> None:
        self.model = model
        self.config = model.config
        self.data = data
        self.gather = gather
        self.shares = ItemShares(data, model.schema.item) if self._corrects else None
        self.known = KnownItems(data, model.schema) if self.config.mask_known else None

    @property
    def _corrects(self) -> bool:
        return self.config.loss == "in_batch" and self.config.log_q is not False

    def __call__(self, batch: Batch, step: Step) -> Tensor:
        """The loss of each row, [B]. Raises ValueError for a row that is no positive."""
        self._refuse_negatives(batch)
        drawn = uniform(self.data.num_items, (self.config.num_negatives,), step.generator())  # [m]
        ids = batch.ids(self.model.schema.item)  # [B]
        drawn_items = self.data.item_batch(drawn).to(ids.device)
        drawn_ids = drawn_items.ids(self.model.schema.item)  # [m]

        inputs = self.model.item_inputs
        users, items = self.model.both_vectors(batch, concat([part(batch, inputs), part(drawn_items, inputs)]))
        users = users / self.config.temperature
        own, pool, pool_ids = items[: len(ids)], items[len(ids) :], drawn_ids
        if self.config.loss == "in_batch":
            pool = torch.cat([self.gather(own, batch.row_ids), pool])  # [P, D]
            pool_ids = torch.cat([self.gather(ids, batch.row_ids), drawn_ids])  # [P]

        positive = (users * own[:, None]).sum(2).amax(1)  # [B]
        negatives = scores_of(users, pool)  # [B, P]
        masked = ids[:, None] == pool_ids  # [B, P]
        if self.known is not None:
            masked |= self.known.mask(batch, pool_ids)
        if self.shares is not None:
            num_rows = len(pool_ids) - len(drawn_ids)
            positive = positive - self.shares.log_q(ids, num_rows, len(drawn_ids))
            negatives = negatives - self.shares.log_q(pool_ids, num_rows, len(drawn_ids))
        return (bpr if self.config.loss == "bpr" else sampled_softmax)(positive, negatives, masked)

    def _refuse_negatives(self, batch: Batch) -> None:
        for label in self.model.schema.labels[:1]:
            if label.name in batch.labels and bool((batch.labels[label.name] <= 0).any()):
                raise ValueError(
                    f"a retriever trains on positive rows, but label {label.name!r} is 0 in some: "
                    "prepare the data with examples = 'positive'"
                )


class ItemShares:
    """p(i): the share of each item in the interactions, by its id as batches hold it.

    Items that share an id (the rare ones of a vocabulary with min_count) share their mean; an item without interactions
    counts as having one.
    """

    def __init__(self, data: DataView, item: str) -> None:
        self.num_items = data.num_items
        self.numbering = item_numbering(data, item)
        counts = torch.as_tensor(data.interactions().sum(axis=0)).flatten().double().clamp(min=1)  # [n]
        sums = torch.zeros(len(self.numbering), dtype=torch.float64)
        sums.index_add_(0, self.numbering.of_position, counts)
        self.shares = sums / self.numbering.of_position.bincount() / counts.sum()  # [C]

    def log_q(self, ids: Tensor, num_rows: int, num_drawn: int) -> Tensor:
        """log(R p + m / n) of item ids [P], in float32; ids outside the catalogue are an error of the data."""
        expected = num_rows * self.shares[self.numbering.numbers(ids.cpu())] + num_drawn / self.num_items  # [P]
        log_q: Tensor = expected.log().float().to(ids.device)
        return log_q


class KnownItems:
    """The items that each user has in the interactions, by the ids that batches hold.

    Users, or items, that share an id (the rare ones of a vocabulary) are one here.
    """

    def __init__(self, data: DataView, schema: FeatureSchema) -> None:
        self.user = schema.user
        interactions = data.interactions()
        self.users = user_numbering(data, schema.user, interactions.shape[0])
        self.items = item_numbering(data, schema.item)
        at = interactions.tocoo()
        users = self.users.of_position[torch.as_tensor(at.row, dtype=torch.int64)]
        items = self.items.of_position[torch.as_tensor(at.col, dtype=torch.int64)]
        self.pairs = KnownPairs(users, items, len(self.users), len(self.items))

    def mask(self, batch: Batch, item_ids: Tensor) -> Tensor:
        """[B, P], True where the row's user has the item."""
        user_ids = batch.ids(self.user)
        known = self.pairs.mask(self.users.numbers(user_ids.cpu()), self.items.numbers(item_ids.cpu()))
        return known.to(user_ids.device)


def item_numbering(data: DataView, item: str) -> Numbering:
    """The distinct item ids of the catalogue."""
    return Numbering(data.item_batch(torch.arange(data.num_items)).ids(item))


def user_numbering(data: DataView, user: str, num_users: int, chunk_size: int = 65536) -> Numbering:
    """The distinct user ids, read in chunks because a user batch carries histories."""
    chunks = torch.arange(num_users).split(chunk_size)
    return Numbering(torch.cat([data.user_batch(chunk).ids(user) for chunk in chunks]))

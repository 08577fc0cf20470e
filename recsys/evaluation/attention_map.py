"""Which events attention weighs, by (target category, event category, recency), beside what the data says of them.

For a category feature, cells (t, c, r) are made of the rows whose target is of category t:

    attention    mean weight of their events of category c with recency r, 0 where a search did not find the event
    information  I(click; there is such an event), in nats, from the 2 x 2 counts of the rows, less 1 / (2 rows), what
                 counts of so many rows show on average where there is nothing to know

Recency r is the position from the newest event, by doublings: 1, 2-3, 4-7, ... What attention learned is right where
both are high together; `agreement` is Spearman's rank correlation over all cells with enough rows on either side. (The
DARE paper plots both side by side; information there has no sign either: an event may speak for a click or against.)

Shapes: B rows, N events, M categories, R recencies.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from features.batch import Batch, Jagged
from recsys.evaluation.attention_paths import Attentive, weights_of
from recsys.models.ragged import owners_of

LEAST_ROWS = 20  # with such an event, and without one, for a cell to count in the agreement
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """Cells [M, M, R]: category of the target, of the event, recency. ids: rows of the M categories.

    attention: NaN where no event was. information: NaN where there are no rows. support: rows with such an event, the
    smaller of these and the others.
    """

    feature: str
    ids: list[int]
    attention: Floats
    information: Floats
    support: NDArray[np.int64]

    @property
    def agreement(self) -> float | None:
        """Rank correlation of attention and information, None where fewer than three cells have enough rows."""
        chosen = (self.support >= LEAST_ROWS) & np.isfinite(self.attention) & np.isfinite(self.information)
        if chosen.sum() < 3:
            return None
        ranks = [rankdata(cells[chosen]) for cells in (self.attention, self.information)]
        if any(one.std() == 0 for one in ranks):
            return None
        return float(np.corrcoef(ranks)[0, 1])


def recency_label(recency: int) -> str:
    """The positions of a recency, as text."""
    low, high = 2**recency, 2 ** (recency + 1) - 1
    return str(low) if low == high else f"{low}-{high}"


def attention_map(
    model: Attentive, batches: Iterable[Batch], feature: str, ids: Tensor, max_length: int
) -> AttentionMap:
    """The map of a paired feature, for the categories whose rows are `ids` [M], over batches with the first label.

    Raises ValueError for a feature that no sequence of the model repeats.
    """
    group, sequence = _sequence_of(model, feature)
    cells = _Cells(ids, max(1, max_length).bit_length())
    for batch in batches:
        click = (batch.labels[model.labels[0]] > 0).long()
        cells.add(batch.ids(feature), batch.jagged(sequence), click, weights_of(model, batch, group))
    return cells.map(feature)


class _Cells:
    """Counts over batches. All categories that are not asked for are one more, the last, which is dropped."""

    def __init__(self, ids: Tensor, recencies: int) -> None:
        self.ids = ids
        self.place = torch.full((int(ids.max()) + 2,), len(ids), dtype=torch.int64)  # row -> category
        self.place[ids] = torch.arange(len(ids))
        shape = (len(ids) + 1, len(ids) + 1, recencies)
        self.weight = torch.zeros(shape, dtype=torch.float64)
        self.events = torch.zeros(shape, dtype=torch.int64)
        self.present = torch.zeros(*shape, 2, dtype=torch.int64)  # rows with such an event, by click
        self.rows = torch.zeros(len(ids) + 1, 2, dtype=torch.int64)  # by click

    def add(self, targets: Tensor, history: Jagged, click: Tensor, weights: Tensor) -> None:
        """Rows of targets [B], ids [N] of their events, click [B] 0 or 1, weights [N] of attention."""
        owners = owners_of(history.offsets, len(history.values))
        position = history.offsets[1:][owners] - torch.arange(len(owners))  # the newest stands last
        recency = position.double().log2().floor().long().clamp(max=self.events.shape[2] - 1)
        target, event = self._category(targets), self._category(history.values)  # [B], [N]
        cell = (target[owners], event, recency)
        self.weight.index_put_(cell, weights.double(), accumulate=True)
        self.events.index_put_(cell, torch.ones_like(owners), accumulate=True)
        once = torch.stack([owners, event, recency]).unique(dim=1)  # an event of the cell is there, or is not
        seen = (target[once[0]], once[1], once[2], click[once[0]])
        self.present.index_put_(seen, torch.ones_like(once[0]), accumulate=True)
        self.rows.index_put_((target, click), torch.ones_like(target), accumulate=True)

    def _category(self, rows: Tensor) -> Tensor:
        return self.place[rows.clamp(max=len(self.place) - 1)]

    def map(self, feature: str) -> AttentionMap:
        """What was counted."""
        kept = len(self.ids)
        weight, events = (cells[:kept, :kept].numpy() for cells in (self.weight, self.events))
        present, whole = self.present[:kept, :kept].numpy(), self.rows[:kept, None, None].numpy()
        there = present.sum(-1)
        return AttentionMap(
            feature=feature,
            ids=self.ids.tolist(),
            attention=np.divide(weight, events, out=np.full(events.shape, np.nan), where=events > 0),
            information=information(present, whole - present),
            support=np.minimum(there, whole.sum(-1) - there),
        )


def information(with_event: NDArray[np.int64], without: NDArray[np.int64]) -> Floats:
    """I(click; event) in nats less its bias, from counts [..., 2] by click of rows with and without the event."""
    table = np.stack([with_event, without], axis=-2).astype(np.float64)  # [..., 2, 2]
    total = table.sum((-2, -1), keepdims=True)
    expected = table.sum(-1, keepdims=True) * table.sum(-2, keepdims=True)
    logs = np.log(np.divide(table * total, expected, out=np.ones_like(table), where=table > 0))
    rows = total[..., 0, 0]
    nats = np.divide((table * logs).sum((-2, -1)), rows, out=np.full(rows.shape, np.nan), where=rows > 0)
    found: Floats = nats - np.divide(0.5, rows, out=np.full(rows.shape, np.nan), where=rows > 0)
    return found


def _sequence_of(model: Attentive, feature: str) -> tuple[int, str]:
    for number, group in enumerate(model.groups.values()):
        if feature in group.pairs:
            return number, group.pairs[feature]
    paired = sorted({target for group in model.groups.values() for target in group.pairs})
    raise ValueError(f"feature {feature!r} is repeated by no sequence of the model; those that are: {paired}")

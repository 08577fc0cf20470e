"""Metrics of scored rows, all exact, weighted, in float64. With label y, logit z, p = sigmoid(z), row weight w:

    auc                 P(z+ > z-) + P(z+ = z-) / 2 over pairs of a positive and a negative row, drawn by weight
    gauc                sum_g w_g auc_g / sum_g w_g over the groups g that have both classes; w_g the weight of its rows
    pr_auc              sum over the distinct scores s, falling, of (TP(s) - TP(before s)) / P * TP(s) / (TP(s) +
                        FP(s)): average precision; equal scores enter together, so that their order means nothing
    logloss             mean of -y log p - (1 - y) log(1 - p), in nats
    normalized_entropy  logloss / -(r log r + (1 - r) log(1 - r)), r the share of positives (He et al. 2014); the base
                        rate has 1
    calibration         mean p / mean y; 1: as many clicks are predicted as there are
    calibration_error   sum_b w_b |mean_b p - mean_b y| / sum_b w_b over ten bins b of the score of equal weight (ECE);
                        equal scores share a bin
    rela_impr           (auc - .5) / (auc of the other model - .5) - 1

AUC is computed from logits, since the sigmoid of float32 makes ties where there are none. Rows of one class alone have
no auc: that is an error, which names the split. A group of one class is left out of gauc and counted; when all are,
there is no gauc.
Memory of `ScoredRows.measured`: bounded by `ROWS_AT_ONCE` rows and 40 bytes a group, whatever N is, when the columns
are mapped files (`row_files.py`). The functions of tensors sort in memory: they are its definition, and for small data.
Not here: ranked lists (`ranking.py`), which rows are scored (`evaluate.py`), calibration by segment (`calibration.py`).

Shapes: N rows, G groups, T distinct scores (within groups).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from recsys.evaluation.sorted_runs import (
    ROWS_AT_ONCE,
    Block,
    group_keys,
    groups_of,
    merged,
    score_keys,
    scores_of,
)

NUM_BINS = 10


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Rows of one label with the logits of a ranker; the row order has no meaning.

    labels [N] float32, 0 or 1 (between them for log loss alone). logits [N] float32. weights [N] or None: ones.
    group [N] int64 or None: the rows that `gauc` compares with each other. clusters [N] int64 or None: the rows that
    belong together (to one user) when confidence is estimated. Raises ValueError naming the column of another length.
    """

    labels: Tensor
    logits: Tensor
    weights: Tensor | None = None
    group: Tensor | None = None
    clusters: Tensor | None = None

    def __post_init__(self) -> None:
        for name, column in self.columns().items():
            if list(column.shape) != list(self.labels.shape[:1]):
                raise ValueError(f"{name} must be [{len(self.labels)}] like labels, got {list(column.shape)}")
        start = 0
        for part in self.logits.split(ROWS_AT_ONCE):
            if not bool(part.isfinite().all()):
                row = int((~part.isfinite()).nonzero()[0])
                raise ValueError(f"logits must be finite, row {start + row} is {float(part[row])}")
            start += len(part)

    def columns(self) -> dict[str, Tensor]:
        """The columns that are there, by name."""
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: column for name, column in named.items() if column is not None}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def row_weights(self) -> Tensor:
        """The weights [N] float64, ones where there are none."""
        return torch.ones(len(self), dtype=torch.float64) if self.weights is None else self.weights.double()

    def split(self, rows: int) -> Iterator["ScoredRows"]:
        """The same rows, so many at a time; at least one piece."""
        for start in range(0, max(len(self), 1), rows):
            yield ScoredRows(**{name: column[start : start + rows] for name, column in self.columns().items()})

    def metrics(self) -> dict[str, float]:
        """The metrics of `measured`."""
        return self.measured()[0]

    def measured(
        self, rows_at_once: int = ROWS_AT_ONCE, scratch: Path | None = None
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Metrics (gauc where there are groups with both classes), and counts: groups measured and left out.

        rows_at_once: how many rows are sorted in memory; more go through a file in the folder `scratch` (default: the
        system's for temporary files; see `sorted_runs.py`).
        """
        sums = _Sums.of(self.split(rows_at_once))
        found = sums.metrics() | _by_order(self._blocks(rows_at_once, scratch), sums)
        names = ("auc", "logloss", "normalized_entropy", "pr_auc", "calibration", "calibration_error")
        metrics = {name: found[name] for name in names}
        if self.group is None:
            return metrics, {}
        within = self._group_aucs(rows_at_once, scratch)
        counts = {"groups": len(within.aucs), "one-class groups": within.num_one_class}
        return (metrics | {"gauc": within.mean} if len(within.aucs) else metrics), counts

    def bins(self, num_bins: int, rows_at_once: int = ROWS_AT_ONCE) -> "Bins":
        """The rows by score, in bins of equal weight, as far as equal scores, which share a bin, allow."""
        total, before = _Sums.of(self.split(rows_at_once)).weight, 0.0
        sums = torch.zeros(4, num_bins, dtype=torch.float64)
        for block in self._blocks(rows_at_once):
            sums += _binned(block, before, total, num_bins)
            before += float((block.positives + block.negatives).sum())
        return Bins(*sums)

    def _blocks(
        self, rows_at_once: int, scratch: Path | None = None, number: Tensor | None = None
    ) -> Iterable[Block]:  # fmt: skip
        """Rows by rising score; within rising groups, when their distinct ids [G] are given."""
        pieces = (_block(piece, number) for piece in self.split(rows_at_once))
        return pieces if len(self) <= rows_at_once else merged(pieces, rows_at_once, scratch)

    def _group_aucs(self, rows_at_once: int, scratch: Path | None) -> "GroupAucs":
        assert self.group is not None
        distinct = self.group[:0]
        for part in self.group.split(rows_at_once):
            distinct = torch.cat([distinct, part]).unique()
        blocks = self._blocks(rows_at_once, scratch, distinct)
        return GroupAucs.of(*_pairs((groups_of(block.keys), block.positives, block.negatives) for block in blocks))


def _block(rows: ScoredRows, distinct: Tensor | None) -> Block:
    _check_rows(rows.labels, rows.logits, None, rows.weights)
    labels, weights = rows.labels.double(), rows.row_weights
    if distinct is None or rows.group is None:
        keys = score_keys(rows.logits)
    else:
        keys = group_keys(rows.logits, torch.searchsorted(distinct, rows.group.contiguous()))
    return Block.of(keys, weights * labels, weights * (1 - labels))


@dataclass(frozen=True)
class _Sums:
    """Sums over rows, weighted."""

    weight: float
    positives: float
    loss: float
    predicted: float

    @staticmethod
    def of(pieces: Iterable[ScoredRows]) -> "_Sums":
        total = torch.zeros(4, dtype=torch.float64)
        for rows in pieces:
            weights = rows.row_weights
            losses, predicted = row_losses(rows.labels, rows.logits), rows.logits.double().sigmoid()
            total += torch.stack([weights.sum(), *(weights @ x for x in (rows.labels.double(), losses, predicted))])
        return _Sums(*total.tolist())

    def metrics(self) -> dict[str, float]:
        """Those that need no order. Raises ValueError when there are rows of one class alone."""
        negatives = self.weight - self.positives
        if not (self.positives > 0 and negatives > 0):
            raise ValueError(_one_class(self.positives, negatives))
        loss = self.loss / self.weight
        entropy_of_rate = entropy(self.positives / self.weight)
        calibration = self.predicted / self.positives
        return {"logloss": loss, "normalized_entropy": loss / entropy_of_rate, "calibration": calibration}


def _by_order(blocks: Iterable[Block], sums: _Sums) -> dict[str, float]:
    """The metrics of rising scores, in one pass."""
    positives, negatives = sums.positives, sums.weight - sums.positives
    wins = precision = below = not_hit = 0.0  # below: of the negatives so far; not_hit: of the positives
    bins = torch.zeros(4, NUM_BINS, dtype=torch.float64)
    for block in blocks:
        lower = block.negatives.cumsum(0) - block.negatives + below
        wins += float(block.positives @ (lower + block.negatives / 2))
        hits = positives - (block.positives.cumsum(0) - block.positives + not_hit)
        selected = hits + (negatives - lower).clamp(min=0)
        precision += float((block.positives * hits / selected).nan_to_num(0.0).sum())
        bins += _binned(block, below + not_hit, sums.weight, NUM_BINS)
        below, not_hit = below + float(block.negatives.sum()), not_hit + float(block.positives.sum())
    found = {"auc": wins / (positives * negatives), "pr_auc": precision / positives}
    return found | {"calibration_error": Bins(*bins).error}


@dataclass(frozen=True)
class Bins:
    """Sums over the rows of each bin, weighted, [bins] float64: rows, logits, predicted and true positives."""

    weight: Tensor
    logits: Tensor
    predicted: Tensor
    positives: Tensor

    @property
    def error(self) -> float:
        """The calibration error: the mean over rows of their bin's |mean prediction - mean label|."""
        return float((self.predicted - self.positives).abs().sum() / self.weight.sum())


def _binned(block: Block, before: float, total: float, num_bins: int) -> Tensor:
    """The sums of `Bins`, [4, bins]. before: the weight of the blocks below; total: that of all."""
    weight = block.positives + block.negatives
    middle = (before + weight.cumsum(0) - weight / 2) / total
    place = (middle * num_bins).long().clamp(0, num_bins - 1)
    logits = scores_of(block.keys).double()
    columns = (weight, weight * logits, weight * logits.sigmoid(), block.positives)
    return torch.stack([place.bincount(weights=column, minlength=num_bins) for column in columns])


# --- of tensors ---


def auc(labels: Tensor, scores: Tensor, weights: Tensor | None = None) -> float:
    """Area under the ROC curve of labels [N] in {0, 1} and scores [N] of any scale; ties count half.

    Raises ValueError when one class is missing, a label is neither 0 nor 1, or a score is NaN.
    """
    pairs = _pairs([_sorted(labels, scores, torch.zeros(len(labels), dtype=torch.int64), weights)])
    positives, negatives, wins = (float(column.sum()) for column in pairs)
    if positives == 0 or negatives == 0:
        raise ValueError(f"{_one_class(positives, negatives)} in {len(labels)} rows")
    return wins / (positives * negatives)


def pr_auc(labels: Tensor, scores: Tensor, weights: Tensor | None = None) -> float:
    """Average precision of labels [N] in {0, 1} and scores [N] of any scale. Raises ValueError without positives."""
    _, positives, negatives = _sorted(labels, scores, torch.zeros(len(labels), dtype=torch.int64), weights)
    hits, misses = positives.flip(0).cumsum(0), negatives.flip(0).cumsum(0)
    if not len(hits) or float(hits[-1]) == 0:
        raise ValueError(f"pr_auc needs positive rows, none of {len(labels)} is")
    precision = (hits / (hits + misses)).nan_to_num(0.0)
    return float((positives.flip(0) * precision).sum() / hits[-1])


@dataclass(frozen=True)
class GroupAucs:
    """The AUC of each group that has both classes, and its weight (the rows' weights), [G] float64.

    group: their numbers, in the order of the groups' ids. num_one_class: groups that are left out.
    """

    aucs: Tensor
    weights: Tensor
    group: Tensor
    num_one_class: int = 0

    @staticmethod
    def of(positives: Tensor, negatives: Tensor, wins: Tensor) -> "GroupAucs":
        """Of the groups' weights and the pairs won."""
        both = (positives > 0) & (negatives > 0)
        aucs, weights = (wins / (positives * negatives))[both], (positives + negatives)[both]
        return GroupAucs(aucs, weights, both.nonzero()[:, 0], int((~both).sum()))

    @property
    def mean(self) -> float:
        """GAUC: the mean weighted by the groups' rows."""
        return float((self.aucs * self.weights).sum() / self.weights.sum())


def group_aucs(labels: Tensor, scores: Tensor, group: Tensor, weights: Tensor | None = None) -> GroupAucs:
    """The AUC within each group [N] of rows; groups of one class are left out and counted."""
    return GroupAucs.of(*_pairs([_sorted(labels, scores, group.unique(return_inverse=True)[1], weights)]))


def gauc(labels: Tensor, scores: Tensor, group: Tensor, weights: Tensor | None = None) -> float:
    """AUC within groups, averaged by their rows. Raises ValueError when no group has both classes."""
    within = group_aucs(labels, scores, group, weights)
    if len(within.aucs) == 0:
        raise ValueError(f"gauc needs a group with rows of both classes, none of {len(group.unique())} has")
    return within.mean


def rela_impr(auc: float, base: float) -> float:
    """How much further above chance an AUC is than another, as a share: (auc - .5) / (base - .5) - 1.

    Raises ValueError when the other is not above chance.
    """
    if not base > 0.5:
        raise ValueError(f"RelaImpr is relative to an AUC above .5, got {base}")
    return (auc - 0.5) / (base - 0.5) - 1


def row_losses(labels: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of each row in nats, [N] float64."""
    return functional.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none")


def logloss(labels: Tensor, logits: Tensor, weights: Tensor | None = None) -> float:
    """Mean cross-entropy in nats of labels [N] and logits [N]."""
    losses = row_losses(labels, logits)
    return float(losses.mean() if weights is None else weights.double() @ losses / weights.double().sum())


def entropy(rate: float) -> float:
    """Cross-entropy in nats of always answering the base rate. Raises ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise ValueError(f"the share of positives must lie between 0 and 1, got {rate}")
    share = torch.tensor([rate, 1 - rate], dtype=torch.float64)
    return float(-(share * share.log()).sum())


def logits_of(probability: Tensor) -> Tensor:
    """The logits of probabilities, kept finite at 0 and 1, float32."""
    return probability.double().logit(eps=1e-7).float()


# --- pairs ---


Sorted = tuple[Tensor, Tensor, Tensor]  # group, weight of positives, weight of negatives, by rising (group, score)


def _sorted(labels: Tensor, scores: Tensor, group: Tensor, weights: Tensor | None) -> Sorted:
    """Rows [N] -> the distinct scores [T] of each group 0..G - 1, in memory, for scores of any type."""
    _check_rows(labels, scores, group, weights)
    order = scores.argsort()
    if len(group) and int(group.max()) > 0:
        order = order[group[order].argsort(stable=True)]
    labels, scores, group = labels[order].double(), scores[order], group[order]
    weight = torch.ones_like(labels) if weights is None else weights[order].double()
    changes = torch.ones(len(labels), dtype=torch.bool)
    changes[1:] = (scores[1:] != scores[:-1]) | (group[1:] != group[:-1])
    place = changes.cumsum(0) - 1
    return group[changes], place.bincount(weights=weight * labels), place.bincount(weights=weight * (1 - labels))


def _pairs(pieces: Iterable[Sorted]) -> tuple[Tensor, Tensor, Tensor]:
    """For each group, of pieces that follow each other: weight of positives, of negatives, and of pairs won, [G]."""
    found: list[list[Tensor]] = [[torch.zeros(0, dtype=torch.int64)], *([torch.zeros(0).double()] for _ in range(3))]
    last, below = -1, 0.0  # the group that a piece ends in may go on in the next
    for group, positives, negatives in pieces:
        groups, number = group.unique_consecutive(return_inverse=True)
        if not len(groups):
            continue
        won, lost = number.bincount(weights=positives), number.bincount(weights=negatives)
        lower = negatives.cumsum(0) - negatives - (lost.cumsum(0) - lost)[number]
        wins = number.bincount(weights=positives * (lower + negatives / 2))
        carried = below if int(groups[0]) == last else 0.0
        wins[0] += carried * won[0]
        last, below = int(groups[-1]), float(lost[-1]) + (carried if len(groups) == 1 else 0.0)
        for part, column in zip(found, (groups, won, lost, wins), strict=True):
            part.append(column)
    ids, *columns = (torch.cat(parts) for parts in found)
    place = ids.unique_consecutive(return_inverse=True)[1]
    won, lost, wins = (place.bincount(weights=column) for column in columns)
    return won, lost, wins


def _one_class(positives: float, negatives: float) -> str:
    return f"auc needs rows of both classes, got weight {positives:g} of positives and {negatives:g} of negatives"


def _check_rows(labels: Tensor, scores: Tensor, group: Tensor | None, weights: Tensor | None) -> None:
    columns: Mapping[str, Tensor | None] = {"scores": scores, "group": group, "weights": weights}
    for name, column in columns.items():
        if column is not None and column.shape != labels.shape:
            raise ValueError(f"{name} must be {list(labels.shape)} like labels, got {list(column.shape)}")
    wrong = ((labels != 0) & (labels != 1)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"labels must be 0 or 1 for auc, row {row} is {float(labels[row])}")
    if bool(scores.isnan().any()):
        raise ValueError(f"scores must be numbers, row {int(scores.isnan().nonzero()[0])} is NaN")
    if weights is not None and bool((weights < 0).any()):
        raise ValueError(f"weights must not be negative, row {int((weights < 0).nonzero()[0])} is")

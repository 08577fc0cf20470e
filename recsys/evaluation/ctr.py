"""Metrics of scored rows: AUC with ties, AUC within groups, log loss, calibration; all exact, weighted, in float64.

AUC is the probability that a positive row scores above a negative one, a tie counting half; with weights, that of pairs
drawn by weight. It is computed from logits, since the sigmoid of float32 makes ties where there are none.
Not here: ranked lists (`ranking.py`), and which rows are scored (`evaluate.py`).

Shapes: N rows, G groups, T blocks of rows of one group that score the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional


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
        if not bool(self.logits.isfinite().all()):
            row = int((~self.logits.isfinite()).nonzero()[0])
            raise ValueError(f"logits must be finite, row {row} is {float(self.logits[row])}")

    def columns(self) -> dict[str, Tensor]:
        """The columns that are there, by name."""
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: column for name, column in named.items() if column is not None}

    def __len__(self) -> int:
        return len(self.labels)

    def metrics(self) -> dict[str, float]:
        """auc, logloss, normalized_entropy, calibration, and gauc where there are groups with both classes."""
        loss = logloss(self.labels, self.logits, self.weights)
        rate = float(_weighted_mean(self.labels.double(), self.weights))
        measured = {
            "auc": auc(self.labels, self.logits, self.weights),
            "logloss": loss,
            "normalized_entropy": loss / entropy(rate),
            "calibration": float(_weighted_mean(self.logits.double().sigmoid(), self.weights)) / rate,
        }
        within = None if self.group is None else group_aucs(self.labels, self.logits, self.group, self.weights)
        return measured if within is None or len(within.aucs) == 0 else measured | {"gauc": within.mean}


def auc(labels: Tensor, scores: Tensor, weights: Tensor | None = None) -> float:
    """Area under the ROC curve of labels [N] in {0, 1} and scores [N] of any scale; ties count half.

    Raises ValueError when one class is missing, a label is neither 0 nor 1, or a score is NaN.
    """
    pairs = _pairs(labels, scores, torch.zeros(len(labels), dtype=torch.int64), weights)
    positives, negatives, wins = (float(column.sum()) for column in pairs)
    if positives == 0 or negatives == 0:
        counts = f"weight {positives:g} of positives and {negatives:g} of negatives in {len(labels)} rows"
        raise ValueError(f"auc needs rows of both classes, got {counts}")
    return wins / (positives * negatives)


@dataclass(frozen=True)
class GroupAucs:
    """The AUC of each group that has both classes, and its weight (the rows' weights), [G] float64."""

    aucs: Tensor
    weights: Tensor

    @property
    def mean(self) -> float:
        """GAUC: the mean weighted by the groups' rows."""
        return float((self.aucs * self.weights).sum() / self.weights.sum())


def group_aucs(labels: Tensor, scores: Tensor, group: Tensor, weights: Tensor | None = None) -> GroupAucs:
    """The AUC within each group [N] of rows; groups of one class are left out."""
    positives, negatives, wins = _pairs(labels, scores, group.unique(return_inverse=True)[1], weights)
    both = (positives > 0) & (negatives > 0)
    return GroupAucs((wins / (positives * negatives))[both], (positives + negatives)[both])


def gauc(labels: Tensor, scores: Tensor, group: Tensor, weights: Tensor | None = None) -> float:
    """AUC within groups, averaged by their rows. Raises ValueError when no group has both classes."""
    within = group_aucs(labels, scores, group, weights)
    if len(within.aucs) == 0:
        raise ValueError(f"gauc needs a group with rows of both classes, none of {len(group.unique())} has")
    return within.mean


def row_losses(labels: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy of each row in nats, [N] float64."""
    return functional.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none")


def logloss(labels: Tensor, logits: Tensor, weights: Tensor | None = None) -> float:
    """Mean cross-entropy in nats of labels [N] and logits [N]."""
    return float(_weighted_mean(row_losses(labels, logits), weights))


def entropy(rate: float) -> float:
    """Cross-entropy in nats of always answering the base rate. Raises ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise ValueError(f"the share of positives must lie between 0 and 1, got {rate}")
    share = torch.tensor([rate, 1 - rate], dtype=torch.float64)
    return float(-(share * share.log()).sum())


def logits_of(probability: Tensor) -> Tensor:
    """The logits of probabilities, kept finite at 0 and 1, float32."""
    return probability.double().logit(eps=1e-7).float()


def _pairs(labels: Tensor, scores: Tensor, group: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """For each group 0..G - 1: weight of positives, of negatives, and of pairs won (ties half), [G] float64."""
    _check_rows(labels, scores, group, weights)
    order = scores.argsort()
    if len(group) and int(group.max()) > 0:
        order = order[group[order].argsort(stable=True)]
    labels, scores, group = labels[order].double(), scores[order], group[order]
    weight = torch.ones_like(labels) if weights is None else weights[order].double()
    changes = torch.ones(len(labels), dtype=torch.bool)
    changes[1:] = (scores[1:] != scores[:-1]) | (group[1:] != group[:-1])
    block = changes.cumsum(0) - 1
    positives = block.bincount(weights=weight * labels)  # [T]
    negatives = block.bincount(weights=weight * (1 - labels))  # [T]
    of_block = group[changes]  # [T]
    total = of_block.bincount(weights=negatives)  # [G]
    below = negatives.cumsum(0) - negatives - (total.cumsum(0) - total)[of_block]
    wins = of_block.bincount(weights=positives * (below + negatives / 2))
    return of_block.bincount(weights=positives), total, wins


def _check_rows(labels: Tensor, scores: Tensor, group: Tensor, weights: Tensor | None) -> None:
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


def _weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values.mean()
    weights = weights.double()
    return (values * weights).sum() / weights.sum()

"""How well calibrated scores are, segment by segment, each with an interval: mean prediction - mean label.

A model that is calibrated over all rows may be wrong on each part of them. Segments are deciles of the score, deciles
of a dense feature, or the most frequent values of an id feature, the others together. The interval is the bootstrap's,
over the segment's users (`bootstrap.py`): 0 within it says that the error may be chance; of ten segments at 95 %, one
in two models that are calibrated has one without.
Not here: mending it (`calibrators.py`). Memory: some numbers a row, all of them in memory.

Shapes: N rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.evaluation.bootstrap import Draws, Interval, resampled_means
from recsys.evaluation.ctr import ScoredRows

NUM_SEGMENTS = 10
OTHERS = "others"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of the rows. weight: of its rows; predicted, observed: means; error: predicted - observed."""

    name: str
    rows: int
    weight: float
    predicted: float
    observed: float
    error: Interval


def calibration_by(
    rows: ScoredRows,
    draws: Draws,
    *,
    values: Tensor | None = None,
    name: Callable[[int], str] = str,
    num_segments: int = NUM_SEGMENTS,
) -> list[Segment]:
    """The segments of rows by values [N]: int64 ids, float numbers, or None for the rows' probabilities.

    name: what an id is called. Segments of numbers hold equal weight, as far as equal numbers, which stay together,
    allow, and are named "low .. high". Raises ValueError when values are not one for each row.
    """
    if values is not None and list(values.shape) != [len(rows)]:
        raise ValueError(f"values must be [{len(rows)}], one per row, got {list(values.shape)}")
    weights = rows.row_weights
    given = rows.logits.double().sigmoid() if values is None else values
    split = _by_number if given.is_floating_point() else _by_id
    place, names = split(given, weights, num_segments, name)
    error = rows.logits.double().sigmoid() - rows.labels.double()
    return [_segment(rows, weights, error, place == number, text, draws) for number, text in enumerate(names)]


def _segment(
    rows: ScoredRows, weights: Tensor, error: Tensor, inside: Tensor, name: str, draws: Draws
) -> Segment:  # fmt: skip
    weight, labels = weights[inside], rows.labels[inside].double()
    clusters = None if rows.clusters is None else rows.clusters[inside]
    samples = resampled_means(error[inside][:, None], draws, clusters=clusters, weights=weight)[:, 0]
    total = float(weight.sum())
    mean, observed = (float(weight @ column) / total for column in (error[inside], labels))
    return Segment(
        name=name, rows=int(inside.sum()), weight=total, predicted=observed + mean, observed=observed,
        error=draws.interval(mean, samples),
    )  # fmt: skip


def _by_number(values: Tensor, weights: Tensor, num: int, _: Callable[[int], str]) -> tuple[Tensor, list[str]]:
    """The segment of each row, and the names of segments."""
    found, place = values.unique(return_inverse=True)
    weight = place.bincount(weights=weights)
    middle = (weight.cumsum(0) - weight / 2) / weight.sum()
    segment = (middle * num).long().clamp(0, num - 1).unique_consecutive(return_inverse=True)[1]
    parts = [found[segment == number] for number in range(int(segment[-1]) + 1)]
    return segment[place], [f"{float(part[0]):.4g} .. {float(part[-1]):.4g}" for part in parts]


def _by_id(values: Tensor, weights: Tensor, num: int, name: Callable[[int], str]) -> tuple[Tensor, list[str]]:
    """As `_by_number`; the heaviest values first, then all others."""
    found, place = values.unique(return_inverse=True)
    order = place.bincount(weights=weights).argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).clamp(max=num)
    names = [name(int(value)) for value in found[order[:num]]]
    return rank[place], names + ([OTHERS] if len(found) > num else [])

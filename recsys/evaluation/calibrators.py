"""From a ranker's logits to probabilities that are as frequent as they say: curves fitted on validation, kept as JSON.

For each label, with logit z, the calibrated logit is curve(z + log r). r is the share of negatives that train kept
(1: all): on these the odds are 1 / r times the true ones. The curves rise strictly, so that the order of scores, and
with it AUC, stays (but for what float32 rounds to one number):

    platt     a z + b, with a > 0 (Platt 1999)
    beta      a log q - b log(1 - q) + c with q = sigmoid(z), a, b >= 0 and not both 0 (Kull et al. 2017)
    isotonic  centred isotonic regression (Oron and Flournoy 2017): the mean label of at most BINS bins of z of equal
              weight, made to rise by pooling neighbours (PAV); straight lines, in logits, between the centres of the
              pools, and slope 1 beyond the first and the last

Platt and beta are fitted by Newton's method with a prior of one row's weight for the curve that changes nothing, so
that separable or constant scores have an answer too; beta drops a coefficient that came out negative and fits again,
as its authors do. What differs from plain isotonic regression: pools of it score the same, which would lose the order;
and bins start at (positives + r) / (rows + 1) with r the share of positives, so that none says 0 or 1.
Not here: how well calibrated a model is (`calibration.py`).

Shapes: N rows, F coefficients, K knots, B rows of a request, T labels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import isfinite, log
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from features import storage
from recsys.evaluation.ctr import ScoredRows, row_losses

FILE = "calibrator.json"
FORMAT = 1
BINS, ROWS_A_BIN = 200, 50
NEWTON_STEPS, TOLERANCE = 100, 1e-10
ROWS_AT_ONCE = 1 << 20
Features = Callable[[Tensor], Sequence[Tensor]]  # logits [n] -> columns [n], before the constant 1


class Curve(Protocol):
    """A strictly rising map of logits."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits, float64 of any shape -> calibrated logits."""


@dataclass(frozen=True)
class Platt:
    """a z + b."""

    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        _check("slope", self.slope, self.slope > 0)
        _check("intercept", self.intercept, True)

    def __call__(self, logits: Tensor) -> Tensor:
        """See `Curve`."""
        return self.slope * logits + self.intercept

    @staticmethod
    def fit(rows: ScoredRows) -> "Platt":
        """The most likely curve. Raises ValueError when scores do not rise with the label."""
        slope, intercept = _logistic(rows, lambda z: [z])
        if slope <= 0:
            raise ValueError(_FALLS)
        return Platt(slope, intercept)


@dataclass(frozen=True)
class Beta:
    """a log q - b log(1 - q) + c."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __post_init__(self) -> None:
        _check("a", self.a, self.a >= 0)
        _check("b", self.b, self.b >= 0 and self.a + self.b > 0)
        _check("c", self.c, True)

    def __call__(self, logits: Tensor) -> Tensor:
        """See `Curve`."""
        return self.c - self.a * softplus(-logits) + self.b * softplus(logits)

    @staticmethod
    def fit(rows: ScoredRows) -> "Beta":
        """The most likely curve. Raises ValueError when scores do not rise with the label."""
        a, b, c = _logistic(rows, lambda z: [-softplus(-z), softplus(z)])
        if a < 0:
            a, (b, c) = 0.0, _logistic(rows, lambda z: [softplus(z)])
        elif b < 0:
            b, (a, c) = 0.0, _logistic(rows, lambda z: [-softplus(-z)])
        if min(a, b) < 0 or a + b == 0:
            raise ValueError(_FALLS)
        return Beta(a, b, c)


@dataclass(frozen=True)
class Isotonic:
    """Straight lines through (x[k], y[k]), K knots that rise strictly in both, and slope 1 beyond them."""

    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        rising = all(low < high for knots in (self.x, self.y) for low, high in pairwise(knots))
        if len(self.x) != len(self.y) or not self.x or not rising or not all(map(isfinite, (*self.x, *self.y))):
            raise ValueError("isotonic: x and y must be as many numbers that rise strictly, at least one")

    def __call__(self, logits: Tensor) -> Tensor:
        """See `Curve`."""
        x, y = (torch.tensor(knots, dtype=torch.float64, device=logits.device) for knots in (self.x, self.y))
        slopes = torch.cat([x.new_ones(1), y.diff() / x.diff(), x.new_ones(1)])  # of what lies before each knot
        place = torch.searchsorted(x, logits)
        start = (place - 1).clamp(min=0)
        return y[start] + (logits - x[start]) * slopes[place]

    @staticmethod
    def fit(rows: ScoredRows) -> "Isotonic":
        """Of the bins of equal weight."""
        centres, positives, weight = _bins(rows)
        rate = float(positives.sum() / weight.sum())
        values, pool = pav((positives + rate) / (weight + 1), weight + 1)
        x = pool.bincount(weights=centres * weight) / pool.bincount(weights=weight)
        y = values.logit()
        kept = _rises(x) & _rises(y)  # pools may differ by less than a rounding
        return Isotonic(x[kept].tolist(), y[kept].tolist())


@dataclass(frozen=True)
class Unchanged:
    """z."""

    def __call__(self, logits: Tensor) -> Tensor:
        """See `Curve`."""
        return logits


METHODS: dict[str, type[Platt] | type[Beta] | type[Isotonic]] = {"isotonic": Isotonic, "platt": Platt, "beta": Beta}
CURVES: dict[str, type[Curve]] = {**METHODS, "none": Unchanged}


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """The curve of each label, and what is added to its logits before: log r.

    about: what it was fitted on, for people.
    Example: `Calibrator.load(folder).probabilities(logits, ("click",))`.
    """

    curves: Mapping[str, Curve]
    shifts: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def fit(
        method: str,
        rows: Mapping[str, ScoredRows],
        shifts: Mapping[str, float],
        about: Mapping[str, Any] | None = None,
    ) -> "Calibrator":
        """Of held-out rows of each label. Raises ValueError naming a method or label that cannot be fitted."""
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, accepted is one of {', '.join(METHODS)}")
        curves: dict[str, Curve] = {}
        for label, scored in rows.items():
            share = float(scored.labels.mean()) if len(scored) else 0.0
            if not 0 < share < 1:
                raise ValueError(f"label {label!r}: calibration needs rows of both classes, {share:.0%} are positive")
            try:
                curves[label] = METHODS[method].fit(_shifted(scored, shifts.get(label, 0.0)))
            except ValueError as error:
                raise ValueError(f"label {label!r}, method {method!r}: {error}") from None
        return Calibrator(curves=curves, shifts=shifts, about=about or {})

    @staticmethod
    def for_rate(label: str, rate: float) -> "Calibrator":
        """The correction for sampled negatives alone: r = rate in (0, 1], on that label."""
        return Calibrator(curves={label: Unchanged()}, shifts={label: sampling_shift(rate)})

    @staticmethod
    def of(folder: Path, label: str, rate: float) -> "Calibrator | None":
        """The one in the folder; else the label's correction for the share of negatives kept, None where it is 1."""
        if (folder / FILE).exists():
            return Calibrator.load(folder)
        return None if rate == 1 else Calibrator.for_rate(label, rate)

    def logits(self, logits: Tensor, label: str) -> Tensor:
        """Logits of a label, of any shape -> calibrated ones, float64; a label without a curve keeps its own."""
        shifted = logits.double() + self.shifts.get(label, 0.0)
        return self.curves.get(label, Unchanged())(shifted)

    def probabilities(self, logits: Tensor, labels: Sequence[str]) -> Tensor:
        """Logits [B, T] of labels -> probabilities [B, T] float32."""
        columns = [self.logits(column, label) for column, label in zip(logits.unbind(1), labels, strict=True)]
        return torch.stack(columns, dim=1).sigmoid().float()

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        names = {kind: name for name, kind in CURVES.items()}
        labels = {
            label: {"method": names[type(curve)], "shift": self.shifts.get(label, 0.0), **asdict(curve)}  # type: ignore[call-overload]
            for label, curve in self.curves.items()
        }
        return {"format": FORMAT, "labels": labels, "about": dict(self.about)}

    def save(self, folder: Path) -> None:
        """Write calibrator.json into the folder, in place of one that is there."""
        storage.write_json(folder / FILE, self.record())

    @staticmethod
    def load(folder: Path) -> "Calibrator":
        """The one that was saved in the folder. Raises ValueError naming the file when it is not whole."""
        try:
            values = json.loads((folder / FILE).read_text())
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, accepted is {FORMAT}")
            labels = {label: dict(curve) for label, curve in values["labels"].items()}
            shifts = {label: float(curve.pop("shift")) for label, curve in labels.items()}
            curves = {label: CURVES[curve.pop("method")](**curve) for label, curve in labels.items()}
            return Calibrator(curves=curves, shifts=shifts, about=values["about"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder / FILE} is damaged or of another version: {error}") from None


def sampling_shift(rate: float) -> float:
    """The log of r, which is added to the logit of a model that was trained on the share r of the negatives."""
    if not 0 < rate <= 1:
        raise ValueError(f"the share of negatives kept must lie in (0, 1], got {rate}")
    return log(rate)


def pav(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The rising sequence nearest to values [n] in weighted squares: its P distinct values, and the pool of each, [n].

    Pool adjacent violators; equal neighbours are one pool, so that the values of pools rise strictly. Linear in n.
    """
    pools: list[list[float]] = []  # sum of weighted values, weight, count
    for value, weight in zip(values.double().tolist(), weights.double().tolist(), strict=True):
        pools.append([value * weight, weight, 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = [mine + other for mine, other in zip(pools[-1], last, strict=True)]
    means = torch.tensor([total / weight for total, weight, _ in pools], dtype=torch.float64)
    counts = torch.tensor([int(count) for *_, count in pools])
    return means, torch.arange(len(pools)).repeat_interleave(counts)


# --- fitting ---

_FALLS = "the score does not rise with the label, no curve can calibrate it"


def _check(name: str, value: float, accepted: bool) -> None:
    if not isfinite(value) or not accepted:
        raise ValueError(f"{name} is {value}")


def _rises(values: Tensor) -> Tensor:
    """Whether each of values [n] is above all before it."""
    highest = values.cummax(0).values
    return torch.cat([torch.ones(1, dtype=torch.bool), highest.diff() > 0])


def _shifted(rows: ScoredRows, shift: float) -> ScoredRows:
    return ScoredRows(labels=rows.labels, logits=rows.logits + shift, weights=rows.weights)


def _bins(rows: ScoredRows) -> tuple[Tensor, Tensor, Tensor]:
    """Mean logit, weight of positives and weight of bins of equal weight, rising; a row weighs 1 on average."""
    num = max(1, min(BINS, len(rows) // ROWS_A_BIN))
    bins = rows.bins(num)
    kept = bins.weight > 0
    scale = len(rows) / float(bins.weight.sum())
    weight, positives = bins.weight[kept], bins.positives[kept]
    return bins.logits[kept] / weight, positives * scale, weight * scale


def _logistic(rows: ScoredRows, features: Features) -> list[float]:
    """Coefficients [F] that minimise log loss plus half the squared distance from the prior, by Newton's method.

    The prior is 1 for every feature and 0 for the constant, which comes last; it weighs as one row does on average.
    """
    num = len(features(torch.zeros(1))) + 1
    best = torch.ones(num, dtype=torch.float64)
    best[-1] = 0.0
    prior = best
    found = _derivatives(rows, features, best, prior)
    for _ in range(NEWTON_STEPS):
        step = torch.linalg.solve(found[2], found[1])
        if float(step @ found[1]) < TOLERANCE:
            break
        size = 1.0
        while (tried := _derivatives(rows, features, best - size * step, prior))[0] > found[0] and size > TOLERANCE:
            size /= 2
        best, found = best - size * step, tried
    values: list[float] = best.tolist()
    return values


def _derivatives(rows: ScoredRows, features: Features, at: Tensor, prior: Tensor) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient [F] and Hessian [F, F]."""
    loss = torch.zeros((), dtype=torch.float64)
    gradient, hessian = torch.zeros_like(at), torch.zeros(len(at), len(at), dtype=torch.float64)
    total = 0.0
    for part in rows.split(ROWS_AT_ONCE):
        weights = part.row_weights
        given = part.logits.double()
        inputs = torch.stack([*features(given), torch.ones_like(given)], dim=1)  # [n, F]
        logits = inputs @ at
        predicted = logits.sigmoid()
        loss += weights @ row_losses(part.labels, logits)
        gradient += inputs.T @ (weights * (predicted - part.labels.double()))
        hessian += inputs.T @ (inputs * (weights * predicted * (1 - predicted))[:, None])
        total += float(weights.sum())
    one, away = total / len(rows), at - prior
    loss += one * (away @ away) / 2
    return float(loss), gradient + one * away, hessian + one * torch.eye(len(at), dtype=torch.float64)

"""What may be done to a number before a model sees it: log1p, clip, standardise, bucketise, in the order given.

The schema names transforms; the numbers that two of them learn from the train split (mean and standard deviation,
quantiles) stand in a `Statistic` of the encoder. All arithmetic is float64. Nothing in here knows columns or nulls.

Shapes: N values.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from features.raw_ids import Refuse
from features.values import Value

Floats = NDArray[np.float64]


class Log1p(Value):
    """log(1 + x); x below 0 is refused when encoding."""

    kind: Literal["log1p"] = "log1p"


class Clip(Value):
    """min(max(x, low), high)."""

    kind: Literal["clip"] = "clip"
    low: float
    high: float

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"clip needs low <= high, got {self.low} and {self.high}")
        return self


class Standardise(Value):
    """(x - mean) / std with the statistics of the train split; a constant column becomes 0."""

    kind: Literal["standardise"] = "standardise"


class Bucketise(Value):
    """The number of boundaries at or below x: an id in 0..len(boundaries). Only for kind "id", and last.

    Give `boundaries`, or `num_buckets` for train quantiles (fewer buckets where quantiles coincide).
    """

    kind: Literal["bucketise"] = "bucketise"
    boundaries: tuple[float, ...] = ()
    num_buckets: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.boundaries) == (self.num_buckets is not None):
            raise ValueError("bucketise takes either boundaries or num_buckets")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"bucketise boundaries must rise, got {self.boundaries}")
        return self


Transform = Annotated[Log1p | Clip | Standardise | Bucketise, Field(discriminator="kind")]


class Statistic(Value):
    """What one feature's transforms learned from the train split.

    mean, std: of the values that reach `standardise` (population form; nulls are left out). boundaries: of `bucketise`,
    in the units of the values that reach it. counts: train rows in each bucket, () where they were not counted.
    """

    mean: float = 0.0
    std: float = 1.0
    boundaries: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


def needs_statistic(transforms: Sequence[Transform]) -> bool:
    """Whether something must be learned from train data before these transforms can run."""
    return any(isinstance(t, Standardise) or (isinstance(t, Bucketise) and not t.boundaries) for t in transforms)


def boundaries_of(transforms: Sequence[Transform], statistic: Statistic) -> tuple[float, ...]:
    """The boundaries of `bucketise`: its own, or those learned."""
    own = [transform.boundaries for transform in transforms if isinstance(transform, Bucketise)]
    return own[0] if own and own[0] else statistic.boundaries


def transformed(values: Floats, transforms: Sequence[Transform], statistic: Statistic, refuse: Refuse) -> Floats:
    """The values after all transforms, [N] float64; bucketise gives whole numbers.

    `refuse(index, reason)` is called for a value that a transform does not accept, and must raise.
    """
    for transform in transforms:
        values = _applied(transform, values, statistic, refuse)
    return values


def _applied(transform: Transform, values: Floats, statistic: Statistic, refuse: Refuse) -> Floats:
    if isinstance(transform, Log1p):
        return np.log1p(_not_negative(values, refuse))
    if isinstance(transform, Clip):
        return np.clip(values, transform.low, transform.high)
    if isinstance(transform, Standardise):
        return (values - statistic.mean) / statistic.std if statistic.std > 0 else np.zeros_like(values)
    boundaries = np.asarray(transform.boundaries or statistic.boundaries)
    return np.searchsorted(boundaries, values, side="right").astype(np.float64)


def fitted(values: Floats, transforms: Sequence[Transform], refuse: Refuse) -> Statistic:
    """What the transforms learn from the train values [N] (nulls left out).

    Quantiles are linearly interpolated, as by `quantile_cont` of SQL engines. Without values, buckets have no
    boundaries and a standardised column is left as it is.
    """
    statistic = Statistic()
    for done, transform in enumerate(transforms):
        reached = transformed(values, transforms[:done], statistic, refuse)
        if isinstance(transform, Standardise) and len(reached):
            statistic = statistic.model_copy(update={"mean": float(reached.mean()), "std": _std(reached)})
        elif isinstance(transform, Bucketise):
            boundaries = transform.boundaries or _quantiles(reached, transform.num_buckets or 2)
            buckets = np.searchsorted(np.asarray(boundaries), reached, side="right")
            counts = tuple(np.bincount(buckets, minlength=len(boundaries) + 1).tolist())
            statistic = statistic.model_copy(update={"boundaries": boundaries, "counts": counts})
    return statistic


def _not_negative(values: Floats, refuse: Refuse) -> Floats:
    below = np.flatnonzero(values < 0)
    if len(below):
        refuse(int(below[0]), "log1p takes numbers of at least 0")
    return values


def _std(values: Floats) -> float:
    """0 for a constant column, whose computed deviation can be a rounding error above 0."""
    return float(values.std()) if values.min() < values.max() else 0.0


def _quantiles(values: Floats, num_buckets: int) -> tuple[float, ...]:
    """Distinct inner quantiles; the lowest value is no boundary, or the first bucket would stay empty."""
    if not len(values):
        return ()
    inner = np.quantile(values, np.arange(1, num_buckets) / num_buckets)
    return tuple(np.unique(inner[inner > values.min()]).tolist())

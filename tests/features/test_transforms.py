"""Transforms equal their formulas one value at a time, and learn what they state."""

import math
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.transforms import (
    Bucketise,
    Clip,
    Log1p,
    Standardise,
    Statistic,
    Transform,
    boundaries_of,
    fitted,
    needs_statistic,
    transformed,
)

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)


def refuse(index: int, reason: str) -> NoReturn:
    raise ValueError(f"{index}: {reason}")


def run(values: list[float], *transforms: Transform, statistic: Statistic | None = None) -> list[float]:
    array = np.array(values, dtype=np.float64)
    learned = fitted(array, transforms, refuse) if statistic is None else statistic
    return transformed(array, transforms, learned, refuse).tolist()  # type: ignore[no-any-return]


@settings(deadline=None)
@given(values=VALUES)
def test_log1p_and_clip_run_in_the_order_given(values: list[float]) -> None:
    assert run(values, Log1p(), Clip(low=0, high=2)) == pytest.approx([min(math.log1p(v), 2) for v in values])
    assert run(values, Clip(low=0, high=2), Log1p()) == pytest.approx([math.log1p(min(v, 2)) for v in values])


@settings(deadline=None)
@given(values=VALUES)
def test_standardised_values_have_mean_zero_and_deviation_one(values: list[float]) -> None:
    out = np.array(run(values, Standardise()))
    spread = max(values) - min(values)
    if spread == 0:
        assert not out.any()
    elif spread > 1e-3:
        assert out.mean() == pytest.approx(0, abs=1e-6)
        assert out.std() == pytest.approx(1, abs=1e-6)


def test_standardise_uses_what_was_learned_in_train() -> None:
    assert run([10.0], Standardise(), statistic=Statistic(mean=4, std=3)) == [2.0]
    assert run([10.0], Standardise(), statistic=Statistic(mean=4, std=0)) == [0.0]


@settings(deadline=None)
@given(values=VALUES, num_buckets=st.integers(2, 6))
def test_quantile_buckets_are_counted_and_none_is_empty(values: list[float], num_buckets: int) -> None:
    transforms = (Bucketise(num_buckets=num_buckets),)
    statistic = fitted(np.array(values), transforms, refuse)
    assert len(statistic.boundaries) < num_buckets
    buckets = run(values, *transforms, statistic=statistic)
    assert buckets == [sum(v >= boundary for boundary in statistic.boundaries) for v in values]
    assert list(statistic.counts) == [buckets.count(b) for b in range(len(statistic.boundaries) + 1)]
    assert statistic.counts[0] > 0


def test_fitting_chains_transforms() -> None:
    statistic = fitted(
        np.array([0.0, math.e - 1, math.e**2 - 1]), (Log1p(), Standardise(), Bucketise(num_buckets=2)), refuse
    )
    assert statistic.mean == pytest.approx(1)
    assert statistic.boundaries == pytest.approx((0,))
    assert statistic.counts == (1, 2)


def test_fitting_without_values_leaves_the_start() -> None:
    statistic = fitted(np.array([]), (Standardise(), Bucketise(num_buckets=3)), refuse)
    assert statistic == Statistic(counts=(0,))


def test_log1p_names_the_first_value_below_zero() -> None:
    with pytest.raises(ValueError, match="1: log1p takes numbers of at least 0"):
        run([1, -1, -2], Log1p())


def test_only_learned_numbers_need_a_statistic() -> None:
    assert not needs_statistic((Log1p(), Clip(low=0, high=1), Bucketise(boundaries=(1,))))
    assert needs_statistic((Standardise(),))
    assert needs_statistic((Bucketise(num_buckets=2),))
    assert boundaries_of((Bucketise(boundaries=(1,)),), Statistic()) == (1,)
    assert boundaries_of((Bucketise(num_buckets=2),), Statistic(boundaries=(5,))) == (5,)

"""A scale is monotone, holds all of its values with room to spare, and has a few round ticks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.report.scale import MAX_TICKS, Scale

VALUES = st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=6)


@given(VALUES, st.booleans())
def test_scale_keeps_order_and_holds_everything(values: list[float], log: bool) -> None:
    scale = Scale.over(values, log, 100.0, 0.0)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places, reverse=True)
    assert all(0.0 < place < 100.0 for place in places)


@given(VALUES, st.booleans())
def test_ticks_are_few_and_within(values: list[float], log: bool) -> None:
    scale = Scale.over(values, log, 0.0, 100.0)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= MAX_TICKS + 1
    assert all(-1e-6 <= scale.at(tick) <= 100.0 + 1e-6 for tick in ticks if tick > 0 or not log)


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.0, 10.0, False, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
        (1e3, 1e6, True, [1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6]),
        (1e4, 1e5, True, [1e4, 2e4, 5e4, 1e5]),
        (1.0, 1e9, True, [1.0, 1e2, 1e4, 1e6, 1e8]),
        (2.0, 3.0, True, [2.0, 2.2, 2.4, 2.6, 2.8, 3.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, ticks: list[float]) -> None:
    found = Scale.over([low, high], log, 0.0, 1.0).ticks()
    assert found == pytest.approx(ticks)

"""Means, fronts and recommendations against their definitions."""

import math
import random
from collections.abc import Mapping

import pytest
from scipy.stats import ttest_rel

from recsys.sweep.outcome import Lookup, Outcome
from recsys.sweep.plan import Cell
from recsys.sweep.summary import Limits, Spread, Summary, told_apart
from tests.recsys.sweep.outcomes import cell, ended, finished


def summary(outcomes: Mapping[Cell, Outcome], higher: bool = True) -> Summary:
    return Summary.of(outcomes, list(outcomes), "auc", higher, 10_000)


def seeds(method: str, aucs: list[float], budget: str = "10%", **costs: float) -> dict[Cell, Outcome]:
    return {cell(method, budget, seed=seed): finished(auc, **costs) for seed, auc in enumerate(aucs)}  # type: ignore[arg-type]


# --- rows ---


def test_row_is_the_mean_and_the_spread_over_its_seeds() -> None:
    (row,) = summary(seeds("hash", [0.6, 0.7, 0.8])).rows
    assert (row.validation.mean, row.validation.deviation) == pytest.approx((0.7, 0.1))
    assert row.validation.count == 3
    assert row.test.mean == pytest.approx(0.71)
    assert (row.served, row.tensors, row.training) == (1100, 1000, 5000)
    assert str(Spread.of([0.5])) == "0.5000"


def test_lookup_is_the_median_ratio_times_the_least_collisionless_time() -> None:
    outcomes = {
        cell(seed=seed): finished(0.7, lookup=Lookup(us_per_id=ratio * dense, dense_us_per_id=dense))
        for seed, (ratio, dense) in enumerate([(2.0, 0.5), (3.0, 0.1), (50.0, 0.2)])
    }
    assert summary(outcomes).rows[0].lookup_us == pytest.approx(3.0 * 0.1)


def test_what_did_not_finish_stands_with_its_reason_once() -> None:
    outcomes = seeds("hash", [0.7]) | {cell("compo", seed=seed): ended("unreachable", "too small") for seed in (1, 2)}
    found = Summary.of(outcomes, [*outcomes, cell("robe")], "auc", True, 10_000)
    assert [row.method for row in found.finished] == ["hash"]
    assert [(left.row.method, left.seeds, left.status, left.reason) for left in found.unfinished] == [
        ("compo", (1, 2), "unreachable", "too small")
    ]
    assert found.missing == 1


# --- fronts ---


@pytest.mark.parametrize("higher", [True, False])
def test_front_is_what_nothing_beats_in_both(higher: bool) -> None:
    draw = random.Random(1)
    points = [(draw.randint(1, 20), draw.randint(1, 20) / 20) for _ in range(40)]
    outcomes = {cell(f"m{n}"): finished(auc, size=size) for n, (size, auc) in enumerate(points)}
    found = summary(outcomes, higher)
    sign = 1 if higher else -1
    beaten = [
        any((s <= size and sign * a >= sign * auc) and (s, a) != (size, auc) for s, a in points) for size, auc in points
    ]
    expected = {point for point, lost in zip(points, beaten, strict=True) if not lost}
    front = [(row.tensors, round(row.validation.mean, 2)) for row in found.front(lambda row: row.tensors)]
    assert set(front) == expected
    assert front == sorted(front)


# --- recommendations ---


def test_best_is_chosen_by_validation_within_the_limits() -> None:
    outcomes = seeds("hash", [0.6], size=100) | seeds("compo", [0.7], size=900) | seeds("robe", [0.8], size=5000)
    outcomes |= {cell("ttrec", seed=0): finished(0.65, size=800, test={"auc": 0.99})}
    found = summary(outcomes)
    picks = [found.advise("x", Limits(bytes=most)).best for most in (10, 100, 1000, 9999)]
    assert [pick and pick.method for pick in picks] == [None, "hash", "compo", "robe"]


@pytest.mark.parametrize(
    ("limits", "best"),
    [
        (Limits(), "compo"),
        (Limits(lookup_us=0.02), "hash"),
        (Limits(training_bytes=5000), "hash"),
        (Limits(bytes=999), None),
    ],
)
def test_every_limit_binds(limits: Limits, best: str | None) -> None:
    outcomes = seeds("hash", [0.6]) | seeds("compo", [0.7], ratio=3.0, training=9000)
    found = summary(outcomes).advise("x", limits).best
    assert (found and found.method) == best


def test_lower_is_better_where_it_is() -> None:
    best = summary(seeds("hash", [0.6]) | seeds("compo", [0.7]), higher=False).advise("x", Limits()).best
    assert best is not None
    assert best.method == "hash"


@pytest.mark.parametrize("seed", range(5))
def test_told_apart_is_the_paired_t_test(seed: int) -> None:
    draw = random.Random(seed)
    a, b = ([0.7 + draw.gauss(shift, 0.01) for _ in range(4)] for shift in (0.0, 0.015))
    rows = summary(seeds("a", a) | seeds("b", b)).rows
    assert told_apart(*rows) == told_apart(*reversed(rows)) == (ttest_rel(a, b).pvalue < 0.05)


def test_words_name_the_smallest_of_those_not_told_apart() -> None:
    outcomes = seeds("big", [0.70, 0.72, 0.71], size=900) | seeds("small", [0.71, 0.70, 0.715], size=300)
    outcomes |= seeds("bad", [0.50, 0.51, 0.505], size=10)
    advice = summary(outcomes).advise("10%", Limits())
    assert advice.best is not None
    assert (advice.best.method, [row.method for row in advice.alike]) == ("big", ["small"])
    assert advice.words.startswith("10%: big at 10%, float32: validation auc 0.7100 ± 0.0100 (3 seeds).")
    assert "do not tell it apart (95%, paired) from small at 10%, float32. Of these small at 10%" in advice.words


def test_words_of_sizes_that_are_the_same_name_the_fastest() -> None:
    outcomes = seeds("slow", [0.70, 0.72], size=1000, ratio=9.0) | seeds("fast", [0.69, 0.721], size=1040, ratio=2.0)
    assert "Of these fast at 10%, float32 is the smallest, or as small" in summary(outcomes).advise("x", Limits()).words


def test_one_seed_tells_nothing_apart() -> None:
    advice = summary(seeds("a", [0.9]) | seeds("b", [0.1])).advise("x", Limits())
    assert "One seed tells nothing apart" in advice.words
    assert not math.isnan(advice.best.lookup_us if advice.best else math.nan)


def test_one_beyond_all_others_says_so() -> None:
    outcomes = seeds("good", [0.90, 0.91, 0.92]) | seeds("bad", [0.50, 0.51, 0.52])
    assert "The seeds tell it apart from everything else here." in summary(outcomes).advise("x", Limits()).words


def test_nothing_that_satisfies_is_said() -> None:
    assert summary({}).advise("1%", Limits()).words == "1%: nothing that finished satisfies this."

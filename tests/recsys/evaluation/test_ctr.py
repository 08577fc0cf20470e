import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys.evaluation.ctr import ScoredRows, auc, entropy, gauc, group_aucs, logits_of, logloss

row = st.tuples(st.booleans(), st.integers(-2, 2), st.integers(0, 3), st.integers(0, 2))


def columns(rows: list[tuple[bool, int, int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels, scores, weights, group = zip(*rows, strict=True)
    return (
        torch.tensor(labels).float(),
        torch.tensor(scores).float(),
        torch.tensor(weights).float(),
        torch.tensor(group),
    )


def naive_auc(rows: list[tuple[bool, int, int, int]]) -> float | None:
    """Over all pairs of a positive and a negative row."""
    won = drawn = 0.0
    for _, high, weight, _ in (r for r in rows if r[0]):
        for _, low, other, _ in (r for r in rows if not r[0]):
            drawn += weight * other
            won += weight * other * (1.0 if high > low else 0.5 if high == low else 0.0)
    return won / drawn if drawn else None


@given(st.lists(row, min_size=1, max_size=20))
def test_auc_equals_a_loop_over_pairs(rows: list[tuple[bool, int, int, int]]) -> None:
    labels, scores, weights, _ = columns(rows)
    expected = naive_auc(rows)
    if expected is None:
        with pytest.raises(ValueError, match="auc needs rows of both classes"):
            auc(labels, scores, weights)
        return
    assert auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)
    assert auc(labels, scores.double().exp(), weights) == pytest.approx(expected, abs=1e-12)
    assert auc(1 - labels, -scores, weights) == pytest.approx(expected, abs=1e-12)


@given(st.lists(row, min_size=1, max_size=25))
def test_gauc_equals_a_loop_over_groups(rows: list[tuple[bool, int, int, int]]) -> None:
    labels, scores, weights, group = columns(rows)
    found = [(naive_auc(part), sum(r[2] for r in part)) for g in range(3) if (part := [r for r in rows if r[3] == g])]
    counted = [(value, weight) for value, weight in found if value is not None]
    if not counted:
        with pytest.raises(ValueError, match="gauc needs a group with rows of both classes"):
            gauc(labels, scores, group, weights)
        return
    expected = sum(value * weight for value, weight in counted) / sum(weight for _, weight in counted)
    assert gauc(labels, scores, group, weights) == pytest.approx(expected, abs=1e-12)
    assert gauc(labels, scores, group * 10**12 - 7, weights) == pytest.approx(expected, abs=1e-12)


def test_integer_weights_equal_repeated_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (200,), generator=generator).float()
    scores = torch.randint(9, (200,), generator=generator).float()
    weights = torch.randint(4, (200,), generator=generator)
    group = torch.randint(5, (200,), generator=generator)
    rows = torch.arange(200).repeat_interleave(weights)
    assert auc(labels, scores, weights) == auc(labels[rows], scores[rows])
    assert logloss(labels, scores, weights) == pytest.approx(logloss(labels[rows], scores[rows]))
    weighted, repeated = group_aucs(labels, scores, group, weights), group_aucs(labels[rows], scores[rows], group[rows])
    assert torch.equal(weighted.aucs, repeated.aucs)


def test_auc_is_exact_where_float32_counts_are_not() -> None:
    labels = torch.zeros(300_000).index_fill(0, torch.arange(100_000), 1)
    scores = torch.zeros(300_000)
    assert auc(labels, scores) == 0.5
    assert auc(labels, labels) == 1.0


def test_logloss_of_extreme_logits_is_finite_and_exact() -> None:
    assert logloss(torch.tensor([0.0, 1.0]), torch.tensor([200.0, 200.0])) == 100.0
    assert logloss(torch.tensor([1.0]), torch.tensor([0.0])) == pytest.approx(math.log(2))


def test_metrics_of_rows_worked_by_hand() -> None:
    rows = ScoredRows(labels=torch.tensor([1.0, 0, 0, 0]), logits=torch.zeros(4), group=torch.tensor([0, 0, 1, 1]))
    assert rows.metrics() == pytest.approx(
        {
            "auc": 0.5,
            "logloss": math.log(2),
            "normalized_entropy": math.log(2) / entropy(0.25),
            "calibration": 2.0,
            "gauc": 0.5,
        }
    )
    assert "gauc" not in ScoredRows(labels=rows.labels, logits=rows.logits, group=torch.arange(4)).metrics()


def test_base_rate_has_normalized_entropy_and_calibration_one() -> None:
    labels = torch.zeros(1000).index_fill(0, torch.arange(137), 1)
    metrics = ScoredRows(labels=labels, logits=logits_of(torch.full((1000,), 0.137))).metrics()
    assert metrics["normalized_entropy"] == pytest.approx(1, abs=1e-6)
    assert metrics["calibration"] == pytest.approx(1, abs=1e-6)


def test_logits_of_probability_are_finite() -> None:
    logits = logits_of(torch.tensor([0.0, 0.25, 1.0]))
    assert bool(logits.isfinite().all())
    assert logits[1].sigmoid() == pytest.approx(0.25)


def test_wrong_rows_are_named() -> None:
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="auc needs rows of both classes, got weight 3 of positives and 0"):
        auc(ones, ones)
    with pytest.raises(ValueError, match="both classes"):
        auc(ones[:0], ones[:0])
    with pytest.raises(ValueError, match=r"labels must be 0 or 1 for auc, row 1 is 0\.5"):
        auc(torch.tensor([0.0, 0.5, 1.0]), ones)
    with pytest.raises(ValueError, match="row 2 is NaN"):
        auc(torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, torch.nan]))
    with pytest.raises(ValueError, match="weights must not be negative, row 0"):
        auc(torch.tensor([0.0, 0, 1]), ones, -ones)
    with pytest.raises(ValueError, match=r"scores must be \[3\] like labels, got \[2\]"):
        auc(ones, ones[:2])
    with pytest.raises(ValueError, match=r"clusters must be \[3\] like labels, got \[1\]"):
        ScoredRows(labels=ones, logits=ones, clusters=torch.tensor([1]))
    with pytest.raises(ValueError, match="logits must be finite, row 1 is inf"):
        ScoredRows(labels=ones, logits=torch.tensor([0.0, torch.inf, 0]))
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        entropy(0.0)

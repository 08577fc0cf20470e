import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys.evaluation.ctr import (
    ScoredRows,
    auc,
    entropy,
    gauc,
    group_aucs,
    logits_of,
    logloss,
    pr_auc,
    rela_impr,
)

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
            "pr_auc": 0.25,
            "calibration": 2.0,
            "calibration_error": 0.25,
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


def naive_pr_auc(rows: list[tuple[bool, int, int, int]]) -> float | None:
    """Recall gained at each threshold, falling, times the precision there."""
    total = sum(r[2] for r in rows if r[0])
    area, before = 0.0, 0.0
    for threshold in sorted({r[1] for r in rows}, reverse=True):
        selected = [r for r in rows if r[1] >= threshold]
        hits, weight = sum(r[2] for r in selected if r[0]), sum(r[2] for r in selected)
        area += (hits - before) * (hits / weight if weight else 0.0)
        before = hits
    return area / total if total else None


@given(st.lists(row, min_size=1, max_size=20))
def test_pr_auc_equals_a_loop_over_thresholds(rows: list[tuple[bool, int, int, int]]) -> None:
    labels, scores, weights, _ = columns(rows)
    expected = naive_pr_auc(rows)
    if expected is None:
        with pytest.raises(ValueError, match="pr_auc needs positive rows"):
            pr_auc(labels, scores, weights)
        return
    assert pr_auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(len(labels))
    assert pr_auc(labels[order], scores[order].double().exp(), weights[order]) == pytest.approx(expected, abs=1e-12)


def some_rows(num: int, seed: int = 0, weighted: bool = True) -> ScoredRows:
    """With ties, weights of zero, and groups of very different size."""
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num, generator=random) * 8).round() / 4
    return ScoredRows(
        labels=(torch.rand(num, generator=random) < logits.sigmoid()).float(),
        logits=logits,
        weights=torch.randint(4, (num,), generator=random) / 2 if weighted else None,
        group=(torch.rand(num, generator=random) ** 3 * 40).long() * 10**12 - 7,
    )


@pytest.mark.parametrize("rows_at_once", [1, 7, 64, 1000])
def test_rows_sorted_in_pieces_measure_as_in_memory(rows_at_once: int) -> None:
    rows = some_rows(700)
    assert rows.group is not None
    in_pieces, counts = rows.measured(rows_at_once)
    assert in_pieces == pytest.approx(rows.metrics(), abs=1e-12)
    assert counts == rows.measured()[1]
    assert in_pieces["auc"] == pytest.approx(auc(rows.labels, rows.logits, rows.weights), abs=1e-12)
    assert in_pieces["pr_auc"] == pytest.approx(pr_auc(rows.labels, rows.logits, rows.weights), abs=1e-12)
    assert in_pieces["gauc"] == pytest.approx(gauc(rows.labels, rows.logits, rows.group, rows.weights), abs=1e-12)
    assert in_pieces["logloss"] == pytest.approx(logloss(rows.labels, rows.logits, rows.weights), abs=1e-12)


def test_sorted_pieces_stand_in_the_scratch_folder(tmp_path: Path) -> None:
    rows = ScoredRows(labels=torch.tensor([0.0, 1, 1]), logits=torch.arange(3.0), group=torch.zeros(3).long())
    assert rows.measured(2, scratch=tmp_path) == rows.measured()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rows.measured(2, scratch=tmp_path / "nowhere")


def test_metrics_do_not_change_with_row_order_scale_of_weights_or_doubled_rows() -> None:
    rows, order = some_rows(300), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    shuffled = ScoredRows(**{name: column[order] for name, column in rows.columns().items()})
    doubled = ScoredRows(**{name: column.repeat(2) for name, column in rows.columns().items()})
    heavier = ScoredRows(**rows.columns() | {"weights": torch.as_tensor(rows.weights) * 3})
    for same in (shuffled, doubled, heavier):
        assert same.metrics() == pytest.approx(rows.metrics(), abs=1e-12)


def test_one_class_groups_are_left_out_of_gauc_and_counted() -> None:
    labels, logits = torch.tensor([1.0, 0, 1, 1, 0]), torch.tensor([2.0, 1, 0, 3, 4])
    rows = ScoredRows(labels=labels, logits=logits, group=torch.tensor([5, 5, 6, 6, 7]))
    metrics, counts = rows.measured()
    assert (metrics["gauc"], counts) == (1.0, {"groups": 1, "one-class groups": 2})


def test_calibration_error_equals_a_loop_over_equal_bins() -> None:
    rows = some_rows(1000, weighted=False)
    rows = ScoredRows(labels=rows.labels, logits=rows.logits + torch.rand(1000))  # no ties: bins of 100
    order = rows.logits.argsort()
    bins = zip(rows.logits[order].double().sigmoid().split(100), rows.labels[order].split(100), strict=True)
    expected = sum(abs(float(predicted.mean() - labels.double().mean())) / 10 for predicted, labels in bins)
    assert rows.metrics()["calibration_error"] == pytest.approx(expected, abs=1e-12)


def test_bins_hold_all_rows_and_share_no_score() -> None:
    rows = some_rows(500)
    assert rows.weights is not None
    bins = rows.bins(7)
    assert float(bins.weight.sum()) == pytest.approx(float(rows.weights.sum()))
    assert float(bins.positives.sum()) == pytest.approx(float(rows.weights @ rows.labels))
    means = (bins.logits / bins.weight)[bins.weight > 0]
    assert bool((means.diff() > 0).all())
    assert torch.allclose(torch.stack(list(vars(rows.bins(7, 50)).values())), torch.stack(list(vars(bins).values())))


def test_rela_impr_is_worked_by_hand() -> None:
    assert rela_impr(0.8, 0.7) == pytest.approx(0.5)
    assert rela_impr(0.7, 0.7) == 0.0
    with pytest.raises(ValueError, match=r"above \.5, got 0\.5"):
        rela_impr(0.7, 0.5)


def test_rows_of_one_class_have_no_metrics() -> None:
    for label in (0.0, 1.0):
        rows = ScoredRows(labels=torch.full((4,), label), logits=torch.randn(4))
        with pytest.raises(ValueError, match="auc needs rows of both classes"):
            rows.metrics()

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from features import storage
from recsys.evaluation.calibrators import (
    FILE,
    METHODS,
    Beta,
    Calibrator,
    Curve,
    Isotonic,
    Platt,
    Unchanged,
    pav,
    sampling_shift,
)
from recsys.evaluation.ctr import ScoredRows, row_losses


def some_rows(num: int = 4000, seed: int = 0, slope: float = 0.5, intercept: float = -1.0) -> ScoredRows:
    """Logits z of rows whose true logit is slope * z + intercept."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, generator=random) * 2
    labels = (torch.rand(num, generator=random) < (slope * logits + intercept).sigmoid()).float()
    return ScoredRows(labels=labels, logits=logits)


def fitted(method: str, rows: ScoredRows) -> Curve:
    return Calibrator.fit(method, {"click": rows}, {}).curves["click"]


# --- pooling ---


def naive_pav(values: list[float], weights: list[float]) -> list[float]:
    """The min-max formula: at i, the largest over starts of the smallest over ends of the mean of what is between."""
    n = len(values)

    def mean(start: int, end: int) -> float:
        chosen = range(start, end + 1)
        return sum(values[k] * weights[k] for k in chosen) / sum(weights[k] for k in chosen)

    return [max(min(mean(start, end) for end in range(i, n)) for start in range(i + 1)) for i in range(n)]


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=12))
def test_pav_equals_the_min_max_formula(pairs: list[tuple[int, int]]) -> None:
    values, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    means, pool = pav(values, weights)
    assert means[pool].tolist() == pytest.approx(naive_pav(values.tolist(), weights.tolist()), abs=1e-12)
    assert bool((means.diff() > 0).all())
    assert float(weights @ means[pool]) == pytest.approx(float(weights @ values), abs=1e-9)
    again, pool_again = pav(means[pool], weights)
    assert torch.allclose(again[pool_again], means[pool])


# --- curves ---


@pytest.mark.parametrize("method", METHODS)
def test_calibration_mends_probabilities_and_keeps_the_order(method: str) -> None:
    curve, held_out = fitted(method, some_rows(20_000)), some_rows(20_000, seed=1)
    after = ScoredRows(labels=held_out.labels, logits=curve(held_out.logits.double()).float())
    best = ScoredRows(labels=held_out.labels, logits=0.5 * held_out.logits - 1)
    assert after.metrics()["logloss"] < best.metrics()["logloss"] + 0.003 < held_out.metrics()["logloss"] - 0.1
    assert after.metrics()["calibration"] == pytest.approx(1, abs=0.05)
    assert after.metrics()["auc"] == pytest.approx(held_out.metrics()["auc"], abs=1e-7)
    far = torch.linspace(-60, 60, 10_001, dtype=torch.float64)
    assert bool((curve(far).diff() > 0).all())
    assert bool(curve(far).isfinite().all())


def naive_loss(curve: Curve, rows: ScoredRows, prior: list[tuple[float, float]]) -> float:
    losses = row_losses(rows.labels, curve(rows.logits.double()))
    weights = torch.ones(len(rows)) if rows.weights is None else rows.weights
    return float(weights.double() @ losses) + float(weights.mean()) * sum((x - y) ** 2 for x, y in prior) / 2


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_and_beta_lie_at_the_minimum(weighted: bool) -> None:
    rows = some_rows(500)
    rows = ScoredRows(labels=rows.labels, logits=rows.logits, weights=torch.arange(500) % 4 / 2 if weighted else None)
    platt, beta = Platt.fit(rows), Beta.fit(rows)

    def of_platt(curve: Platt) -> float:
        return naive_loss(curve, rows, [(curve.slope, 1), (curve.intercept, 0)])

    def of_beta(curve: Beta) -> float:
        return naive_loss(curve, rows, [(curve.a, 1), (curve.b, 1), (curve.c, 0)])

    for step in (1e-3, -1e-3):
        assert of_platt(platt) <= of_platt(Platt(platt.slope + step, platt.intercept))
        assert of_platt(platt) <= of_platt(Platt(platt.slope, platt.intercept + step))
        assert of_beta(beta) <= of_beta(Beta(beta.a + step, beta.b, beta.c))
        assert of_beta(beta) <= of_beta(Beta(beta.a, beta.b + step, beta.c))
        assert of_beta(beta) <= of_beta(Beta(beta.a, beta.b, beta.c + step))


def test_platt_finds_the_truth_and_beta_holds_platt() -> None:
    rows = some_rows(100_000)
    platt = Platt.fit(rows)
    assert (platt.slope, platt.intercept) == pytest.approx((0.5, -1.0), abs=0.03)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.allclose(Beta(0.7, 0.7, 0.2)(z), 0.7 * z + 0.2)
    assert torch.allclose(Beta()(z), z)


def test_beta_drops_a_coefficient_that_is_negative() -> None:
    logits = torch.linspace(-4, 4, 4000)
    labels = (torch.rand(4000, generator=torch.Generator().manual_seed(0)) < 1 - torch.sigmoid(-logits - 2)).float()
    for rows in (
        ScoredRows(labels=labels * (logits > 0), logits=logits),
        ScoredRows(labels=(labels + (logits > 0)).clamp(max=1), logits=logits),
    ):
        found = Beta.fit(rows)
        assert min(found.a, found.b) >= 0


def test_isotonic_of_one_bin_moves_all_logits() -> None:
    rows = some_rows(60)
    curve = Isotonic.fit(rows)
    assert len(curve.x) == 1
    moved = curve(rows.logits.double()) - rows.logits
    assert moved.std() < 1e-6


def test_isotonic_goes_through_its_knots() -> None:
    curve = Isotonic([-1.0, 0.0, 2.0], [-3.0, 1.0, 2.0])
    z = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    assert curve(z).tolist() == [-4.0, -3.0, -1.0, 1.0, 1.5, 2.0, 5.0]


@pytest.mark.parametrize("curve", [Isotonic([-1.0, 0.0], [-3.0, 1.0]), Platt(2.0, 1.0), Beta(1.0, 2.0, 3.0)])
def test_curves_work_where_the_logits_are(curve: Curve) -> None:
    assert curve(torch.zeros(3, dtype=torch.float64, device="meta")).device.type == "meta"


def test_weights_count_as_repeated_rows() -> None:
    rows, times = some_rows(3000), torch.arange(3000) % 3 + 1
    weighted = ScoredRows(**rows.columns() | {"weights": times.float()})
    repeated = ScoredRows(**{name: column.repeat_interleave(times) for name, column in rows.columns().items()})
    z = torch.linspace(-4, 4, 50, dtype=torch.float64)
    for method in ("platt", "beta"):  # a row's weight is that of the prior: of one row of 6000, not of 3000
        assert torch.allclose(fitted(method, weighted)(z), fitted(method, repeated)(z), atol=2e-2)


@pytest.mark.parametrize("method", METHODS)
def test_separable_and_constant_scores_have_finite_curves(method: str) -> None:
    labels = (torch.arange(400) >= 200).float()
    for logits in (torch.arange(400) - 199.5, torch.zeros(400)):
        curve = fitted(method, ScoredRows(labels=labels, logits=logits / 100))
        assert bool(curve(torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)).isfinite().all())


# --- calibrators ---


def sampled(rows: ScoredRows, rate: float) -> ScoredRows:
    kept = (rows.labels == 1) | (torch.rand(len(rows), generator=torch.Generator().manual_seed(5)) < rate)
    return ScoredRows(labels=rows.labels[kept], logits=rows.logits[kept])


def test_sampled_negatives_are_corrected() -> None:
    rows = some_rows(200_000, slope=1.0, intercept=0.0)
    learned = Platt.fit(sampled(rows, 0.1))  # what a model learns on a tenth of the negatives
    logits = learned(rows.logits.double())
    assert float(logits.sigmoid().mean() / rows.labels.mean()) > 1.5
    corrected = Calibrator.for_rate("click", 0.1).logits(logits, "click")
    assert float(corrected.sigmoid().mean() / rows.labels.mean()) == pytest.approx(1, abs=0.02)
    for rate in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="share of negatives kept must lie in"):
            sampling_shift(rate)


def test_probabilities_are_of_each_label() -> None:
    calibrator = Calibrator(curves={"buy": Platt(2.0, 0.5)}, shifts={"buy": -1.0})
    logits = torch.tensor([[0.3, 1.0], [-0.2, 0.0]])
    found = calibrator.probabilities(logits, ("click", "buy"))
    assert found.dtype == torch.float32
    assert torch.allclose(found[:, 0], logits[:, 0].sigmoid())
    assert torch.allclose(found[:, 1], (2 * (logits[:, 1] - 1) + 0.5).sigmoid())


@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_calibrator_round_trips(method: str, tmp_path: Path) -> None:
    shifts = {"click": sampling_shift(0.25)}
    if method == "none":
        written = Calibrator.for_rate("click", 0.25)
    else:
        written = Calibrator.fit(method, {"click": some_rows()}, shifts, {"split": "validation"})
    written.save(tmp_path)
    read = Calibrator.load(tmp_path)
    z = torch.randn(500, 1, generator=torch.Generator().manual_seed(2))
    assert torch.equal(read.probabilities(z, ("click",)), written.probabilities(z, ("click",)))
    assert read.record() == written.record()


def test_calibrator_that_is_damaged_is_named(tmp_path: Path) -> None:
    Calibrator(curves={"click": Platt(1.0, 0.0)}).save(tmp_path)
    whole = json.loads((tmp_path / FILE).read_text())
    curve = whole["labels"]["click"]
    wrong: list[Any] = [
        {**whole, "format": 9},
        {**whole, "labels": {"click": {**curve, "method": "magic"}}},
        {**whole, "labels": {"click": {**curve, "slope": -1.0}}},
        {**whole, "labels": {"click": {**curve, "more": 1}}},
        {"format": 1},
        [],
    ]
    for damaged in wrong:
        storage.write_json(tmp_path / FILE, damaged)
        with pytest.raises(ValueError, match=r"calibrator\.json is damaged or of another version"):
            Calibrator.load(tmp_path)
    storage.write_text(tmp_path / FILE, "{")
    with pytest.raises(ValueError, match=r"calibrator\.json is damaged"):
        Calibrator.load(tmp_path)


def test_calibrator_of_a_folder_is_what_was_fitted_else_the_correction(tmp_path: Path) -> None:
    assert Calibrator.of(tmp_path, "click", rate=1.0) is None
    corrected = Calibrator.of(tmp_path, "click", rate=0.5)
    assert corrected is not None
    assert (corrected.curves, corrected.shifts) == ({"click": Unchanged()}, {"click": math.log(0.5)})
    Calibrator(curves={"click": Platt(2.0, 0.0)}).save(tmp_path)
    fitted_one = Calibrator.of(tmp_path, "click", rate=0.5)
    assert fitted_one is not None
    assert fitted_one.curves == {"click": Platt(2.0, 0.0)}


def test_what_cannot_be_fitted_is_named() -> None:
    rows = some_rows(400)
    falling = ScoredRows(labels=rows.labels, logits=-rows.logits)

    def refused(method: str, rows: ScoredRows, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            Calibrator.fit(method, {"click": rows}, {})

    refused("magic", rows, "method is 'magic', accepted is one of isotonic, platt, beta")
    for labels in (torch.zeros(4), torch.ones(4)):
        refused("platt", ScoredRows(labels=labels, logits=torch.arange(4.0)), "needs rows of both classes")
    for method in ("platt", "beta"):
        refused(method, falling, f"label 'click', method '{method}': the score does not rise with the label")
    for knots in (([], []), ([1.0], [1.0, 2.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0], [math.inf])):
        with pytest.raises(ValueError, match="isotonic: x and y must be as many numbers that rise"):
            Isotonic(*knots)


def test_bins_that_differ_by_a_rounding_are_one_to_isotonic() -> None:
    """Many bins without a positive, whose weights, sums of as many tenths, are not quite equal."""
    labels = (torch.arange(1500) >= 1480).float()
    rows = ScoredRows(labels=labels, logits=torch.linspace(-3, 3, 1500), weights=torch.full((1500,), 0.1))
    curve, unweighted = Isotonic.fit(rows), Isotonic.fit(ScoredRows(labels=labels, logits=rows.logits))
    z = torch.linspace(2.9, 3, 5, dtype=torch.float64)
    assert_close(curve(z), unweighted(z))


def test_scores_that_fall_are_flat_to_isotonic() -> None:
    rows = some_rows(1000)
    curve = Isotonic.fit(ScoredRows(labels=rows.labels, logits=-rows.logits))
    assert len(curve.x) == 1
    assert curve(torch.tensor([curve.x[0]]).double()).sigmoid().item() == pytest.approx(float(rows.labels.mean()))


def test_noise_of_a_logit_stays_noise() -> None:
    """Served logits differ from offline ones in the last bits; no curve may make that visible."""
    for num in (300, 3000, 100_000):
        curve = fitted("isotonic", some_rows(num))
        z = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
        assert float((curve(z + 1e-6).sigmoid() - curve(z).sigmoid()).abs().max()) < 1e-5

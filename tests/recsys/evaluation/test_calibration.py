import pytest
import torch

from recsys.evaluation.bootstrap import Draws
from recsys.evaluation.calibration import OTHERS, calibration_by
from recsys.evaluation.ctr import ScoredRows

DRAWS = Draws(seed=0, num_draws=200)


def some_rows(num: int = 2000, off: float = 0.0) -> ScoredRows:
    """Logits too high by `off`."""
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(num, generator=random) - 1
    labels = (torch.rand(num, generator=random) < logits.sigmoid()).float()
    return ScoredRows(labels=labels, logits=logits + off, clusters=torch.arange(num) // 4)


def test_segments_of_the_score_are_its_deciles() -> None:
    rows = some_rows()
    segments = calibration_by(rows, DRAWS)
    order = rows.logits.argsort()
    for segment, chosen in zip(segments, order.split(200), strict=True):
        assert segment.rows == 200
        assert segment.predicted == pytest.approx(float(rows.logits[chosen].double().sigmoid().mean()))
        assert segment.observed == pytest.approx(float(rows.labels[chosen].mean()))
        assert segment.error.value == pytest.approx(segment.predicted - segment.observed)
    expected = sum(abs(segment.error.value) * segment.weight for segment in segments) / len(rows)
    assert rows.metrics()["calibration_error"] == pytest.approx(expected)


def test_interval_holds_zero_for_calibrated_scores_and_not_for_others() -> None:
    good = calibration_by(some_rows(), DRAWS)
    assert sum(part.error.low <= 0 <= part.error.high for part in good) >= 8
    wrong = calibration_by(some_rows(off=1.0), DRAWS)
    assert all(part.error.low > 0 for part in wrong[2:])


def test_segments_of_an_id_are_its_most_frequent_values_and_the_others() -> None:
    rows = some_rows(100)
    values = torch.tensor([7] * 50 + [3] * 30 + [5] * 12 + [4] * 8)
    segments = calibration_by(rows, DRAWS, values=values, name=lambda value: f"item {value}", num_segments=2)
    assert [(part.name, part.rows) for part in segments] == [("item 7", 50), ("item 3", 30), (OTHERS, 20)]
    assert segments[0].observed == pytest.approx(float(rows.labels[:50].mean()))
    assert [part.name for part in calibration_by(rows, DRAWS, values=values)] == ["7", "3", "5", "4"]


def test_segments_of_a_number_never_part_equal_values() -> None:
    rows = some_rows(100)
    values = torch.tensor([0.0] * 70 + [1.5] * 15 + [2.0] * 15)
    segments = calibration_by(rows, DRAWS, values=values)
    assert [(part.name, part.rows) for part in segments] == [("0 .. 0", 70), ("1.5 .. 1.5", 15), ("2 .. 2", 15)]


def test_weights_count_as_repeated_rows() -> None:
    rows, times = some_rows(300), torch.arange(300) % 3 + 1
    weighted = ScoredRows(**rows.columns() | {"weights": times.float()})
    repeated = ScoredRows(**{name: column.repeat_interleave(times) for name, column in rows.columns().items()})
    for one, other in zip(calibration_by(weighted, DRAWS), calibration_by(repeated, DRAWS), strict=True):
        assert (one.weight, one.predicted, one.observed) == pytest.approx(
            (other.weight, other.predicted, other.observed)
        )
        assert (one.error.low, one.error.high) == pytest.approx((other.error.low, other.error.high))


def test_values_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values must be \[2000\], one per row, got \[3\]"):
        calibration_by(some_rows(), DRAWS, values=torch.zeros(3))

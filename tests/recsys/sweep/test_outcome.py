"""An outcome on disk is the outcome, or is refused by the name of its file."""

from pathlib import Path

import pytest

from recsys.config import ConfigError
from recsys.sweep.outcome import Lookup, Outcome
from tests.recsys.sweep.outcomes import ended, finished


@pytest.mark.parametrize("outcome", [finished(0.7, peak_bytes=7), finished(0.7), ended("failed", "a reason")])
def test_outcome_round_trips(outcome: Outcome, tmp_path: Path) -> None:
    outcome.save(tmp_path / "cell.json")
    assert Outcome.load(tmp_path / "cell.json") == outcome


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"status": "finished"}'])
def test_outcome_that_is_damaged_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(ConfigError, match=r"cell\.json is damaged"):
        Outcome.load(tmp_path / "cell.json")


def test_lookup_ratio_is_to_collisionless_rows() -> None:
    assert Lookup(us_per_id=0.3, dense_us_per_id=0.1).ratio == pytest.approx(3.0)

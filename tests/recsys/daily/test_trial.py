"""When a model is promoted, on reports with known scores."""

from datetime import date
from pathlib import Path

import pytest
import torch
from torch import Tensor

from features.utc_day import UtcDay
from recsys.config import ConfigError
from recsys.daily.trial import Candidate, Trial, Trials, judged
from recsys.evaluation.ctr import ScoredRows
from recsys.evaluation.evaluate import Report

DAY, NEXT = UtcDay(date(2026, 1, 2)), UtcDay(date(2026, 1, 3))
START = Trial(day=str(DAY), data_hash="abc", counts={"train": 400})
ROWS = 400


def report_of(name: str, logits: Tensor) -> Candidate:
    labels = (torch.arange(ROWS) % 4 == 0).float()
    rows = ScoredRows(labels=labels, logits=logits, clusters=torch.arange(ROWS) // 5)
    report = Report(model=name, split="train", protocol="", metrics=rows.metrics(), counts={}, arrays=rows.columns())
    return Candidate(name, report)


def scores(signal: float) -> Tensor:
    noise = torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
    return noise + signal * (torch.arange(ROWS) % 4 == 0)


def test_first_model_is_promoted() -> None:
    trial = judged(START, report_of("one", scores(0)), None, seed=0)
    assert (trial.promoted, trial.why, trial.champion) == (True, "the first model", "")


def test_model_is_promoted_unless_it_is_worse_beyond_the_interval() -> None:
    champion = report_of("champion", scores(1.0))
    for signal, promoted, word in ((2.0, True, "better"), (1.0, True, "not told apart"), (0.2, False, "worse")):
        trial = judged(START, report_of("new", scores(signal)), champion, seed=0)
        assert (trial.promoted, trial.why.startswith(word)) == (promoted, True), trial
        assert trial.low is not None and trial.difference is not None and trial.high is not None  # noqa: PT018
        assert trial.low <= trial.difference <= trial.high
        assert trial.champion_metrics["auc"] == pytest.approx(champion.report.metrics["auc"])  # type: ignore[union-attr]


def test_day_that_tells_nothing_leaves_the_champion() -> None:
    trial = judged(START, Candidate("new", None), report_of("champion", scores(1.0)), seed=0)
    assert (trial.promoted, trial.champion, trial.metrics) == (False, "champion", {})
    few = report_of("new", scores(1.0)), report_of("champion", scores(0.5))
    rare = torch.zeros(ROWS).index_fill(0, torch.tensor([0]), 1.0)
    for one in few:
        assert one.report is not None
        one.report.arrays["labels"].copy_(rare)
    trial = judged(START, *few, seed=0)
    assert not trial.promoted
    assert trial.why.startswith("cannot be compared with champion")


def test_trials_are_read_as_written(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    assert (trials.all(), trials.promotion(), trials.of(DAY)) == ([], None, None)
    first = judged(START, report_of("one", scores(1.0)), None, seed=0)
    second = Trial(day=str(NEXT), data_hash="def", counts={"train": 1}, model="two", champion="one")
    for trial in (second, first):
        trials.write(trial)
    assert trials.all() == [first, second]
    assert trials.promotion() == first
    assert trials.promotion(before=DAY) is None
    (tmp_path / "tested" / f"{DAY}.json").write_text("{")
    with pytest.raises(ConfigError, match=r"2026-01-02.json is damaged; remove it"):
        trials.all()

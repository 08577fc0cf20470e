"""What a day said of models that were not trained on it: `Trial`, and the folder of them.

A trial holds nothing that differs between two executions of the same job: no durations, no places. It is written once
it is decided. All trials together say which model is promoted; the pointer only repeats it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from features import storage
from features.utc_day import UtcDay
from features.view import Prepared
from recsys.config import ConfigError
from recsys.evaluation.bootstrap import Comparison, Draws
from recsys.evaluation.compare import compare
from recsys.evaluation.evaluate import Report

METRIC = "auc"
FOLDER = "tested"
DAY_NAME = "[0-9]" * 4 + "-[0-9][0-9]-[0-9][0-9]"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A day's test of the newest model.

    day: the test day; data_hash, counts: of its prepared folder. model: the run tested, "" on the first day, and its
    metrics. champion: the run that was promoted until then, "" for none, and its metrics on the same rows. difference,
    low, high: of the two in METRIC (model - champion), and the interval. promoted: whether the model is promoted now,
    and why, or why not.
    """

    day: str
    data_hash: str
    counts: Mapping[str, int]
    model: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    champion: str = ""
    champion_metrics: Mapping[str, float] = field(default_factory=dict)
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    promoted: bool = False
    why: str = "no model before it"

    @staticmethod
    def on(day: UtcDay, data: Prepared) -> "Trial":
        """The trial of no model: that of a first day."""
        return Trial(day=str(day), data_hash=data.content_hash, counts=data.counts)


@dataclass(frozen=True)
class Candidate:
    """A run's name, and its report on the test day; None where the day's rows are all of one class."""

    name: str
    report: Report | None


def judged(trial: Trial, model: Candidate, champion: Candidate | None, seed: int) -> Trial:
    """The trial after a test: the model is promoted unless it is below the champion beyond the interval.

    Both reports are of the same rows; the interval is paired and clustered by user. Where it cannot be told, because
    too few rows are of one of the classes, the champion stays.
    """
    trial = replace(trial, model=model.name, champion=champion.name if champion else "")
    if model.report is None:
        return replace(trial, why="not tested: the rows of the day are all of one class")
    trial = replace(trial, metrics=model.report.metrics)
    if champion is None or champion.report is None:
        return replace(trial, promoted=True, why="the first model")
    trial = replace(trial, champion_metrics=champion.report.metrics)
    try:
        found = compare(model.report, champion.report, METRIC, Draws(seed=seed))
    except ValueError as error:
        return replace(trial, why=f"cannot be compared with {champion.name}: {error}")
    interval = found.difference
    trial = replace(trial, difference=interval.value, low=interval.low, high=interval.high)
    return replace(trial, promoted=not found.below, why=_verdict(found, champion.name))


def _verdict(found: Comparison, champion: str) -> str:
    word = "worse than" if found.below else "better than" if found.above else "not told apart from"
    return f"{word} {champion}: {METRIC} {found.a:.4f} against {found.b:.4f}, difference {found.difference}"


class Trials:
    """The trials of a job, by day."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def of(self, day: UtcDay) -> Trial | None:
        """The trial of a day; None where it was none yet."""
        path = self.folder / f"{day}.json"
        return _read(path) if path.exists() else None

    def all(self) -> list[Trial]:
        """All of them, by day."""
        return [_read(path) for path in sorted(self.folder.glob(f"{DAY_NAME}.json"))]

    def write(self, trial: Trial) -> None:
        """Keep a trial; an earlier one of the same day is replaced, what killed writers left goes."""
        storage.remove_leftovers(self.folder)
        storage.write_json(self.folder / f"{trial.day}.json", vars(trial))

    def promotion(self, before: UtcDay | None = None) -> Trial | None:
        """The last trial (before a day) that promoted its model."""
        found = [trial for trial in self.all() if trial.promoted and (before is None or trial.day < str(before))]
        return found[-1] if found else None


def _read(path: Path) -> Trial:
    try:
        return Trial(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; remove it, and the day is tested again: {error}") from None

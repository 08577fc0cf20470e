"""The series of a daily job, made anew from its trials and runs: report.jsonl, a line for each day, and index.html.

A line holds the day, what its data counts (`examples`, `new_ids`, `new_users`, `new_items`, ...), which model was
tested on it with what metrics, the promoted model's auc there, the difference of the two with its interval, whether the
model was promoted, and how long the training of the day took. Nothing else of it differs between executions.
"""

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from features import storage
from recsys.config import RunConfig
from recsys.daily.trial import METRIC, Trial
from recsys.evaluation.evaluate import CEILING
from recsys.report import Axis, Block, Code, Page, Plot, Point, Section, Series, Table, Text
from recsys.run_state import read_state

LINES, PAGE = "report.jsonl", "index.html"
SHOWN = (METRIC, "logloss", "calibration")
LEAD = (
    "A model for each day, started from the one before it. Every number is of a day that its model was not trained on: "
    "the day after the model's own (progressive validation)."
)
RULE = (
    "A model is promoted unless it is below the promoted one beyond the interval: the middle 95 % of the draws of a "
    "bootstrap by user, both models on the same draws."
)


def write_series(folder: Path, config: RunConfig, trials: Sequence[Trial]) -> None:
    """Write both files into a job's folder; nothing where there is no trial yet."""
    if not trials:
        return
    lines = [_line(folder, trial) for trial in trials]
    storage.write_text(folder / LINES, "".join(json.dumps(line) + "\n" for line in lines))
    storage.write_text(folder / PAGE, _page(config, trials, lines).html())


def _line(folder: Path, trial: Trial) -> dict[str, Any]:
    counts = {name: number for name, number in trial.counts.items() if name != "train"}
    line: dict[str, Any] = {"day": trial.day, "examples": trial.counts["train"]} | counts
    line |= {"model": trial.model} | dict(trial.metrics)
    line |= {"champion": trial.champion, f"champion_{METRIC}": trial.champion_metrics.get(METRIC)}
    line |= {"difference": trial.difference, "low": trial.low, "high": trial.high}
    line |= {"promoted": trial.promoted, "why": trial.why}
    run = folder / trial.day / "run.json"
    return line | {"seconds": round(read_state(run).seconds, 1) if run.exists() else None}


def _page(config: RunConfig, trials: Sequence[Trial], lines: Sequence[dict[str, Any]]) -> Page:
    promoted = [trial for trial in trials if trial.promoted]
    says = (
        f"Promoted: {promoted[-1].model}, tested on {promoted[-1].day}. " if promoted else "Nothing is promoted yet. "
    )
    return Page(
        title=f"{config.name}: {trials[0].day} to {trials[-1].day}",
        lead=f"{says}Model {config.model.name!r} on {config.data.name!r} ({config.data.source}: {config.data.path}).",
        sections=(
            Section(heading="Tests", blocks=(Text(LEAD), *_plots(trials), _tests(trials))),
            Section(heading="Promotions", blocks=(Text(RULE), _promotions(trials))),
            Section(heading="Data", blocks=(_new(trials), _data(lines))),
            Section(heading="Config", blocks=(Code(json.dumps(config.model_dump(mode="json"), indent=1)),)),
        ),
    )


def _plots(trials: Sequence[Trial]) -> list[Block]:
    tested = [trial for trial in trials if trial.metrics]
    return [_plot(metric, _of_metric(metric, tested)) for metric in SHOWN] if tested else []


def _of_metric(metric: str, tested: Sequence[Trial]) -> list[Series]:
    return [
        _series("newest model", 0, tested, lambda trial: trial.metrics.get(metric)),
        _series("planted probability, the ceiling", 1, tested, lambda trial: trial.metrics.get(f"{CEILING}{metric}")),
        _series("promoted model", 2, tested, lambda trial: trial.champion_metrics.get(metric)),
    ]


def _new(trials: Sequence[Trial]) -> Block:
    """What came after the first day, of which all is new."""
    series = [_of_count(name, number, trials[1:]) for number, name in enumerate(("new_ids", "new_users", "new_items"))]
    return _plot("new ids of the day", series) if len(trials) > 1 else Text("One day so far.")


def _of_count(name: str, number: int, trials: Sequence[Trial]) -> Series:
    return _series(name.replace("_", " "), number, trials, lambda trial: trial.counts.get(name))


def _plot(what: str, series: Sequence[Series]) -> Plot:
    day = Axis(label="day", text=lambda number: date.fromordinal(round(number)).isoformat())
    there = [one for one in series if one.points]
    return Plot(title=f"{what} by day", x=day, y=Axis(label=what), series=there)


def _series(name: str, number: int, trials: Sequence[Trial], value: Callable[[Trial], float | None]) -> Series:
    points = [
        Point(
            x=date.fromisoformat(trial.day).toordinal(),
            y=found,
            low=found,
            high=found,
            about=_about(name, trial, found),
        )
        for trial in trials
        if (found := value(trial)) is not None
    ]
    return Series(name=name, number=number, points=points)


def _about(name: str, trial: Trial, value: float) -> str:
    return f"{trial.day}, {name}: {value:.5g}"


def _tests(trials: Sequence[Trial]) -> Table:
    tested = [trial for trial in trials if trial.metrics]
    names = list(dict.fromkeys(name for trial in tested for name in trial.metrics))
    rows = [[trial.day, trial.model, *(_number(trial.metrics.get(name)) for name in names)] for trial in tested]
    return Table(columns=["day", "model", *names], rows=rows, numeric=frozenset(names), caption="Of the newest model")


def _promotions(trials: Sequence[Trial]) -> Table:
    rows = [[trial.day, trial.model, "yes" if trial.promoted else "no", trial.why] for trial in trials if trial.model]
    refused = frozenset(number for number, row in enumerate(rows) if row[2] == "no")
    return Table(columns=["day", "model", "promoted", "why"], rows=rows, marked=refused, caption="Bold: not promoted")


def _data(lines: Sequence[dict[str, Any]]) -> Table:
    names = ["examples", "new_ids", "new_users", "new_items", "bad", "dropped", "seconds"]
    names = [name for name in names if any(line.get(name) is not None for line in lines)]
    rows = [[line["day"], *("" if line.get(name) is None else f"{line[name]:,}" for name in names)] for line in lines]
    return Table(columns=["day", *names], rows=rows, numeric=frozenset(names), caption="seconds: of training")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

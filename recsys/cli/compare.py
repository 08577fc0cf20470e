"""`recsys compare`: whether one model is better than another beyond the interval, over the seeds of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from features import storage
from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.cli.named_runs import report_of, runs_of, summary_of
from recsys.cli.train import RunsOption
from recsys.config import ConfigError
from recsys.evaluation.bootstrap import DRAWS, Comparison, Draws, Interval
from recsys.evaluation.compare import CALIBRATED_LOSS, compare_with_first, metrics_in_common
from recsys.evaluation.evaluate import Report
from recsys.report import Axis, Page, Plot, Point, Section, Series, Table, Text
from recsys.run import Run
from recsys.training.trainer import higher_is_better

SAYS = (
    "Paired on the same rows or users, bootstrap clustered by user and over the seeds of both; a difference is that of "
    "the model to the first one."
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is compared: a run, or the seeds of one config."""

    name: str
    runs: Sequence[Run]
    reports: Sequence[Report]


def compare(
    models: Annotated[
        list[Path], typer.Argument(help="Two or more: run folders, or NAMEs with NAME-seed1, ... there.")
    ],
    split: Annotated[str, typer.Option("--split", help="The split to compare on: validation or test.")] = "test",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="What to compare by, NAME or NAME[LABEL] (default: what all have, of the first label).",
        ),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="How many bootstrap draws.")] = DRAWS,
    runs: RunsOption = Path("runs"),
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with table and plots here too.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare each model with the first: differences, RelaImpr, their intervals, and whether they are beyond these.

    Runs without a report on the split are evaluated first. All must be of the same rows or users.
    """
    with user_errors():
        if len(models) < 2:
            raise ConfigError(f"compare takes two or more models, got {len(models)}")
        drawing = Draws(seed=0, num_draws=draws)
        found = _models(models, runs, split)
        _check_same_rows(found)
        metrics = metric or metrics_in_common([report for model in found for report in model.reports])
        if not metrics:
            raise ConfigError("the models have no metric in common: their evaluation.k differ")
        say(f"{drawing.num_draws:,} draws of {', '.join(metrics)}")
        columns = [model.reports for model in found]
        _say_what_is_not_calibrated(found)
        compared = {name: compare_with_first(columns, name, drawing) for name in metrics}
        if html is not None:
            storage.write_text(html, _page(found, split, compared).html())
            say(f"wrote {html}")
        if json:
            print_json(_record(found, split, compared))
        else:
            print_table(f"{found[0].name} on {split}, against it: {SAYS}", _rows(found, compared))


def _models(paths: Sequence[Path], runs: Path, split: str) -> list[Model]:
    found = [runs_of(path, runs) for path in paths]
    kinds = {run.is_ranking for seeds in found for run in seeds}
    if len(kinds) > 1:
        raise ConfigError("a click model and a retrieval run have no metric in common")
    return [
        Model(name=path.name, runs=seeds, reports=[report_of(run, split) for run in seeds])
        for path, seeds in zip(paths, found, strict=True)
    ]


def _check_same_rows(models: Sequence[Model]) -> None:
    """Models of other prepared data are compared when all that is known of the rows agrees, and this is said."""
    first = models[0].runs[0].prepared
    for model in models[1:]:
        other = model.runs[0].prepared
        if other.content_hash != first.content_hash:
            say(f"{model.name} reads {other.path.name}, {models[0].name} {first.path.name}: labels, users and weights "
                "must agree row by row; models of different days are compared by `recsys daily`, on the next "
                "day's rows")  # fmt: skip
        if other.negative_rate != first.negative_rate:
            say(f"{model.name} trained on a share of {other.negative_rate:g} of the negatives, {models[0].name} on "
                f"{first.negative_rate:g}, which shifts logits: logloss is before any correction of that, "
                "calibrated_logloss after it")  # fmt: skip


def _say_what_is_not_calibrated(models: Sequence[Model]) -> None:
    calibrated = {model.name: all(CALIBRATED_LOSS in report.metrics for report in model.reports) for model in models}
    plain = [name for name, has in calibrated.items() if not has]
    if plain and len(plain) < len(calibrated):
        say(f"calibrated_logloss is of scores as served; not calibrated: {', '.join(plain)} (`recsys calibrate`)")


# --- what is said ---


def _verdict(found: Comparison) -> str:
    """Of the model against the first: better, worse, or not told apart."""
    if not found.above and not found.below:
        return "within the interval"
    return "better" if found.above == higher_is_better(found.metric) else "worse"


def _rows(models: Sequence[Model], compared: dict[str, list[Comparison]]) -> list[dict[str, Any]]:
    first, *others = models
    return [
        {
            "model": model.name,
            "seeds": f"{len(model.runs)} and {len(first.runs)}",
            "metric": metric,
            first.name: found.b,
            "value": found.a,
            "difference": _text(found.difference, "{:+.4f}"),
            "RelaImpr": "" if found.rela_impr is None else _text(found.rela_impr, "{:+.2%}"),
            "beyond": _verdict(found),
        }
        for metric, each in compared.items()
        for model, found in zip(others, each, strict=True)
    ]


def _text(part: Interval, number: str) -> str:
    value, low, high = (number.format(value) for value in (part.value, part.low, part.high))
    return f"{value} [{low}, {high}]"


def _record(models: Sequence[Model], split: str, compared: dict[str, list[Comparison]]) -> dict[str, Any]:
    first, *others = models
    pairs = [
        {
            "model": model.name,
            "first": first.name,
            "metric": metric,
            "value": found.a,
            "first_value": found.b,
            "difference": _bounds(found.difference),
            "rela_impr": None if found.rela_impr is None else _bounds(found.rela_impr),
            "beyond_interval": found.above or found.below,
            "verdict": _verdict(found),
        }
        for metric, each in compared.items()
        for model, found in zip(others, each, strict=True)
    ]
    return {"split": split, "models": [_described(model) for model in models], "comparisons": pairs}


def _bounds(part: Interval) -> dict[str, float]:
    return {"value": part.value, "low": part.low, "high": part.high, "confidence": part.confidence}


def _described(model: Model) -> dict[str, Any]:
    seeds = [run.config.seed for run in model.runs]
    metrics = [dict(report.metrics) for report in model.reports]
    parts = summary_of(metrics) or {"mean": metrics[0]}
    return {"name": model.name, "runs": [str(run.folder) for run in model.runs], "seeds": seeds} | parts


def _page(models: Sequence[Model], split: str, compared: dict[str, list[Comparison]]) -> Page:
    rows = [{name: _cell(value) for name, value in row.items()} for row in _rows(models, compared)]
    numeric = frozenset({models[0].name, "value", "difference", "RelaImpr"})
    table = Table(columns=list(rows[0]), rows=[list(row.values()) for row in rows], numeric=numeric)
    plots = [_plot(models, metric, each) for metric, each in compared.items()]
    sections = (
        Section(heading="Differences", blocks=(Text(SAYS), table)),
        Section(heading="Intervals", blocks=tuple(plots)),
    )
    return Page(title=f"Against {models[0].name}, {split} split", sections=sections)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _plot(models: Sequence[Model], metric: str, each: Sequence[Comparison]) -> Plot:
    first, *others = models
    points = [
        Point(
            x=float(number),
            y=found.difference.value,
            low=found.difference.low,
            high=found.difference.high,
            about=f"{model.name}: {_text(found.difference, '{:+.4f}')}, {_verdict(found)}",
            label=model.name,
        )
        for number, (model, found) in enumerate(zip(others, each, strict=True), start=1)
    ]
    return Plot(
        title=metric,
        x=Axis(label="model"),
        y=Axis(label=f"difference in {metric}"),
        series=(Series(name=f"{metric} minus that of {first.name}", number=0, points=points, linked=False),),
        levels=((0.0, first.name),),
    )

"""`recsys evaluate`: the metrics of a finished run, or of each of its seeds, and how well calibrated it is."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.cli.named_runs import runs_of, summary_of
from recsys.cli.train import RunsOption
from recsys.config import ConfigError
from recsys.evaluation.bootstrap import Draws
from recsys.evaluation.calibration import Segment, calibration_by
from recsys.evaluation.evaluate import CALIBRATED, CEILING, FEATURE, Report, scored_rows
from recsys.run import Run

SCORE = "score"


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a NAME with runs NAME-seed1, ... beside it.")],
    split: Annotated[str, typer.Option("--split", help="The split to score.")] = "test",
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="Calibration by segment: 'score' for its deciles, or an id or dense feature; of the first seed.",
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Score a finished run on a split (default: test) and write the report into the run's folder.

    Metrics that are named calibrated_... are those after `recsys calibrate`, or, of data that leaves negatives out,
    after the correction for it.
    """
    with user_errors():
        found = runs_of(run, runs)
        kept = [name for name in by or () if name != SCORE]
        for one in found:
            _check_features(one, by or (), kept)
        reports = [one.evaluate(split, kept=kept) for one in found]
        segments = {name: _segments(found[0], reports[0], name) for name in by or ()}
        if json:
            print_json(_record(found, reports, segments))
            return
        _print(found, reports, segments)


def _check_features(run: Run, by: Any, kept: list[str]) -> None:
    if by and not run.is_ranking:
        raise ConfigError(f"--by: calibration is of click models, {run.folder} is a retrieval run")
    kinds = {spec.name: spec.kind for spec in run.prepared.schema.inputs}
    for name in kept:
        if kinds.get(name) not in ("id", "dense"):
            accepted = [SCORE, *(other for other, kind in kinds.items() if kind in ("id", "dense"))]
            raise ConfigError(f"--by: got {name!r}, accepted: {', '.join(accepted)}")


def _segments(run: Run, report: Report, name: str) -> list[Segment]:
    """Of the first run, whose seeds differ little, and of scores as served: after its calibrator, if it has one."""
    values = None if name == SCORE else report.arrays[FEATURE + name]
    spec = None if name == SCORE else run.prepared.schema.feature(name)
    vocabulary = None if spec is None else run.prepared.encoder.vocabularies.get(spec.vocabulary)

    def called(row: int) -> str:
        raw = row if vocabulary is None else vocabulary.raw([row])[0]
        return "(unseen or missing)" if raw is None else str(raw)

    return calibration_by(scored_rows(report, calibrated=True), Draws(seed=run.config.seed), values=values, name=called)


def _record(runs: list[Run], reports: list[Report], segments: dict[str, list[Segment]]) -> dict[str, Any]:
    parts = {"segments": {name: [asdict(part) for part in found] for name, found in segments.items()}}
    found = parts if segments else {}
    if len(runs) == 1:
        return reports[0].summary() | found
    each = [{"run": str(run.folder)} | report.summary() for run, report in zip(runs, reports, strict=True)]
    return {"runs": each} | summary_of([report.metrics for report in reports]) | found


def _print(runs: list[Run], reports: list[Report], segments: dict[str, list[Segment]]) -> None:
    first = reports[0]
    columns = {run.name: dict(report.metrics) for run, report in zip(runs, reports, strict=True)}
    if len(runs) == 1:
        columns = _of_one(first)
    columns |= summary_of([report.metrics for report in reports])
    where = runs[0].folder if len(runs) == 1 else f"{len(runs)} seeds"
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append({"metric": name, **{what: column.get(name, "") for what, column in columns.items()}})
    print_table(f"{where} on {first.split}: {first.protocol}", rows)
    if "one-class groups" in first.counts:
        left_out, measured = first.counts["one-class groups"], first.counts["groups"]
        say(f"gauc is over {measured:,} groups; {left_out:,} have rows of one class alone")
    for name, parts in segments.items():
        print_table(
            f"{runs[0].folder} on {first.split}: calibration by {name}, as served", [_row(part) for part in parts]
        )


def _of_one(report: Report) -> dict[str, dict[str, float]]:
    """The model's metrics, and beside them those after calibration and of the planted truth, where there are such."""
    columns: dict[str, dict[str, float]] = {"value": {}}
    for name, value in report.metrics.items():
        kind = next((prefix for prefix in (CALIBRATED, CEILING) if name.startswith(prefix)), "")
        columns.setdefault(kind.rstrip("_") or "value", {})[name.removeprefix(kind)] = value
    return columns


def _row(part: Segment) -> dict[str, Any]:
    error = part.error
    interval = f"{error.value:+.4f} [{error.low:+.4f}, {error.high:+.4f}]"
    means = {"predicted": part.predicted, "observed": part.observed, "error": interval}
    return {"segment": part.name, "rows": part.rows} | means

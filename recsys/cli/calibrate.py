"""`recsys calibrate`: fit a run's probabilities on the validation split, and measure them on the test split."""

from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.cli.named_runs import runs_of
from recsys.cli.train import RunsOption
from recsys.config import ConfigError
from recsys.evaluation.calibrators import METHODS, Calibrator, sampling_shift
from recsys.evaluation.evaluate import CALIBRATED, OF_CALIBRATION, Report, scored_rows
from recsys.models.interface import Ranker
from recsys.run import Run


def calibrate(
    run: Annotated[
        Path, typer.Argument(help="A finished click model: a folder, or a NAME with NAME-seed1, ... there.")
    ],
    method: Annotated[str, typer.Option("--method", help=f"One of {', '.join(METHODS)}.")] = "isotonic",
    runs: RunsOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Fit a calibrator on validation into the run's folder; `recsys export` takes it along, and `Score` applies it.

    Where train left negatives out, their share is corrected first. The test split, if there is one, is scored before
    and after; the order of scores, and with it AUC, stays.
    """
    with user_errors():
        found = [_calibrated(one, method) for one in runs_of(run, runs)]
        if json:
            print_json(found[0] if len(found) == 1 else {"runs": found})
            return
        for one in found:
            rows = [{"": what} | one[what] for what in ("before", "after") if what in one]
            say(f"{one['run']}: {one['method']} on {one['rows']:,} rows of validation, in {one['calibrator']}")
            if rows:
                print_table(f"{one['run']} on test", rows)


def _calibrated(run: Run, method: str) -> dict[str, Any]:
    if not run.is_ranking:
        raise ConfigError(f"{run.folder} is a retrieval run; calibration is of click models")
    model = run.model()
    assert isinstance(model, Ranker)
    held_out = run.evaluate("validation", model)
    rows = {label: scored_rows(held_out, label) for label in model.labels}
    shifts = {run.prepared.schema.labels[0].name: sampling_shift(run.prepared.negative_rate)}
    about = {"split": "validation", "rows": held_out.counts["rows"], "config_hash": run.config.content_hash}
    fitted = Calibrator.fit(method, rows, {name: shift for name, shift in shifts.items() if name in rows}, about)
    fitted.save(run.folder)
    run.evaluate("validation", model)  # whose report was of what calibrated the run before, if anything did
    result = {"run": str(run.folder), "method": method, "rows": held_out.counts["rows"]}
    result |= {"calibrator": str(run.folder / "calibrator.json")}
    if "test" not in run.prepared.splits:
        return result
    return result | _before_and_after(run.evaluate("test", model))


def _before_and_after(report: Report) -> dict[str, dict[str, float]]:
    return {
        "before": {name: report.metrics[name] for name in OF_CALIBRATION},
        "after": {name: report.metrics[f"{CALIBRATED}{name}"] for name in OF_CALIBRATION},
    }

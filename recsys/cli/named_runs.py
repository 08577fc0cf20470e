"""Runs by what a person calls them: a run's folder, or a NAME beside which NAME-seed1, NAME-seed2, ... lie.

evaluate runs/demo_din      the run of that folder, or else all runs/demo_din-seed*
compare demo_base demo_din  names alone are looked for in the folder of runs
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recsys.cli.console import say
from recsys.cli.seeds import SEED
from recsys.config import ConfigError
from recsys.evaluation.evaluate import Report
from recsys.run import Run


def runs_of(path: Path, runs: Path) -> list[Run]:
    """The run of a folder, or else those named PATH-seed*, by seed; a path that is not there is looked for in `runs`.

    Raises ConfigError when there are none, or when they differ in more than the seed or are of different data.
    """
    for place in (path, runs / path):
        found = [
            (int(match[1]), folder) for folder in place.parent.glob("*") if (match := _seed_of(folder, place.name))
        ]
        if (place / "config.json").exists():
            if found:
                say(f"{place} is one run; of its name there are {len(found)} seeds too, which are not taken")
            return [Run.open(place)]
        if found:
            opened = [Run.open(folder) for _, folder in sorted(found)]
            _check_alike(opened)
            return opened
    return [Run.open(path)]  # which says that it is none


def _seed_of(folder: Path, name: str) -> re.Match[str] | None:
    if not folder.name.startswith(name) or not (folder / "config.json").exists():
        return None
    return SEED.fullmatch(folder.name.removeprefix(name))


def _check_alike(runs: Sequence[Run]) -> None:
    first, *others = runs
    for run in others:
        same = {key: getattr(first.config, key) == getattr(run.config, key) for key in type(run.config).model_fields}
        differing = [key for key, alike in same.items() if not alike and key not in ("name", "seed")]
        if run.prepared.content_hash != first.prepared.content_hash:
            differing.append("prepared data")
        if run.state.lineage != first.state.lineage:
            differing.append("--init-from")
        if differing:
            what = ", ".join(differing)
            raise ConfigError(f"{first.folder} and {run.folder} differ in {what}: they are no seeds of one config")


def report_of(run: Run, split: str) -> Report:
    """The report that the run has of a split, or a new one."""
    folder = run.folder / "reports" / split
    if (folder / "report.json").exists():
        with suppress(ValueError):  # of another version, or not whole
            report = Report.load(folder)
            if report.arrays and report.config_hash == run.config.content_hash:
                return report
    say(f"evaluating {run.folder} on {split}")
    return run.evaluate(split)


def describe_run(run: Run) -> dict[str, Any]:
    """What a person wants to know of a run, for JSON and tables."""
    state = run.state
    found = {"stage": state.stage, "best_epoch": state.best_epoch, "validation": state.validation}
    found |= {"init_from": state.init_from} if state.init_from else {}
    found |= {"table_bytes_in_training": dict(state.sizes)} if state.sizes else {}
    return {"run": str(run.folder), "model": run.config.model.name} | found | {"seconds": round(state.seconds, 1)}


def summary_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of the metrics that all have; {} of one."""
    if len(metrics) < 2:
        return {}
    names = [name for name in metrics[0] if all(name in other for other in metrics)]
    columns = {name: [float(other[name]) for other in metrics] for name in names}
    return {
        "mean": {name: fmean(column) for name, column in columns.items()},
        "std": {name: stdev(column) for name, column in columns.items()},
    }

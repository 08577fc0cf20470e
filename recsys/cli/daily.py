"""`recsys daily`: a model trained day by day, tested before it is trained, promoted unless it is worse."""

import json as json_lines
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from features.days import Places, prepare_day
from features.utc_day import UtcDay, days_between
from features.view import Prepared
from recsys import distributed
from recsys.cli.bundles import export_runs
from recsys.cli.console import meter, print_json, say, user_errors
from recsys.cli.data import ConfigArgument, DataOption, JsonOption, OverridesArgument, PreparedOption
from recsys.cli.train import train_run
from recsys.config import ConfigError, RunConfig, load_config
from recsys.daily.job import Daily, Surroundings
from recsys.run import Run
from recsys.training.checks import check_settings

STABLE = "stable"
DAY = ["%Y-%m-%d"]


def daily(
    config: ConfigArgument,
    first: Annotated[
        datetime,
        typer.Option(
            "--from", formats=DAY, help="The first day to train on (UTC); in a job, days missed before it too."
        ),
    ],
    last: Annotated[datetime, typer.Option("--to", formats=DAY, help="The last day; the day after it tests.")],
    overrides: OverridesArgument = None,
    name: Annotated[str | None, typer.Option("--name", help="The job's name (default: the config's stem).")] = None,
    data: DataOption = None,
    prepared: PreparedOption = Path("prepared"),
    out: Annotated[
        Path, typer.Option("--out", help="The folder for jobs, which a job's runs and reports are in.")
    ] = Path("runs"),
    store: Annotated[str, typer.Option("--store", help="Export what is promoted here (a folder or a URI).")] = "",
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="Keep the checkpoints of so many runs.")] = None,
    json: JsonOption = False,
) -> None:
    """Train a config day by day into OUT/NAME, each day from the day before, and test it on the next day.

    A model that is worse than the promoted one beyond the interval on its test day is not promoted; the others are:
    promoted.json names the run, and with --store it is exported and labelled "stable". Killed or stopped, the same
    command goes on; days that are done are not touched again. --keep removes the checkpoints of older runs, but for
    the promoted one and its last rival.
    """
    with user_errors():
        if distributed.launched_by_torchrun():
            raise ConfigError(
                "the daily job runs in one process; train single days with `torchrun ... train --init-from`"
            )
        named = [] if name is None else [f"name={json_lines.dumps(name)}"]
        settings = load_config(config, [*(overrides or ()), *named])
        check_settings(settings)
        around = Surroundings(
            prepare=partial(_prepare, settings, Places(data_root=data, schema_dir=config.parent, out=prepared)),
            train=partial(train_run, advice="the same command goes on"),
            say=say,
            publish=partial(_publish, store) if store else None,
        )
        job = Daily(settings, out / settings.name, around, keep=keep or 0)
        job.run(days_between(first.date(), last.date()))
        _report(job, json)


def _prepare(settings: RunConfig, places: Places, day: UtcDay, yesterday: Prepared | None) -> Prepared | None:
    with meter() as progress:
        found = prepare_day(
            settings.data, day, yesterday, places, progress=progress, notice=lambda text: say(f"{day}: {text}")
        )
    for warning in found.warnings if found and yesterday is None else ():  # of one day: the others' would be alike
        say(f"warning: {day}: {warning}")
    return found


def _publish(store: str, run: Run) -> str:
    bundle = export_runs([run], store, STABLE)
    say(f"exported {run.folder} to {store} as {bundle[:12]}, label {STABLE}")
    return bundle


def _report(job: Daily, json: bool) -> None:
    trained, promoted = job.trained(), job.pointer()
    if json:
        print_json({"job": str(job.folder), "trained": trained, "promoted": promoted})
        return
    say(f"{len(trained)} days trained, {trained[0]} to {trained[-1]}; the series is {job.folder / 'index.html'}")
    say(f"promoted: {job.folder / promoted['run']}" if promoted else "nothing is promoted yet: no day tested a model")

"""`recsys tune`: searching the settings of a config by their validation metric."""

import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features import storage
from recsys.cli.console import INTERRUPTED, Meter, print_json, print_table, say, user_errors
from recsys.cli.data import ConfigArgument, DataOption, JsonOption, OverridesArgument, PreparedOption, prepared_of
from recsys.config import ConfigError, load_config
from recsys.training.checks import check_settings
from recsys.training.trainer import Interrupted, Progress

if TYPE_CHECKING:
    from recsys.tune.study import Study
    from recsys.tune.trial import Trial

NOTHING_FINISHED = 1
SHOWN = 10

SpaceOption = Annotated[
    list[str] | None,
    typer.Option("--space", help="A TOML file of ranges, or 'section.key={low=.., high=..}'; may stand again."),
]


def tune(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    space: SpaceOption = None,
    trials: Annotated[int, typer.Option("--trials", help="How many in all, those done before included.", min=1)] = 30,
    out: Annotated[Path | None, typer.Option("--out", help="Its folder; default tune/NAME.")] = None,
    data: DataOption = None,
    prepared: PreparedOption = Path("prepared"),
    json: JsonOption = False,
) -> None:
    """Search settings on the validation split: train trial after trial, give up poor ones early, keep the best.

    Each trial is an ordinary run in OUT/runs; the best settings are printed as overrides, and OUT/best.toml is the
    config with them. Stopped or killed, the same command goes on where it was, and tries what it would have tried; more
    --trials continue it. The test split is not looked at.
    """
    with user_errors():
        settings = load_config(config, overrides or ())
        check_settings(settings)
        found = prepared_of(settings, config.parent, data, prepared)
        study = _study(out or Path("tune") / settings.name, config, overrides or [], space or [], found)
        with study.held():
            _run(study, trials)
            _report(study, json)


def _study(folder: Path, config: Path, overrides: list[str], space: list[str], prepared: Any) -> "Study":
    try:
        from recsys.tune.space import parse_space
        from recsys.tune.study import Study
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError("`recsys tune` needs optuna, which is not installed: pip install 'recsys[train]'") from None
    return Study(folder, config, overrides, parse_space(space), prepared)


def _run(study: "Study", num_trials: int) -> None:
    watcher = _Watcher()
    try:
        for trial in study.run(num_trials, observers=(watcher,)):
            watcher.close()
            say(f"trial {trial.number + 1} of {num_trials}: {_ended(study, trial)}")
            best = study.best(study.trials())
            if best is not None and best.number == trial.number:
                _write(study, best)
    except (Interrupted, KeyboardInterrupt):
        say(f"stopped; go on with: recsys {shlex.join(sys.argv[1:])}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        watcher.close()


def _ended(study: "Study", trial: "Trial") -> str:
    tried = " ".join(f"{key}={value}" for key, value in trial.settings.items())
    value = trial.reason if trial.value is None else f"{study.metric} {trial.value:.4f}"
    return f"{tried}: {value}{' (given up)' if trial.status == 'pruned' else ''}"


def _write(study: "Study", best: "Trial") -> None:
    from recsys.tune.best import config_text

    path = study.folder / "best.toml"
    comments = [
        f"recsys train {path}",
        f"Trial {best.number + 1}, chosen on validation: {study.metric} {best.value:.4f}.",
    ]
    storage.write_text(path, config_text(study.config, study.overrides_of(best.settings), path, comments))


def _report(study: "Study", json: bool) -> None:
    trials = study.trials()
    best = study.best(trials)
    if json:
        counts = dict(Counter(trial.status for trial in trials))
        found = None if best is None else {"trial": best.number, "value": best.value, "settings": dict(best.settings)}
        print_json({"tune": str(study.folder), "metric": study.metric, "trials": counts, "best": found})
    else:
        print_table(f"{study.folder}: the best {SHOWN} of {len(trials)} trials", _rows(study, trials))
    if best is None:
        say("no trial has finished; their reasons stand in the table and in trials/")
        raise typer.Exit(NOTHING_FINISHED)
    _write(study, best)  # again: a kill may have come before it
    if not json:
        say(f"the best as overrides: {shlex.join(study.overrides_of(best.settings))}")
        say(f"as a config: {study.folder / 'best.toml'}")


def _rows(study: "Study", trials: list["Trial"]) -> list[Mapping[str, Any]]:
    """The best trials first, then those that failed."""
    sign = -1.0 if study.maximize else 1.0
    ordered = sorted(trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))
    return [
        {
            "trial": trial.number + 1,
            "ended": trial.status,
            study.metric: trial.reason if trial.value is None else trial.value,
            **{key: str(value) for key, value in trial.settings.items()},
            "seconds": round(trial.seconds),
        }
        for trial in ordered[:SHOWN]
    ]


class _Watcher:
    """Shows how far the trial in hand is."""

    def __init__(self) -> None:
        self._meter = Meter()

    def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        """Show the step."""
        self._meter.update(f"epoch {progress.epoch + 1}", progress.batch, total_batches, f"loss {loss:.4f}")

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
        """Nothing: the trial's end is said."""

    def close(self) -> None:
        """Take the bar away."""
        self._meter.close()

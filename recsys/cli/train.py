"""`recsys train`: one run of a config, or one for each of several seeds."""

import json as json_lines
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from features import storage
from recsys import distributed
from recsys.cli.console import INTERRUPTED, Meter, print_json, say, user_errors
from recsys.cli.data import ConfigArgument, DataOption, JsonOption, OverridesArgument, PreparedOption, prepared_of
from recsys.cli.named_runs import describe_run
from recsys.cli.seeds import name_of_seed, seeds_of
from recsys.config import RunConfig, load_config
from recsys.run import Run
from recsys.run_state import SELECT
from recsys.training.checks import check_settings
from recsys.training.profiling import Profiler
from recsys.training.trainer import Interrupted, Observer, Progress

RunsOption = Annotated[Path, typer.Option("--runs", help="The folder for runs.")]
LOG_EVERY_S = 5.0
TRAIN = "train"  # the phase of a model that has one
PATIENCE_S = 86_400.0  # rank 0 may prepare data for hours; that a rank has ended is seen at once


def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="The run's name (default: the config's stem).")] = None,
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="A finished run whose weights and optimizer state to start from.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time of some steps goes; their trace is RUN/trace.json.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Train NAME-seed1, NAME-seed2, ...: how many (5), or which (1,2,3).")
    ] = None,
    data: DataOption = None,
    prepared: PreparedOption = Path("prepared"),
    runs: RunsOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Train a config into runs/NAME: prepare what is missing, choose on validation, keep checkpoints.

    Under torchrun the tables are sharded over the ranks and everything else is data-parallel. SIGTERM or Ctrl-C
    finishes the step in hand, writes a checkpoint and ends with exit code 75; --resume goes on from there.
    --init-from needs the same model and tables, and data whose vocabularies are those of that run or grown from them.
    """
    with user_errors(), distributed.joined_ranks(timeout_s=PATIENCE_S), user_errors():  # the inner one still has ranks
        named = [] if name is None else [f"name={json_lines.dumps(name)}"]
        trained = []
        for settings in _settings(config, [*(overrides or ()), *named], seeds):
            run = start(settings, config.parent, runs / settings.name, (data, prepared), resume, init_from)
            if run.finished:
                say(f"{run.folder} is finished{'; there is nothing to profile' if profile else ''}")
            else:
                train_run(run, profile)
            trained.append(run)
        if distributed.rank() == 0:
            _report(trained, json)


def _settings(config: Path, overrides: list[str], seeds: str | None) -> list[RunConfig]:
    """Of each run to train."""
    settings = load_config(config, overrides)
    if seeds is None:
        return [settings]
    names = {seed: json_lines.dumps(name_of_seed(settings.name, seed)) for seed in seeds_of(seeds)}
    return [load_config(config, [*overrides, f"seed={seed}", f"name={name}"]) for seed, name in names.items()]


def start(
    settings: RunConfig,
    config_dir: Path,
    folder: Path,
    data: tuple[Path | None, Path],
    resume: bool,
    init_from: Path | None = None,
) -> Run:
    """The run in `folder`, new or continued, on data that is prepared when it is not there yet."""
    check_settings(settings)
    prepared = prepared_of(settings, config_dir, *data)
    return Run.create(settings, folder, prepared, resume=resume, init_from=init_from)


def train_run(run: Run, profile: bool = False, advice: str = "continue with --resume") -> None:
    """Train to the end, watched; a signal ends the command with its own exit code, after a checkpoint, and advice."""
    watcher, profiler = Watcher(run), Profiler(run.folder / "trace.json")
    watching: list[Observer] = [watcher, *([profiler] if profile else [])]
    try:
        run.train(observers=watching if distributed.rank() == 0 else ())
    except Interrupted as interruption:
        say(f"{interruption}; {advice}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        watcher.close()
        profiler.close()
        if profile and distributed.rank() == 0:
            _say_profile(profiler)


def _say_profile(profiler: Profiler) -> None:
    if not profiler.milliseconds:
        say(f"no profile: training ended within the {profiler.warmup} steps of warm-up")
        return
    rows = [f"{part} {spent:.2f} ms ({profiler.shares[part]:.0%})" for part, spent in profiler.milliseconds.items()]
    say(f"a step: {', '.join(rows)}; {profiler.rows_per_s:,.0f} rows/s; {profiler.trace} is for ui.perfetto.dev")


def _report(runs: list[Run], json: bool) -> None:
    summaries = [describe_run(run) for run in runs]
    if json:
        print_json(summaries[0] if len(runs) == 1 else {"runs": summaries})
        return
    for summary in summaries:
        for key, value in summary.items():
            say(f"{key}: {value}")


class Watcher:
    """Shows progress with time left and rows per second, and keeps metrics.jsonl: a line every few seconds, and one per
    evaluation, each with the run's stage. On resuming, lines of the stage after the step that it continues from go.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.path = run.folder / "metrics.jsonl"
        self.meter = Meter()
        self.rows = 0
        self.since = time.monotonic()
        self.stage = ""
        self.last_step = -1

    def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        """Show the step; log it when some seconds have passed."""
        self._begin(progress, before=progress.step - 1)
        self.rows += rows
        seconds = time.monotonic() - self.since
        note = f"loss {loss:.4f}, {self.rows / max(seconds, 1e-9):,.0f} rows/s"
        self.meter.update(f"{self._place(progress)}epoch {progress.epoch + 1}", progress.batch, total_batches, note)
        if seconds > LOG_EVERY_S:
            self._log(progress, {"loss": loss, "rows_per_s": round(self.rows / seconds)})
            self.rows, self.since = 0, time.monotonic()

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
        """Say and log the validation metrics."""
        self._begin(progress, before=progress.step)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        say(f"{self._place(progress)}epoch {progress.epoch + 1}: {shown}{' (best)' if best else ''}")
        self._log(progress, dict(metrics) | {"best": float(best)})
        self.rows, self.since = 0, time.monotonic()

    def _place(self, progress: Progress) -> str:
        """The run's stage and the model's phase, where there are several."""
        names = [name for name in (self.stage, progress.name) if name not in (SELECT, TRAIN)]
        return "".join(f"{name}, " for name in names)

    def close(self) -> None:
        """Take the progress bar away."""
        self.meter.close()

    def _begin(self, progress: Progress, before: int) -> None:
        """Where this does not follow step `before`, a stage begins or goes on: keep of the log what was before it."""
        follows, self.last_step = self.last_step == before, progress.step
        if follows:
            return
        self.stage = self.run.state.stage
        kept = [line for line in logged(self.path) if line.get("stage") != self.stage or line["step"] < progress.step]
        storage.write_text(self.path, "".join(json_lines.dumps(line) + "\n" for line in kept))

    def _log(self, progress: Progress, values: Mapping[str, float]) -> None:
        place = {"stage": self.stage, "step": progress.step, "epoch": progress.epoch, "batch": progress.batch}
        line = json_lines.dumps(place | {"seconds": progress.seconds} | dict(values)) + "\n"
        try:
            with self.path.open("a") as log:
                log.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None


def logged(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last one that a kill cut short is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    try:
        return [json_lines.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path} is damaged; repair or remove it, it is a log alone: {error}") from None

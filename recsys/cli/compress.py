"""`recsys compress sweep`: table methods against each other at equal bytes.

The group takes a first word that names no command for a run: `recsys compress sweep CONFIG`, and
`recsys compress RUN --to int4` once a command of the name CONVERT is registered.
"""

import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from features import storage
from features.prepared import Prepared
from recsys.cli.console import INTERRUPTED, Meter, console, print_json, print_table, say, user_errors
from recsys.cli.data import DataOption, JsonOption, PreparedOption, prepared_of
from recsys.config import ConfigError, RunConfig, load_config
from recsys.models import table_encoder
from recsys.run import Run
from recsys.sweep.folder import Sweep
from recsys.sweep.outcome import Outcome
from recsys.sweep.page import Story, page, table_rows, values
from recsys.sweep.plan import Cell, Grid, cell_config, check_budgets, dense_bytes, limit_of
from recsys.sweep.summary import Advice, Limits, Summary
from recsys.training.checks import check_settings
from recsys.training.trainer import LOWER_IS_BETTER, Interrupted

CONVERT = "convert"
DEMO = Path("configs/demo_ctr.toml")
BUDGETS, QUICK_BUDGETS = "50%,10%,1%", "10%,1%"
PRECISIONS, QUICK_PRECISIONS = "float32,int4", "float32"
SEEDS, QUICK_SEEDS, QUICK_EPOCHS = 3, 1, 2
NOTHING_FINISHED = 1

BudgetsOption = Annotated[str | None, typer.Option("--budgets", help=f"Shares or bytes; default {BUDGETS}.")]
MethodsOption = Annotated[
    str, typer.Option("--methods", help="Names with commas between them, or all; unified/2: in two chunks.")
]
PrecisionsOption = Annotated[
    str | None, typer.Option("--precisions", help=f"Of the methods' served rows; default {PRECISIONS}.")
]
SeedsOption = Annotated[int | None, typer.Option("--seeds", help=f"How many, from the config's on; default {SEEDS}.")]
MaxBytesOption = Annotated[str | None, typer.Option("--max-bytes", help="Recommend also within this, as 25kB or 5%.")]
MaxLookupOption = Annotated[
    float | None, typer.Option("--max-lookup", help="Recommend nothing above these microseconds per id.", min=0)
]
MaxTrainingOption = Annotated[
    str | None, typer.Option("--max-training-bytes", help="Recommend nothing whose tables take more in training.")
]


class CompressGroup(TyperGroup):
    """A group in which a first word that names no command is a run to convert."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # of the click that typer carries, which has no name
        """The command of the first word, or CONVERT with all of them."""
        is_run = args[0] not in self.commands and CONVERT in self.commands
        return super().resolve_command(ctx, [CONVERT, *args] if is_run else args)


app = typer.Typer(
    help="Smaller tables: `compress sweep CONFIG` compares methods, `compress RUN --to ...` makes a run smaller.",
    no_args_is_help=True,
    cls=CompressGroup,
)


@app.command("sweep")
def sweep(
    config: Annotated[Path | None, typer.Argument(help=f"A run's config; with --quick default {DEMO}.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.key=value", help="Settings that win over the file's.")
    ] = None,
    budgets: BudgetsOption = None,
    methods: MethodsOption = "all",
    precisions: PrecisionsOption = None,
    seeds: SeedsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Its folder; default sweeps/NAME.")] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help=f"{QUICK_BUDGETS}, float32, one seed, {QUICK_EPOCHS} epochs: for a first look."),
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed or could not be built.")] = False,
    max_bytes: MaxBytesOption = None,
    max_lookup: MaxLookupOption = None,
    max_training_bytes: MaxTrainingOption = None,
    data: DataOption = None,
    prepared: PreparedOption = Path("prepared"),
    json: JsonOption = False,
) -> None:
    """Train every table method at every budget, compare them, and say what to take: OUT/index.html and a table.

    Collisionless rows in float32, float16, int8 and int4 always stand beside. Stopped or killed, the same command goes
    on where it was: cells that have ended are read, an unfinished one resumes. The validation split chooses.
    """
    with user_errors():
        settings = _settings(config, overrides or [], quick)
        grid = Grid.parse(
            methods=methods,
            budgets=(QUICK_BUDGETS if quick else BUDGETS) if budgets is None else budgets,
            precisions=(QUICK_PRECISIONS if quick else PRECISIONS) if precisions is None else precisions,
            seeds=(QUICK_SEEDS if quick else SEEDS) if seeds is None else seeds,
            first_seed=settings.seed,
        )
        folder = out or Path("sweeps") / (f"{settings.name}-quick" if quick else settings.name)
        check_settings(settings)
        check_budgets(grid, settings)
        bounds = _Bounds(max_bytes=max_bytes, max_lookup=max_lookup, max_training_bytes=max_training_bytes)
        bounds.limits(1)
        found = prepared_of(settings, (config or DEMO).parent, data, prepared)
        sweeping = _Sweeping(settings, found, grid, folder, bounds)
        with sweeping.sweep.held():
            sweeping.run(retry)
        sweeping.report(json)


def _settings(config: Path | None, overrides: list[str], quick: bool) -> RunConfig:
    if config is None and not quick:
        raise ConfigError("name a config to sweep, or take --quick, which sweeps the demo world")
    settings = load_config(config or DEMO, overrides)
    if not quick:
        return settings
    epochs = min(QUICK_EPOCHS, settings.training.max_epochs)
    return settings.model_copy(update={"training": settings.training.model_copy(update={"max_epochs": epochs})})


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """What the options say of recommendations."""

    max_bytes: str | None
    max_lookup: float | None
    max_training_bytes: str | None

    def limits(self, dense: int) -> Limits:
        """Those that hold for every recommendation, where collisionless tables take `dense` bytes."""
        training = self._bytes("--max-training-bytes", self.max_training_bytes, dense)
        return Limits(
            bytes=self._bytes("--max-bytes", self.max_bytes, dense), lookup_us=self.max_lookup, training_bytes=training
        )

    def _bytes(self, option: str, text: str | None, dense: int) -> int | None:
        try:
            return None if text is None else limit_of(text, dense)
        except ValueError as error:
            raise ConfigError(f"{option}: {error}") from None

    @property
    def words(self) -> str:
        """Them, as they stand on a page."""
        lookup = None if self.max_lookup is None else f"{self.max_lookup:g} µs/id"
        given = {"served": self.max_bytes, "lookup": lookup, "training": self.max_training_bytes}
        return ", ".join(f"{name} at most {value}" for name, value in given.items() if value is not None)


class _Sweeping:
    """A sweep that is shown: progress while it runs, the page after each cell, the table at its end."""

    def __init__(self, settings: RunConfig, data: Prepared, grid: Grid, folder: Path, bounds: _Bounds) -> None:
        for split in ("validation", "test"):
            data.view(split)  # a sweep chooses by one and shows the other
        encoder = table_encoder(settings.model, data.encoder)
        for cell in grid.cells():
            cell_config(cell, settings, encoder.schema)
        self.sweep = Sweep(folder, settings, data, grid.cells())
        self.grid = grid
        self.bounds = bounds
        self.metric = Run(folder, settings, data).metric
        self.dense = dense_bytes(settings, encoder)
        self.story = Story(command=shlex.join(["recsys", *sys.argv[1:]]), config=settings, prepared=data)

    def run(self, retry: bool) -> None:
        """Do what is not done; a signal ends it with its own exit code."""
        again = self.sweep.forget(("failed", "unreachable")) if retry else []
        done, total = len(self.sweep.outcomes()), len(self.sweep.cells)
        say(f"{total} cells, {done} are done" + (f", {len(again)} are tried again" if again else ""))
        watch = _Watch(done, total, self.metric)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for cell, outcome in self.sweep.run(watch.tell):
                watch.ended(cell, outcome)
                self._write()
        except (KeyboardInterrupt, Interrupted):
            say("stopped; the same command goes on from here")
            raise typer.Exit(INTERRUPTED) from None
        finally:
            watch.close()
        self._write()

    def summary(self) -> Summary:
        """What has been found so far."""
        higher = self.metric.partition("[")[0] not in LOWER_IS_BETTER
        return Summary.of(self.sweep.outcomes(), self.sweep.cells, self.metric, higher, self.dense)

    def advice(self, summary: Summary) -> list[Advice]:
        """For every budget, within the limits given; and for the limits alone."""
        limits, words = self.bounds.limits(self.dense), self.bounds.words
        found = []
        for budget in self.grid.budgets:
            most = min(limit_of(budget, self.dense), limits.bytes or self.dense)
            within = Limits(bytes=most, lookup_us=limits.lookup_us, training_bytes=limits.training_bytes)
            found.append(summary.advise(f"{budget} ({words})" if words else budget, within))
        return [*found, summary.advise(words, limits)] if words else found

    def report(self, json: bool) -> None:
        """The table, and what to take."""
        summary = self.summary()
        advice, written = self.advice(summary), str(self.sweep.folder / "index.html")
        if json:
            print_json({"out": str(self.sweep.folder), "page": written} | values(summary, advice))
        elif summary.finished:
            print_table(f"{self.sweep.config.data.name}: {self.metric}", table_rows(summary))
        for left in summary.unfinished:
            say(f"{left.row.title}: {left.status}: {left.reason}")
        for found in advice:
            say(found.words)
        say(f"wrote {written}")
        if not summary.finished:
            raise typer.Exit(NOTHING_FINISHED)

    def _write(self) -> None:
        summary = self.summary()
        advice = self.advice(summary)
        results: dict[str, Any] = values(summary, advice)
        storage.write_json(self.sweep.folder / "results.json", results)
        storage.write_text(self.sweep.folder / "index.html", page(summary, advice, self.story).html())


class _Watch:
    """Progress: a bar on a terminal, and a line for every cell that has ended, with the time left."""

    def __init__(self, done: int, total: int, metric: str) -> None:
        self.done, self.total, self.metric = done, total, metric
        self.before, self.since = done, time.monotonic()
        self.meter = Meter()

    def tell(self, cell: Cell, note: str) -> None:
        """Where the cell in hand stands."""
        if console.is_terminal:
            self.meter.update("sweep", self.done, self.total, f"{cell.name}: {note}")

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """A cell has ended."""
        self.done += 1
        finished = outcome.status == "finished"
        found = (
            f"{self.metric} {outcome.validation[self.metric]:.4f}"
            if finished
            else f"{outcome.status}: {outcome.reason}"
        )
        say(f"[{self.done}/{self.total}] {cell.name}: {found}{self._left()}")

    def _left(self) -> str:
        """From the cells that ended since it began."""
        left = (time.monotonic() - self.since) / (self.done - self.before) * (self.total - self.done)
        if not left:
            return ""
        return f" (about {left / 60:.0f} min left)" if left > 90 else f" (about {left:.0f} s left)"

    def close(self) -> None:
        """Take the bar away."""
        self.meter.close()

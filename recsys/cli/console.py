"""How commands speak: one place for tables, progress, JSON lines and errors.

Text for people goes to stderr, so that `--json` can print exactly one line on stdout. On a terminal progress is a bar
with time left and throughput, elsewhere plain lines every few seconds.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from recsys import distributed

USER_ERROR = 2
LOST_RANK = 1
INTERRUPTED = 75
PLAIN_EVERY_S = 5.0
PLAIN_WIDTH = 140

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line for the person; of several ranks, rank 0 speaks."""
    if distributed.rank() == 0:
        _print_line(text)


def _print_line(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def print_json(values: Mapping[str, Any]) -> None:
    """Exactly one line on stdout."""
    sys.stdout.write(json.dumps(values, default=str) + "\n")
    sys.stdout.flush()


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys as a table on stdout."""
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else []:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    wide = Console(highlight=False)
    (wide if wide.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)).print(table)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@contextmanager
def user_errors() -> Iterator[None]:
    """A user's error ends in one line and exit code 2, never in a traceback; of several ranks the first says it.

    A rank that finds another one gone ends too, with exit code 1.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        _say_once(one_line(error), unanswered=False)
        raise typer.Exit(USER_ERROR) from None
    except RuntimeError as error:
        if distributed.is_out_of_memory(error):
            _say_once(f"out of memory: {one_line(error)}", unanswered=False)
            raise typer.Exit(USER_ERROR) from None
        if not distributed.is_lost_rank(error):
            raise
        _say_once("another rank has ended or cannot be reached; continue with --resume", unanswered=True)
        raise typer.Exit(LOST_RANK) from None


def _say_once(fault: str, unanswered: bool) -> None:
    if distributed.first_to_fail(unanswered):
        _print_line(f"error: {fault}")


def one_line(error: BaseException) -> str:
    """What an error says, in one line; for errors of the system, with the file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class Meter:
    """Progress of one piece of long work: `update(stage, done, total, note)`; a bar on a terminal, else plain lines."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._said = time.monotonic()

    def update(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show that `done` of `total` units of `stage` are done; of several ranks, rank 0 does."""
        if distributed.rank() != 0:
            return
        if console.is_terminal:
            self._update_bar(stage, done, total, note)
        elif time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            share = f"{done / total:.0%}" if total else f"{done:,.0f}"
            say(f"{stage}: {share} {note}".rstrip())

    def _update_bar(self, stage: str, done: float, total: float, note: str) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, *times, console=console, transient=True)
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total or None, note=note)
        self._bar.update(self._tasks[stage], completed=done, total=total or None, note=note)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._tasks = {}


@contextmanager
def meter() -> Iterator[Callable[..., None]]:
    """A meter's `update`, taken away at the end."""
    shown = Meter()
    try:
        yield shown.update
    finally:
        shown.close()

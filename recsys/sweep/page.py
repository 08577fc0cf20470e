"""What a person reads of a sweep: the page, and rows for a terminal."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from features.prepared import Prepared
from recsys.config import RunConfig
from recsys.report import Axis, Block, Code, Page, Plot, Point, Section, Series, Table, Text, bytes_text
from recsys.sweep.cell import BATCH, REPEATS
from recsys.sweep.summary import CONFIDENCE, Advice, Row, Summary

NUMERIC = ("test", "validation", "served", "of float32", "µs/id", "training", "peak", "seconds", "seeds")
PAGE_ONLY = ("peak", "seconds")
COSTS: Mapping[str, tuple[str, Callable[[Row], float], Callable[[float], str]]] = {
    "served bytes": ("served bytes of the tables, on disk (log)", lambda row: row.served, bytes_text),
    "lookup time": ("lookup, CPU microseconds per id, one thread (log)", lambda row: row.lookup_us, "{:.3g} µs".format),
    "training memory": ("tables in training: weights and optimizer state (log)", lambda row: row.training, bytes_text),
}  # fmt: skip

CLOSE, FAR = 0.6, 3.0  # a close-up shows this share of the rows, where all of them spread this many times as far

AXES = """The metric is that of the test split, the mean over the seeds; bars are one sample standard deviation up and \
down. Served bytes are the size of the file that holds the frozen tables (packed rows, parameters and buffers), as \
measured on disk. Budgets are shares of what collisionless float32 tables of the same widths take."""
LOOKUPS = f"""Lookup time is CPU time per id of the frozen tables with one thread, on the ids of {BATCH} validation \
rows in one call, the least of {REPEATS} repeats. Each cell was measured in turns with collisionless float32 tables \
in the same process; shown is that ratio (the median over seeds) times the least time of those tables in any cell."""
MEMORY = """Training memory counts the tables' weights, padding included, and their optimizer's state. Peak is the \
whole process, data and model included, and is shown where one process trained from the beginning to the end."""
CHOICE = f"""Recommended is the best mean validation metric among the rows that satisfy the limit; the test metric \
chooses nothing. A row counts as told apart when the {CONFIDENCE:.0%} interval (Student's t) of its difference, paired \
by seed, leaves 0 out; the rows are many and chosen after the fact, so read close calls as undecided. Seeds change \
initial values, the order of the data, and every hash."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a page says beside the numbers: the command, the config that all cells share, and its data."""

    command: str
    config: RunConfig
    prepared: Prepared


def page(summary: Summary, advice: Sequence[Advice], story: Story) -> Page:
    """The page as it stands now, also of a sweep under way."""
    done = sum(len(row.finished) for row in summary.rows)
    ended = sum(len(found.seeds) for found in summary.unfinished)
    lead = f"{done} runs finished, {ended} did not, {summary.missing} are still to come."
    sections = [
        Section(heading="What to take", blocks=[*_advice(advice), Text(CHOICE)]),
        Section(heading="Quality against cost", blocks=list(_plots(summary))),
        Section(heading="All rows", blocks=list(_tables(summary))),
        Section(heading="What did not finish", blocks=[_unfinished(summary)]),
        Section(heading="How this was made", blocks=list(_making(summary, story))),
    ]
    return Page(title=f"Table methods on {story.config.data.name}: {summary.metric}", lead=lead, sections=sections)


def table_rows(summary: Summary) -> list[dict[str, str]]:
    """The finished rows, in words and numbers, without the columns that a terminal is too narrow for."""
    cells = [_cells(row, summary) for row in summary.finished]
    return [{name: text for name, text in row.items() if name not in PAGE_ONLY} for row in cells]


def values(summary: Summary, advice: Sequence[Advice]) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
        "metric": summary.metric,
        "dense_bytes": summary.dense_bytes,
        "missing": summary.missing,
        "rows": [_values(row) for row in summary.finished],
        "unfinished": [
            {"method": found.row.method, "budget": found.row.budget, "precision": found.row.precision,
             "seeds": list(found.seeds), "status": found.status, "reason": found.reason}
            for found in summary.unfinished
        ],
        "recommends": [
            {"for": found.what, "best": found.best and found.best.title, "words": found.words,
             "not told apart": [row.title for row in found.alike]}
            for found in advice
        ],
    }  # fmt: skip


def _values(row: Row) -> dict[str, Any]:
    spreads = {"test": row.test, "validation": row.validation}
    return {
        "method": row.method, "budget": row.budget, "precision": row.precision, "seeds": sorted(row.finished),
        **{name: {"mean": found.mean, "deviation": found.deviation} for name, found in spreads.items()},
        "served_bytes": row.served, "tensor_bytes": row.tensors,
        "training_bytes": row.largest(lambda sizes: sizes.training),
        "optimizer_bytes": row.largest(lambda sizes: sizes.optimizer),
        "model_bytes": row.largest(lambda sizes: sizes.model),
        "lookup_us_per_id": row.lookup_us, "seconds": row.seconds, "peak_bytes": row.peak,
    }  # fmt: skip


def _cells(row: Row, summary: Summary) -> dict[str, str]:
    return {
        "method": row.name,
        "budget": row.budget,
        "precision": row.precision,
        "test": str(row.test),
        "validation": str(row.validation),
        "served": bytes_text(row.served),
        "of float32": f"{row.tensors / summary.dense_bytes:.1%}",
        "µs/id": f"{row.lookup_us:.3g}",
        "training": bytes_text(row.training),
        "peak": "" if row.peak is None else bytes_text(row.peak),
        "seconds": f"{row.seconds:.1f}",
        "seeds": str(len(row.finished)),
    }


def _advice(advice: Sequence[Advice]) -> Iterator[Block]:
    columns = ("for", "method", "validation", "test", "served", "µs/id", "training")
    rows = [
        (found.what, best.title, str(best.validation), str(best.test), bytes_text(best.served),
         f"{best.lookup_us:.3g}", bytes_text(best.training))
        for found in advice if (best := found.best) is not None
    ]  # fmt: skip
    if rows:
        yield Table(columns=columns, rows=rows, numeric=frozenset(NUMERIC))
    for found in advice:
        yield Text(found.words)


def _plots(summary: Summary) -> Iterator[Block]:
    if not summary.finished:
        yield Text("No run has finished yet.")
        return
    close = _close_up(summary)
    for name, (label, cost, text) in COSTS.items():
        axis = Axis(label=label, log=True, text=text)
        yield _plot(summary, f"{summary.metric} against {name}", axis, cost, summary.finished)
        if len(close) < len(summary.finished):
            title = f"{summary.metric} against {name}, close up: the best {len(close)} rows"
            yield _plot(summary, title, axis, cost, close)
    yield Text(AXES)
    yield Text(LOOKUPS)
    yield Text(MEMORY)


def _close_up(summary: Summary) -> tuple[Row, ...]:
    """The best CLOSE of the rows and the reference, where all together spread so far that these lie on each other."""
    count = math.ceil(CLOSE * len(summary.finished))
    best = sorted(summary.finished, key=lambda row: -summary.better(row.test.mean))[:count]
    kept = tuple(row for row in summary.finished if row in best or row.is_reference)
    return kept if len(best) > 1 and _range(summary.finished) > FAR * _range(kept) else summary.finished


def _range(rows: Sequence[Row]) -> float:
    means = [row.test.mean for row in rows]
    return max(means) - min(means)


def _plot(summary: Summary, title: str, axis: Axis, cost: Callable[[Row], float], shown: Sequence[Row]) -> Plot:
    front = [row for row in summary.front(cost) if row in shown]
    methods = list(dict.fromkeys(row.method for row in summary.rows))
    series = [
        Series(
            name=rows[0].name + ("" if rows[0].budget else ", each precision" if rows[0].method == "dense" else ""),
            number=methods.index(method),
            points=[_point(row, cost(row), row in front) for row in sorted(rows, key=cost)],
            linked=False,
        )
        for method in methods
        if (rows := [row for row in shown if row.method == method])
    ]
    levels = [(summary.reference.test.mean, "collisionless float32")] if summary.reference else []
    return Plot(
        title=title,
        x=axis,
        y=Axis(label=f"test {summary.metric}" + ("" if summary.higher_is_better else " (lower is better)")),
        series=series,
        front=[(cost(row), row.test.mean) for row in front],
        levels=levels,
        legend=("hollow: rows packed below float32", "staircase: no row is better at no more cost"),
    )


def _point(row: Row, x: float, on_front: bool) -> Point:
    costs = f"{bytes_text(row.served)}, {row.lookup_us:.3g} µs/id, {bytes_text(row.training)} in training"
    about = f"{row.title}: test {row.test}, validation {row.validation}, {costs}"
    label = f"{row.name} {row.budget or row.precision}" if on_front and not row.is_reference else ""
    low, high = row.test.mean - row.test.deviation, row.test.mean + row.test.deviation
    return Point(x=x, y=row.test.mean, low=low, high=high, about=about, label=label, hollow=row.precision != "float32")


def _tables(summary: Summary) -> Iterator[Block]:
    """One table for each budget, the fixed sizes first; those on the front of served bytes stand out."""
    front = summary.front(lambda row: row.served)
    by_budget = sorted(summary.finished, key=lambda row: row.budget != "")  # stable: budgets as they were given
    for budget, found in groupby(by_budget, key=lambda row: row.budget):
        rows = list(found)
        cells = [_cells(row, summary) for row in rows]
        yield Table(
            caption=f"At {budget} of the bytes"
            if budget.endswith("%")
            else f"At {budget}"
            if budget
            else "Of no set size",
            columns=list(cells[0]),
            rows=[list(cell.values()) for cell in cells],
            numeric=frozenset(NUMERIC),
            marked=frozenset(number for number, row in enumerate(rows) if row in front),
        )
    if summary.finished:
        model = max(row.largest(lambda sizes: sizes.model) for row in summary.finished)
        yield Text(
            f"Collisionless float32 tables take {bytes_text(summary.dense_bytes)}; the dense part of the model, "
            f"{bytes_text(model)}, comes on top everywhere. Bold: on the front of test metric and served bytes."
        )


def _unfinished(summary: Summary) -> Block:
    if not summary.unfinished:
        return Text("Everything that was tried finished.")
    rows = [
        (
            found.row.name,
            found.row.budget,
            found.row.precision,
            ", ".join(map(str, found.seeds)),
            found.status,
            found.reason,
        )
        for found in summary.unfinished
    ]
    columns = ("method", "budget", "precision", "seeds", "status", "reason")
    caption = "unreachable: the method cannot be built at this budget and precision. failed: its training ended early."
    return Table(caption=caption, columns=columns, rows=rows)


def _making(summary: Summary, story: Story) -> Iterator[Block]:
    config, counts = story.config, story.prepared.counts
    splits = ", ".join(f"{counts[split]:,} {split}" for split in story.prepared.splits)
    yield Text(f"Data {config.data.name!r} (source {config.data.source!r}, {config.data.path}): {splits} examples.")
    for protocol in sorted({found.protocol for row in summary.rows for found in row.finished.values()}):
        yield Text(f"Scored, in the served form at its precision: {protocol}.")
    yield Text("The command, and the config that every run shares but for its tables and its seed:")
    yield Code(story.command)
    yield Code(json.dumps(config.model_dump(mode="json"), indent=1))

"""`recsys diagnose`: what the attention of a run learned, and whether representation pulls the other way."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from features import storage
from features.batch import Batch
from recsys.cli.arguments import RunArgument
from recsys.cli.console import print_json, print_table, say, user_errors
from recsys.cli.data import JsonOption
from recsys.config import ConfigError
from recsys.evaluation.attention_map import AttentionMap, attention_map, recency_label
from recsys.evaluation.attention_paths import Attentive, attentive
from recsys.evaluation.gradient_conflict import Conflict, conflicts
from recsys.report.page import Page, Section, Table, Text
from recsys.report.plot import Axis, Plot, Point, Series
from recsys.run import Run

PLOTTED, SERIES = 3, 4  # target categories with plots of their own, and event categories in each


def diagnose(
    run: RunArgument,
    by: Annotated[str, typer.Option("--by", help="The category; default: the repeated feature of fewest ids.")] = "",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of the train split for attention.")] = 20_000,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Batches of it for gradients.")] = 20,
    categories: Annotated[int, typer.Option("--categories", min=1, help="How many, the most frequent ones.")] = 40,
    html: Annotated[Path | None, typer.Option("--html", help="The page; default RUN/diagnosis.html.")] = None,
    json: JsonOption = False,
) -> None:
    """Compare the gradients of attention and representation, and plot attention beside the data's own information.

    For finished runs of din, twin and dare: the ratio of gradient norms on each table, how often the two point apart,
    and a page with learned attention by category and recency against the mutual information of such events and clicks.
    """
    with user_errors():
        opened = Run.open(run)
        model = attentive(opened.model(served=False), opened.config.model.name)
        found = conflicts(model, islice(_batches(opened, opened.config.training.batch_size), steps))
        feature = by or _fewest_ids(model)
        ids = _most_frequent(opened, feature, categories)
        size = opened.config.evaluation.batch_size
        mapped = attention_map(model, _rows(opened, size, rows), feature, ids, _longest(opened, model))
        names = _names(opened, feature, ids.tolist())
        page = html or opened.folder / "diagnosis.html"
        storage.write_text(page, _page(str(run), opened, found, mapped, names).html())
        if json:
            print_json(_plain(str(run), opened, found, mapped, str(page)))
            return
        print_table(f"{run}: gradients by attention and by representation", [_row(one) for one in found])
        _say(found, mapped, names)
        say(f"wrote {page}")


# --- what is asked of the run ---


def _batches(run: Run, size: int) -> Iterator[Batch]:
    """Of the train split, shuffled."""
    for batch, _ in run.prepared.view("train").loader(size, seed=run.config.seed, shuffle=True).epoch(0):
        yield batch


def _rows(run: Run, size: int, rows: int) -> Iterator[Batch]:
    for batch in _batches(run, min(size, rows)):
        if rows <= 0:
            return
        yield batch.select(torch.arange(rows)) if len(batch) > rows else batch
        rows -= len(batch)


def _fewest_ids(model: Attentive) -> str:
    paired = {target for group in model.groups.values() for target in group.pairs}
    sizes = {name: model.collection.table(name).num_embeddings for name in sorted(paired)}
    if not any(sizes.values()):
        raise ConfigError("no feature of the target with counted ids is repeated by a sequence, so there is no --by")
    return min((size, name) for name, size in sizes.items() if size is not None)[1]


def _most_frequent(run: Run, feature: str, count: int) -> torch.Tensor:
    counts = run.prepared.encoder.counts(feature)
    if counts is None:
        raise ConfigError(f"the ids of feature {feature!r} are not counted (hashed?), choose another with --by")
    return counts.argsort(descending=True, stable=True)[: min(count, int((counts > 0).sum()))]


def _longest(run: Run, model: Attentive) -> int:
    return max(group.max_length for group in run.prepared.schema.sequences if group.name in model.groups)


def _names(run: Run, feature: str, ids: list[int]) -> list[str]:
    encoder = run.prepared.encoder
    vocabulary = encoder.vocabularies.get(encoder.schema.source(feature).vocabulary)
    if vocabulary is None:
        return [str(one) for one in ids]
    return [str(vocabulary.raw(torch.tensor([one]).numpy())[0]) if one else "unseen" for one in ids]


# --- for people ---


def _row(one: Conflict) -> dict[str, Any]:
    return {
        "feature": one.feature,
        "table": one.table,
        "read by attention": one.attention_table,
        "attention : representation": "-" if one.ratio is None else f"{one.ratio:.3g}",
        "opposed": "apart" if one.conflict is None else f"{one.conflict:.1%}",
    }


def _say(found: list[Conflict], mapped: AttentionMap, names: list[str]) -> None:
    by_id = next((one.by_id for one in found if one.feature == mapped.feature), {})
    for place, one in sorted(enumerate(mapped.ids), key=lambda pair: -by_id.get(pair[1], (0.0, 0))[0])[:PLOTTED]:
        if one in by_id:
            share, times = by_id[one]
            say(f"{mapped.feature} {names[place]}: opposed in {share:.0%} of {times} batches")
    agreement = "not known: too few rows" if mapped.agreement is None else f"{mapped.agreement:.3f}"
    say(f"agreement of attention with the information in clicks (rank correlation): {agreement}")


def _plain(run: str, opened: Run, found: list[Conflict], mapped: AttentionMap, page: str) -> dict[str, Any]:
    features = {
        one.feature: {
            "table": one.table,
            "attention_table": one.attention_table,
            "attention_norm": one.attention_norm,
            "representation_norm": one.representation_norm,
            "ratio": one.ratio,
            "conflict": one.conflict,
        }
        for one in found
    }
    by_id = next((one.by_id for one in found if one.feature == mapped.feature), {})
    names = _names(opened, mapped.feature, sorted(by_id))
    shares = {name: by_id[one][0] for name, one in zip(names, sorted(by_id), strict=True)}
    return {
        "run": run, "model": opened.config.model.name, "features": features, "by": mapped.feature,
        "conflict_by_id": shares, "agreement": mapped.agreement, "page": page,
    }  # fmt: skip


def _page(run: str, opened: Run, found: list[Conflict], mapped: AttentionMap, names: list[str]) -> Page:
    rows = [[str(value) for value in _row(one).values()] for one in found]
    table = Table(columns=list(_row(found[0])), rows=rows) if found else Text("No counted ids.")
    agreement = "not known" if mapped.agreement is None else f"{mapped.agreement:.3f}"
    about = (
        "Of a row whose target is of the category in the title: the mean weight of an event, by its category and its "
        "place from the newest, and the information that such an event gives of the click. Agreement of both over all "
        f"{len(names)} categories (rank correlation): {agreement}."
    )
    plots = [plot for place in _plotted(mapped) for plot in _plots(mapped, place, names)]
    sections = [
        Section(heading="Gradients", blocks=[Text(_WHAT), table, *_by_id(found, mapped, names)]),
        Section(heading="Attention and information", blocks=[Text(about), *plots]),
    ]
    return Page(title=f"Attention of {run}", lead=f"Model {opened.config.model.name}.", sections=sections)


_WHAT = (
    "Norm of the gradient that reaches the vectors of ids by way of attention, over that by way of representation; and "
    "how often the two point apart, where they meet in one table."
)


def _by_id(found: list[Conflict], mapped: AttentionMap, names: list[str]) -> list[Table]:
    by_id = next((one.by_id for one in found if one.feature == mapped.feature), {})
    rows = [[names[place], f"{by_id[one][0]:.1%}", str(by_id[one][1])]
            for place, one in enumerate(mapped.ids) if one in by_id]  # fmt: skip
    columns = (mapped.feature, "opposed", "batches")
    return [Table(columns=columns, rows=rows, numeric=frozenset(columns[1:]))] if rows else []


def _plotted(mapped: AttentionMap) -> list[int]:
    """The target categories with the most to know."""
    total = mapped.information.copy()
    total[~(mapped.support > 0)] = 0
    order = total.sum((1, 2)).argsort(kind="stable")[::-1]
    return [int(place) for place in order[:PLOTTED]]


def _plots(mapped: AttentionMap, place: int, names: list[str]) -> Iterator[Plot]:
    informative = mapped.information[place].copy()
    informative[~(mapped.support[place] > 0)] = 0
    events = [int(one) for one in informative.sum(1).argsort(kind="stable")[::-1][:SERIES]]
    for title, cells in (("attention", mapped.attention), ("information", mapped.information)):
        series = [
            Series(name=names[event], number=number, points=_points(cells[place, event], names[event]))
            for number, event in enumerate(events)
        ]
        drawn = [one for one in series if one.points]
        if drawn:
            unit = "mean weight of an event" if title == "attention" else "nats"
            x = Axis(label="place from the newest event", log=True)
            yield Plot(title=f"{names[place]}: {title}", x=x, y=Axis(label=unit), series=drawn)


def _points(cells: Any, name: str) -> list[Point]:
    return [
        Point(x=float(2**recency), y=float(value), low=float(value), high=float(value),
              about=f"{name}, {recency_label(recency)}: {value:.4g}")
        for recency, value in enumerate(cells) if math.isfinite(value)
    ]  # fmt: skip

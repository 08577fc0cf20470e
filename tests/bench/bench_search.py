"""Time of a search over a long history, for one request: DARE's narrow attention table beside TWIN's shared one.

    make bench      or: python -m tests.bench.bench_search [--lengths 100 1000 10000] [--candidates 100] [--dim 64]
                        [--narrow 16] [--items 1000000] [--search-k 20] [--repeats 30] [--out FOLDER]

A search is what `Score` does once a request: keys of the user's L events, their inner products with every candidate's
query, and the K highest of each. Targets are an item and its category, keys these two and an age, --dim wide each in
TWIN, --narrow in DARE's attention table. Keys come from the rows kept of the catalogue; "looked up" reads the tables
instead. One thread; the candidates take turns and the least CPU time of each counts; what is judged is the ratios.
"Row by row" is the whole answer with the history beside every candidate, which is what a batch of rows costs; it is
left out above 2^18 events in all, for its memory. --out writes search.html there: time against history length.
Memory: --items x (9 x --dim + 8 x --narrow) floats.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from features import storage
from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.entities import EntityTable
from features.spec import parse_schema
from recsys.config import ModelConfig
from recsys.embedding import DenseTable, EmbeddingCollection
from recsys.embedding.precision import Precision, row_bytes
from recsys.models import make_model, table_encoder
from recsys.models.catalogue_keys import CatalogueKeys
from recsys.models.interface import EVENTS_AT_ONCE
from recsys.models.twin import SearchedAttention
from recsys.report import Axis, Page, Plot, Point, Section, Series, Text
from tests.bench.peers import Step, least_ms

CATEGORIES = 1000
LONGEST = 10_000
SCHEMA = {
    "name": "search",
    "user": "user",
    "item": "item",
    "timestamp": "time",
    "features": {
        "user": {"entity": "user", "table": "ids"},
        "item": {"entity": "item", "table": "ids"},
        "category": {"entity": "item", "table": "ids"},
    },
    "sequences": {
        "past": {
            "of": {"history": "item", "history_category": "category"},
            "max_length": LONGEST,
            "age": {"name": "age", "by": "position", "table": "ids"},
        }
    },
    "labels": {"click": {}},
}


class Searched:
    """A model with random weights, its tables as they are served, and what is kept of its catalogue."""

    def __init__(self, name: str, precision: Precision, settings: argparse.Namespace) -> None:
        schema, items = parse_schema(SCHEMA, where="bench"), settings.items
        ids = {"user": 1, "item": items, "category": CATEGORIES}
        counted = {kind: (np.arange(count), np.ones(count, np.int64)) for kind, count in ids.items()}
        encoder = Encoder.from_counts(schema, counted)
        options = {
            "search_k": settings.search_k,
            "features": ("item", "category", "history", "history_category", "age"),
        }
        section = ModelConfig(name=name, options=options)
        specs = {"ids": DenseTable(embedding_dim=settings.dim)}
        if name == "dare":
            specs["attention"] = DenseTable(embedding_dim=settings.narrow, precision=precision)
        collection = EmbeddingCollection(table_encoder(section, encoder), specs, backend="plain").freeze()
        model = make_model(section, encoder, collection)
        assert isinstance(model, SearchedAttention)
        self.model = model.eval().requires_grad_(False)
        numbers = np.arange(items)
        raw = pa.table({"item": numbers, "category": numbers % CATEGORIES})
        self.kept = CatalogueKeys.of(self.model, EntityTable.build(schema, encoder, "item", raw))["past"]

    def search(self, rows: Batch, history: Batch, positions: torch.Tensor) -> object:
        """The events found for each candidate, keys from the kept rows."""
        return self.model.search_candidates(rows, history, {"past": self.kept.read(positions)})

    def look_up(self, rows: Batch, history: Batch) -> object:
        """The same, keys from the tables."""
        return self.model.search_candidates(rows, history, {})

    def row_by_row(self, rows: Batch, history: Batch) -> object:
        """The logits of a batch that holds the history of every row."""
        repeated = history.select(torch.zeros(len(rows), dtype=torch.int64))
        return self.model.logits(Batch(features={**rows.features, **repeated.features}))


def items_of(positions: torch.Tensor) -> Batch:
    """Ids of items at these positions of the catalogue."""
    return Batch(features={"item": positions + 1, "category": positions % CATEGORIES + 1})


def request(length: int, settings: argparse.Namespace) -> tuple[Batch, Batch, torch.Tensor]:
    """Candidates, a history of so many events, and the positions of their items."""
    generator = torch.Generator().manual_seed(length)
    positions = torch.randint(settings.items, (length,), generator=generator)
    rows = items_of(torch.randint(settings.items, (settings.candidates,), generator=generator))
    past, offsets = items_of(positions), torch.tensor([0, length])
    columns = {"history": past.ids("item"), "history_category": past.ids("category")}
    columns["age"] = torch.arange(length, 0, -1)
    history = Batch(features={name: Jagged(values=values, offsets=offsets) for name, values in columns.items()})
    return rows, history, positions


def run(length: int, models: Mapping[str, Searched], settings: argparse.Namespace) -> dict[str, float]:
    """Least CPU milliseconds of every way to search a history of this length."""
    rows, history, positions = request(length, settings)
    steps: dict[str, Step] = {name: partial(one.search, rows, history, positions) for name, one in models.items()}
    steps |= {f"{name}, looked up": partial(one.look_up, rows, history) for name, one in models.items()}
    with torch.inference_mode():
        best = least_ms(steps, settings.repeats)
        if len(rows) * length > EVENTS_AT_ONCE:
            return best
        slow = {f"{name}, row by row": partial(one.row_by_row, rows, history) for name, one in models.items()}
        return best | least_ms(slow, 1)


def table(length: int, best: Mapping[str, float]) -> None:
    """Print the times of one length, and how many times the first is slower."""
    first = next(iter(best.values()))
    print(f"{length:,} events")
    for name, milliseconds in best.items():
        print(f"  {name:45} {milliseconds:9.3f} ms {first / milliseconds:8.2f}x")


def page(times: Mapping[int, Mapping[str, float]], settings: argparse.Namespace) -> str:
    """Time against history length, as HTML."""
    names = list(dict.fromkeys(name for best in times.values() for name in best))
    series = [
        Series(name=name, number=number, points=[_point(x, times[x][name], name) for x in times if name in times[x]])
        for number, name in enumerate(names)
    ]
    title = f"Search of one history for {settings.candidates} candidates, the best {settings.search_k} events of each"
    plot = Plot(
        title=title,
        x=Axis(label="events of the history", log=True, text="{:,.0f}".format),
        y=Axis(label="CPU ms, one thread", log=True),
        series=series,
        caption=f"{settings.items:,} items; vectors of {settings.dim} (TWIN) and {settings.narrow} (DARE's attention).",
    )
    words = Text("Least CPU time of each, in turns. Weights are random: the time does not depend on them.")
    return Page(title="Search over long histories", sections=(Section(heading="Time", blocks=(words, plot)),)).html()


def _point(length: int, milliseconds: float, name: str) -> Point:
    about = f"{name}: {milliseconds:.3f} ms for {length:,} events"
    return Point(x=length, y=milliseconds, low=milliseconds, high=milliseconds, about=about)


def main() -> None:
    """Read the flags, run every length."""
    parser = argparse.ArgumentParser(description="Time of a search over a long history, as ratios")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 300, 1000, 3000, LONGEST])
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--narrow", type=int, default=16)
    parser.add_argument("--search-k", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    models = {
        f"TWIN, {settings.dim} wide": Searched("twin", "float32", settings),
        f"DARE, {settings.narrow} wide": Searched("dare", "float32", settings),
        f"DARE, {settings.narrow} wide, int8 keys": Searched("dare", "int8", settings),
    }
    for name, one in models.items():
        print(f"{name}: {row_bytes(one.kept.width, one.kept.precision)} bytes kept an item")
    times = {length: run(length, models, settings) for length in settings.lengths}
    for length, best in times.items():
        table(length, best)
    if settings.out is not None:
        storage.write_text(settings.out / "search.html", page(times, settings))


if __name__ == "__main__":
    main()

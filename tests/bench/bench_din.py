"""Time of a training step of DIN: ours beside a loop written by hand, and beside the DIN of two libraries.

    make bench-din [PEERS=FOLDER]      or: python -m tests.bench.bench_din [--peers FOLDER] [--data DIR]
                                           [--rows 1000000] [--batches 4] [--repeats 12] [--peer-optimizer Adam]

The config is configs/movielens1m_seq_din.toml: batches of 512 rows, 11 columns of width 16, attention 256-32-1, head
240-128-64-1, SiLU. The batches are the first of its training data (prepared below --prepared); without --data and
RECSYS_DATA they have random ids and histories of the same lengths: two in three full, the others evenly 0 to 49.

Ours is the trainer's loop, all that it does from one batch to the next, checks included; no checkpoint falls into it.
  by hand    `HandWritten`: the same network from the same weights on the bare fbgemm op (the logits of the first batch
             are compared), Adam of the dense part, row-wise Adagrad of the table in the op's backward, nothing else
  libraries  DeepCTR-Torch's DIN and FuxiCTR's (the one in its wheel, model_zoo.LongCTR.DIN), as wide, with their own
             training steps, padded to 50, dense gradients of their tables, one optimizer over everything: Adam, as in
             their examples, and Adagrad, which is the cheaper. At --rows movies each event and target has an id drawn
             anew, so that hardly a row is read twice.

All have their inputs ready: no loader is timed. One thread; the candidates take turns on each batch, the least CPU time
of each on a batch counts, and the mean over the batches is reported; what is judged is the ratios to ours.
The libraries are no dependencies. One that cannot be imported is left out with a line that says so. To get both:

    pip install --no-deps --target FOLDER deepctr-torch==0.3.0 fuxictr==2.3.10
    pip install --no-deps --target FOLDER requests urllib3 idna charset_normalizer certifi tqdm scikit-learn joblib \
        threadpoolctl narwhals h5py polars polars-runtime-32 keras-preprocessing ray msgpack pyyaml jsonschema attrs \
        referencing rpds-py jsonschema-specifications

(--peers comes last on the path: DeepCTR-Torch's wheel brings a package `tests`, which on PYTHONPATH would hide ours. It
asks PyPI for its newest version when it is imported, and prints a line when it gets no answer.)
Memory: with --rows 1,000,000, 0.3 GB for each of the libraries.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from features.batch import Batch, Jagged, offsets_of
from features.encoder import Encoder
from features.prepared import prepare
from features.spec import FeatureSchema
from features.vocab import Vocabulary
from recsys.compression import make_table_optimizer
from recsys.config import RunConfig, load_config
from recsys.embedding import RowWiseAdagrad
from recsys.models.din import DIN
from recsys.phases import Phase, Until
from recsys.run import build_model
from recsys.training.checkpoint import Checkpoints
from recsys.training.optimizers import make_optimizer
from recsys.training.trainer import Settings, Trainer
from tests.bench import din_peers, peers
from tests.bench.din_peers import ALONE, LABEL, PAIRS, SINGLE, HandWritten, Widths

CONFIG = Path("configs/movielens1m_seq_din.toml")
SCHEMA = Path("configs/schemas/movielens1m_seq.toml")
OURS = "ours, in the trainer"
IDS = {"user": 6040, "gender": 2, "age": 7, "occupation": 21, "zip": 3439, "movie": 3626, "category": 301, "action": 4}
FULL = 2 / 3  # of all rows

Steps = Sequence[peers.Step]
MakeSteps = Callable[[Widths, Sequence[Batch], str], Steps]
LIBRARIES: dict[str, tuple[str, MakeSteps]] = {
    "DeepCTR-Torch": ("deepctr_torch.models", din_peers.deepctr_steps),
    "FuxiCTR": ("model_zoo.LongCTR.DIN", din_peers.fuxictr_steps),
}


def real_data(config: RunConfig, settings: argparse.Namespace) -> tuple[Encoder, list[Batch]]:
    """The encoder and the first training batches of the config's own data, prepared where it is not yet."""
    prepared = prepare(config.data, data_root=settings.data, schema_dir=CONFIG.parent, out=settings.prepared)
    loader = prepared.view("train").loader(config.training.batch_size, seed=config.seed)
    return prepared.encoder, [batch for batch, _ in islice(loader.epoch(0), settings.batches)]


def synthetic_data(config: RunConfig, settings: argparse.Namespace) -> tuple[Encoder, list[Batch]]:
    """The same from random ids."""
    encoder = Encoder.from_counts(FeatureSchema.load(SCHEMA), {name: counted(count) for name, count in IDS.items()})
    generator = torch.Generator().manual_seed(config.seed)
    size, longest = config.training.batch_size, longest_history(encoder)

    def drawn(name: str, count: int) -> torch.Tensor:
        return torch.randint(1, rows_of(encoder, name), (count,), generator=generator)

    def batch() -> Batch:
        full = torch.rand(size, generator=generator) < FULL
        lengths = torch.where(full, longest, torch.randint(longest, (size,), generator=generator))
        offsets = offsets_of(lengths)
        owners = torch.arange(size).repeat_interleave(lengths)
        columns = {name: drawn(name, len(owners)) for name in (*PAIRS.values(), "history_action")}
        columns["history_age"] = offsets[1:][owners] - torch.arange(len(owners))
        events = {name: Jagged(values=values, offsets=offsets) for name, values in columns.items()}
        target = {name: drawn(name, size) for name in SINGLE}
        return Batch(features={**target, **events}, labels={LABEL: torch.rand(size, generator=generator).round()})

    return encoder, [batch() for _ in range(settings.batches)]


def counted(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids 1 .. count, each seen once."""
    return np.arange(1, count + 1), np.ones(count, dtype=np.int64)


def rows_of(encoder: Encoder, name: str) -> int:
    """Ids of a feature with a vocabulary."""
    rows = encoder.num_embeddings(name)
    assert rows is not None
    return rows


def longest_history(encoder: Encoder) -> int:
    """L."""
    return encoder.schema.sequences[0].max_length


def with_movies(encoder: Encoder, batches: Sequence[Batch], rows: int) -> tuple[Encoder, list[Batch]]:
    """The same with so many movies, a random one in the place of each."""
    vocabulary = Vocabulary.from_counts("movie", *counted(rows))
    generator = torch.Generator().manual_seed(0)

    def anew(batch: Batch) -> Batch:
        history = batch.jagged(PAIRS["movie"])
        movies, events = (
            torch.randint(1, rows, (count,), generator=generator) for count in (len(batch), len(history.values))
        )
        return replace(batch, features={**batch.features, "movie": movies, PAIRS["movie"]: history.with_values(events)})

    wide = Encoder(encoder.schema, {**encoder.vocabularies, "movie": vocabulary}, encoder.statistics)
    return wide, [anew(batch) for batch in batches]


class Race:
    """Our model of the config over some batches, and whom it is measured against."""

    def __init__(self, config: RunConfig, encoder: Encoder, batches: Sequence[Batch]) -> None:
        model = build_model(config, encoder)
        assert isinstance(model, DIN)
        self.config, self.model, self.batches = config, model, batches
        self.widths = Widths(
            rows={name: rows_of(encoder, name) for name in (*SINGLE, *ALONE)},
            dim=model.collection.embedding_dim("movie"),
            attention=model.config.attention_hidden[0],
            hidden=model.config.hidden,
            longest=longest_history(encoder),
        )

    def by_hand(self, regrouped: bool) -> Steps:
        """The hand-written loop from our weights; ValueError when its logits are not ours."""
        tables = make_table_optimizer(self.config.optimizer.tables)
        assert isinstance(tables, RowWiseAdagrad)
        hand = HandWritten(self.widths, tables.lr, tables.eps, regrouped)
        first, ids = self.batches[0], {name: (name, torch.arange(count)) for name, count in self.widths.rows.items()}
        with torch.no_grad():
            hand.start_from(self.model.collection.lookup(ids), list(self.model.parameters()))
            difference = float((hand(first) - self.model.logits(first)).abs().max())
        if difference > 1e-4:
            raise ValueError(f"the hand-written loop is another network: its logits differ by up to {difference:g}")
        return din_peers.hand_written_steps(hand, self.batches, self.config.optimizer.dense.lr)

    def run(self, rivals: Mapping[str, Steps], repeats: int) -> dict[str, float]:
        """CPU milliseconds a step, by name, ours first."""
        least = {name: [float("inf")] * len(self.batches) for name in (OURS, *rivals)}

        def note(name: str, number: int, started: float) -> None:
            least[name][number] = min(least[name][number], (time.process_time() - started) * 1e3)

        def in_turns(epoch: int, start: int) -> Iterator[tuple[Batch, int]]:
            for number, batch in enumerate(self.batches):
                for name, steps in rivals.items():
                    started = time.process_time()
                    steps[number]()
                    note(name, number, started)
                started = time.process_time()
                yield batch, number + 1  # the trainer comes back for the next when it is done with this one
                note(OURS, number, started)

        dense = make_optimizer(self.config.optimizer.dense, self.model.parameters())
        phase = Phase(
            name="train", batches=in_turns, num_batches=len(self.batches), loss=self.model.row_losses,
            optimizers=(dense,), until=Until(max_epochs=repeats),
        )  # fmt: skip
        with TemporaryDirectory() as folder:
            settings = Settings(seed=self.config.seed, checkpoint_every_s=float("inf"))
            Trainer(self.model, [phase], Checkpoints(folder), settings).fit()
        return {name: sum(times) / len(times) for name, times in least.items()}

    def report(self, title: str, rivals: Mapping[str, Steps], repeats: int) -> None:
        """One line per candidate with its ratio to ours."""
        best = self.run(rivals, repeats)
        print(title)
        for name, milliseconds in best.items():
            speed = len(self.batches[0]) / milliseconds * 1e3
            print(f"  {name:<42} {milliseconds:8.2f} ms {speed:9,.0f} examples/s {milliseconds / best[OURS]:6.2f}x")


def importable() -> dict[str, MakeSteps]:
    """The libraries that are there; a line for each that is not."""
    found: dict[str, MakeSteps] = {}
    for name, (package, make) in LIBRARIES.items():
        try:
            import_module(package)
            found[name] = make
        except ImportError as error:
            print(f"{name} is left out ({error}); the head of tests/bench/bench_din.py says how to get it")
    return found


def main() -> None:
    """Read the flags, run both comparisons."""
    parser = argparse.ArgumentParser(description="Time of a training step of DIN, as ratios")
    data = os.environ.get("RECSYS_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="raw datasets; default: RECSYS_DATA")
    parser.add_argument("--prepared", type=Path, default=Path("prepared"))
    parser.add_argument("--peers", default="", help="folder that holds the libraries, see the head of this file")
    parser.add_argument("--peer-optimizer", choices=["Adam", "Adagrad"], nargs="+", default=["Adam", "Adagrad"])
    parser.add_argument("--rows", type=int, default=1_000_000, help="movies of the second comparison")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=12)
    settings = parser.parse_args()
    sys.path += [settings.peers] if settings.peers else []
    torch.set_num_threads(1)
    config = load_config(CONFIG)
    encoder, batches = (real_data if settings.data else synthetic_data)(config, settings)
    events = sum(len(batch.jagged(PAIRS["movie"]).values) for batch in batches) / len(batches)
    kind = "MovieLens-1M" if settings.data else "synthetic data (RECSYS_DATA is not set)"
    print(f"{kind}: {len(batches)} batches of {len(batches[0])} rows, {events:,.0f} events each")
    race = Race(config, encoder, batches)
    hand = {"by hand": race.by_hand(regrouped=True), "by hand, concatenated": race.by_hand(regrouped=False)}
    race.report("beside a hand-written loop", hand, settings.repeats)
    libraries = importable()
    for rows in (rows_of(encoder, "movie"), settings.rows) if libraries else ():
        if rows != rows_of(encoder, "movie"):
            encoder, batches = with_movies(encoder, batches, rows)
        for optimizer in settings.peer_optimizer:
            race = Race(config, encoder, batches)
            rivals = {name: make(race.widths, batches, optimizer) for name, make in libraries.items()}
            race.report(f"{rows:,} movies; the libraries with {optimizer}", rivals, settings.repeats)


if __name__ == "__main__":
    main()

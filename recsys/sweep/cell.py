"""One cell: a run trained and evaluated as any other, and what its served tables weigh and cost to read.

The lookup is measured with one thread, on the ids of the first BATCH rows of the validation split, features, lists and
histories all in one call, without pooling; the tables take turns with collisionless float32 ones of the same widths in
the same process, and the least CPU time of REPEATS counts for each. So the ratio of the two says what the method costs,
whatever else the machine was doing when this cell had its turn.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from features.batch import Jagged
from features.prepared import Prepared
from recsys.compression import make_specs
from recsys.config import RunConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.layout import Layout
from recsys.models import table_encoder
from recsys.models.interface import Ranker, Retriever
from recsys.run import Run
from recsys.run_state import read_config
from recsys.sweep.outcome import Lookup, Outcome, Sizes
from recsys.sweep.plan import dense_specs
from recsys.training.checks import check_settings
from recsys.training.trainer import Progress

BATCH = 4096
REPEATS = 7
TELL_EVERY_S = 0.5
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cell for another process, in plain values: the two configs of `run_cell` as JSON, and paths.

    trained: the folder of a finished run that trained the same rows, "" where there is none.
    """

    config: str
    sweep_config: str
    prepared: str
    folder: str
    trained: str = ""


def run_task(task: Task, tell: Tell) -> Outcome:
    """`run_cell` of what the task names; the sweep has verified the prepared data."""
    configs = RunConfig.from_json(task.config), RunConfig.from_json(task.sweep_config)
    folder, prepared = Path(task.folder), Prepared.open(task.prepared, verify=False)
    if task.trained and not folder.exists():
        _copy_trained(Path(task.trained), folder, configs[0], prepared)
    return run_cell(*configs, folder, prepared, tell)


def _copy_trained(trained: Path, folder: Path, config: RunConfig, prepared: Prepared) -> None:
    """Take the training of another cell, if it has finished; otherwise this cell trains for itself."""
    if (trained / "config.json").exists():
        run = Run(trained, read_config(trained / "config.json"), prepared)
        if run.finished:
            run.copy(folder, config)


def run_cell(config: RunConfig, sweep_config: RunConfig, folder: Path, prepared: Prepared, tell: Tell) -> Outcome:
    """Train in `folder` from where it stands, evaluate, measure.

    sweep_config: the one that all cells are derived from; it says what collisionless tables are.
    Raises ValueError for a training that fails, trainer's Interrupted after a signal.
    """
    try:
        check_settings(config)
        Layout.build(table_encoder(config.model, prepared.encoder), make_specs(config.tables.specs), config.seed)
    except ValueError as error:
        return Outcome(status="unreachable", config_hash=config.content_hash, reason=" ".join(str(error).split()))
    fresh = not (folder / "config.json").exists()
    run = Run.create(config, folder, prepared, resume=True)
    run.train(observers=(_Teller(tell),))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
    tell("evaluating")
    model = run.model()
    assert isinstance(model, Ranker | Retriever)
    validation = run.state.validation or {}
    if not config.training.refit:
        validation = run.evaluate("validation", model).metrics
    report = run.evaluate("test", model)
    tell("measuring lookups")
    encoder = table_encoder(config.model, prepared.encoder)
    peer = EmbeddingCollection(encoder, dense_specs(sweep_config, encoder.schema), backend="plain")
    return Outcome(
        status="finished",
        config_hash=config.content_hash,
        validation=dict(validation),
        test=dict(report.metrics),
        sizes=Sizes(
            served=report.counts["table_bytes"],
            tensors=sum(tensor.nbytes for tensor in model.collection.state_dict().values()),
            model=report.counts["dense_bytes"],
            training=run.state.sizes["training"],
            optimizer=run.state.sizes["optimizer"],
        ),
        lookup=measure_lookup(model.collection, peer, sample_ids(prepared)),
        seconds=run.state.seconds,
        peak_bytes=peak if fresh else None,
        protocol=report.protocol,
    )


def sample_ids(prepared: Prepared) -> dict[str, Tensor]:
    """The ids of every id feature in the first BATCH validation rows, flat."""
    batch, _ = next(iter(prepared.view("validation").loader(BATCH, seed=0, shuffle=False).epoch(0)))
    found: dict[str, Tensor] = {}
    for spec in prepared.schema.inputs:
        if spec.is_id:
            column = batch.features[spec.name]
            found[spec.name] = column.values if isinstance(column, Jagged) else column
    return found


def measure_lookup(served: EmbeddingCollection, dense: EmbeddingCollection, ids: Mapping[str, Tensor]) -> Lookup:
    """CPU microseconds per id of both collections, in turns."""
    requests = {name: (name, values) for name, values in ids.items()}
    count = sum(values.numel() for values in ids.values())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"served": [], "dense": []}
    with torch.no_grad():
        for _ in range(REPEATS + 1):
            for name, collection in (("served", served), ("dense", dense)):
                started = time.process_time()
                collection.lookup(requests)
                times[name].append((time.process_time() - started) * 1e6 / count)
    torch.set_num_threads(threads)
    return Lookup(us_per_id=min(times["served"][1:]), dense_us_per_id=min(times["dense"][1:]))  # the first warms up


class _Teller:
    """An observer that says where training stands, in a line, and logs evaluations."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told = 0.0

    def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        """Say it now and then."""
        if time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            stage = f"phase {progress.phase + 1}, " if progress.phase else ""
            self._tell(f"{stage}epoch {progress.epoch + 1}, {progress.batch / max(total_batches, 1):.0%}")

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
        """Into the cell's log."""
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"phase {progress.phase + 1}, epoch {progress.epoch + 1}: {shown}{' (best)' if best else ''}", flush=True)

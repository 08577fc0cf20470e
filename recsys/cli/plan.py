"""`recsys plan`: where the tables of a config would lie on a cluster that need not exist, and the time of a step."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from features.batch import Jagged
from features.encoder import Encoder
from features.prepared import Prepared
from features.spec import FeatureSchema
from recsys.cli.console import print_json, print_table, user_errors
from recsys.cli.data import ConfigArgument, DataOption, JsonOption, OverridesArgument, PreparedOption, prepared_of
from recsys.compression import make_specs, make_table_optimizer
from recsys.config import ConfigError, RunConfig, load_config
from recsys.embedding.layout import Layout
from recsys.embedding.placement import AUTO
from recsys.embedding.planner import Plan, Workload, byte_text, changes
from recsys.embedding.planner import plan as planned
from recsys.embedding.step_time import Cluster
from recsys.models import table_encoder

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
         "TiB": 2**40}  # fmt: skip
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
COUNT = r"(?P<base>[0-9]+)\^(?P<power>[0-9]{1,2})|(?P<plain>[0-9][0-9_]*(\.[0-9]+)?(e[0-9]{1,2})?)"
SAMPLE_ROWS = 4096
TOTALS = {
    "weights": "weights",
    "state": "optimizer state",
    "cache": "cache of what lies in host memory",
    "replicated": "the tables' own parameters",
    "buffers": "vectors and gradients of a step",
    "device": "all of these",
    "host": "in host memory",
}

WorldSizeOption = Annotated[int, typer.Option("--world-size", help="Ranks of the cluster.")]
HostOption = Annotated[int, typer.Option("--ranks-per-host", help="Ranks that share a host.")]
HbmOption = Annotated[str, typer.Option("--hbm", help="A rank's own memory (of its GPU).")]
HostMemoryOption = Annotated[str, typer.Option("--host-memory", help="Memory of a host, for stores that GPUs lack.")]
HbmRateOption = Annotated[str, typer.Option("--hbm-bandwidth", help="Of a rank's own memory.")]
HostRateOption = Annotated[str, typer.Option("--host-bandwidth", help="Between a rank and its host's memory.")]
IntraOption = Annotated[str, typer.Option("--intra-bandwidth", help="Of a rank to those of its host, one way.")]
InterOption = Annotated[str, typer.Option("--inter-bandwidth", help="Of a rank to other hosts, one way.")]
LatencyOption = Annotated[str, typer.Option("--latency", help="Of one collective, beside its bytes.")]
ReserveOption = Annotated[float, typer.Option("--reserve", help="Share of memory left to everything else.")]
CacheOption = Annotated[float, typer.Option("--cache", help="Share of a store in host memory kept on the GPU.")]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="Rows of a step over all ranks (the config's).")]
CardinalityOption = Annotated[
    list[str] | None,
    typer.Option("--cardinality", metavar="FEATURE=N", help="Plan as if there were so many ids; 10^9 and 5e6 will do."),
]
LengthOption = Annotated[
    list[str] | None,
    typer.Option("--length", metavar="FEATURE=N", help="Plan as if lists had this mean length (default: measured)."),
]


def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    world_size: WorldSizeOption = 8,
    hbm: HbmOption = "80GiB",
    ranks_per_host: HostOption = 8,
    host_memory: HostMemoryOption = "1TiB",
    hbm_bandwidth: HbmRateOption = "2TB/s",
    host_bandwidth: HostRateOption = "25GB/s",
    intra_bandwidth: IntraOption = "300GB/s",
    inter_bandwidth: InterOption = "25GB/s",
    latency: LatencyOption = "20us",
    reserve: ReserveOption = 0.15,
    cache: CacheOption = 0.2,
    batch_size: BatchOption = None,
    cardinality: CardinalityOption = None,
    length: LengthOption = None,
    data: DataOption = None,
    prepared: PreparedOption = Path("prepared"),
    json: JsonOption = False,
) -> None:
    """Show where the tables of a config would lie on a cluster, why, whether they fit, and how long a step would take.

    Needs neither GPU nor other ranks, and allocates no store. Placement is what `train` would do at so many ranks, by
    tables.sharding; default speeds are those of 80 GB A100s. The time is an estimate, to compare plans by.
    """
    with user_errors():
        cluster = Cluster(
            world_size=world_size,
            ranks_per_host=ranks_per_host,
            hbm=parse_bytes("--hbm", hbm),
            host_memory=parse_bytes("--host-memory", host_memory),
            hbm_bandwidth=parse_rate("--hbm-bandwidth", hbm_bandwidth),
            host_bandwidth=parse_rate("--host-bandwidth", host_bandwidth),
            intra_bandwidth=parse_rate("--intra-bandwidth", intra_bandwidth),
            inter_bandwidth=parse_rate("--inter-bandwidth", inter_bandwidth),
            latency=_quantity("--latency", latency, SECONDS, "20us"),
            reserve=reserve,
            cache=cache,
        )
        ids, lengths = parse_counts("--cardinality", cardinality), parse_counts("--length", length)
        rows = [] if batch_size is None else [f"training.batch_size={batch_size}"]
        settings = load_config(config, [*(overrides or ()), *rows])
        if not settings.tables.specs:
            raise ConfigError(f"model {settings.model.name!r} of {config} has no tables to plan")
        encoded = prepared_of(settings, config.parent, data, prepared)
        layout = layout_of(settings, encoded, ids, world_size)
        workload = workload_of(settings, layout, mean_lengths(encoded, lengths))
        found = planned(workload, settings.tables.sharding or AUTO, cluster)
        if json:
            print_json(as_json(found))
        else:
            show(found)


# --- what is asked ---


def parse_bytes(option: str, text: str) -> float:
    """Of "80GiB": bytes; ValueError names the option and the units."""
    return _quantity(option, text, BYTES, "80GiB")


def parse_rate(option: str, text: str) -> float:
    """Of "300GB/s": bytes per second; ValueError names the option and the units."""
    return _quantity(option, text, {f"{unit}/s": size for unit, size in BYTES.items()}, "300GB/s")


def _quantity(option: str, text: str, units: Mapping[str, float], example: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z/]+)", text)
    if match is None or match[2] not in units:
        raise ValueError(f"{option} {text!r} must be a number with one of {', '.join(units)}, as in {example!r}")
    return float(match[1]) * units[match[2]]


def parse_counts(option: str, given: Sequence[str] | None) -> dict[str, float]:
    """["user=10^9"] -> {"user": 1e9}; ValueError names the option, and what is wrong."""
    found: dict[str, float] = {}
    for text in given or ():
        feature, _, number = text.partition("=")
        match = re.fullmatch(COUNT, number)
        if not feature or match is None:
            raise ValueError(f"{option} {text!r} must be FEATURE=N, as in user=10^9, user=5e6 or user=1000000")
        if feature in found:
            raise ValueError(f"{option} names {feature!r} twice")
        value = float(match["plain"]) if match["plain"] else float(match["base"]) ** int(match["power"])
        if not 0 < value <= 2**62:
            raise ValueError(f"{option} {text!r} must be above 0 and at most 2^62")
        found[feature] = value
    return found


class Resized:
    """An encoder whose features have other numbers of ids; those that share ids have them together."""

    def __init__(self, encoder: Encoder, cardinalities: Mapping[str, float]) -> None:
        self.schema: FeatureSchema = encoder.schema
        self._encoder = encoder
        self._sizes: dict[str, int] = {}
        for feature, count in cardinalities.items():
            spec = self.schema.feature(feature)
            if not spec.is_id or spec.hashed:
                fault = "is hashed, and its number of ids decides nothing" if spec.hashed else "has no ids"
                raise ValueError(f"--cardinality {feature}: a feature of kind {spec.kind!r} that {fault}")
            if count != int(count):
                raise ValueError(f"--cardinality {feature}: a number of ids is whole, got {count}")
            if self._sizes.setdefault(spec.salt, int(count)) != int(count):
                raise ValueError(f"--cardinality {feature}: it shares ids with a feature that is given another number")

    def num_embeddings(self, feature: str) -> int | None:
        """As given, else as in the data."""
        return self._sizes.get(self.schema.feature(feature).salt, self._encoder.num_embeddings(feature))

    def counts(self, feature: str) -> Tensor | None:
        """Of the data; None for ids that are not of the data."""
        return None if self.schema.feature(feature).salt in self._sizes else self._encoder.counts(feature)


def layout_of(config: RunConfig, prepared: Prepared, cardinalities: Mapping[str, float], world_size: int) -> Layout:
    """The tables of a config without their stores. ValueError for a method that does not train over several ranks."""
    encoder = table_encoder(config.model, prepared.encoder)
    layout = Layout.build(Resized(encoder, cardinalities), make_specs(config.tables.specs), config.seed)
    for table in layout.tables.values():
        if table.one_rank and world_size > 1:
            raise ValueError(f"table {table.name!r} does not train over several ranks: {table.one_rank}")
    return layout


def workload_of(config: RunConfig, layout: Layout, lengths: Mapping[str, float]) -> Workload:
    """The stores of a config and what a step asks of them: each feature of the schema is looked up once per row."""
    own = [tensor for table in layout.tables.values() for tensor in (*table.parameters(), *table.buffers())]
    return Workload(
        stores=layout.stores,
        optimizer=make_table_optimizer(config.optimizer.tables),
        accesses=accesses_of(layout, lengths),
        batch_size=config.training.batch_size,
        replicated_bytes=sum(tensor.nbytes for tensor in own),
    )


def accesses_of(layout: Layout, lengths: Mapping[str, float]) -> dict[str, float]:
    """Rows of each store that one row of a batch reads, given the mean length of each list."""
    found: dict[str, float] = {}
    for feature in layout.table_of:
        rows_of = layout.tables[layout.table_of[feature]].rows(torch.zeros(1, dtype=torch.int64))
        for store, rows in rows_of.items():
            found[store] = found.get(store, 0.0) + rows.shape[1] * lengths.get(feature, 1.0)
    return found


def mean_lengths(prepared: Prepared, given: Mapping[str, float]) -> dict[str, float]:
    """Ids per row of every list feature: as given, else of the first rows of the training data in their shuffled order.

    Raises ValueError for a feature that is no list.
    """
    for feature in given:
        if not prepared.schema.feature(feature).is_list:
            raise ValueError(f"--length {feature}: the feature is not a list, a row has one id of it")
    with closing(prepared.view("train").loader(SAMPLE_ROWS, seed=0).epoch(0)) as batches:  # type: ignore[type-var]
        batch, _ = next(batches)
    lists = {name: column for name, column in batch.features.items() if isinstance(column, Jagged)}
    return {name: len(column.values) / max(1, len(batch)) for name, column in lists.items()} | dict(given)


# --- what is said ---


def show(found: Plan) -> None:
    """The plan as text on stdout."""
    cluster, workload = found.cluster, found.workload
    weights = sum(part.weight_bytes for store in found.stores for part in store.parts)
    state = sum(part.state_bytes for store in found.stores for part in store.parts)
    typer.echo(
        f"{byte_text(weights)} of weights and {byte_text(state)} of optimizer state "
        f"({type(workload.optimizer).__name__}) over {cluster.world_size} ranks, {cluster.host_size} per host"
    )
    print_table("stores", [_row(found, number) for number in range(len(found.stores))])
    print_table("per rank", [_totals(found, what) for what in TOTALS])
    for line in [*_why(found), *_verdict(found), *_time(found), "what would change it:"]:
        typer.echo(line)
    for line in changes(found):
        typer.echo(f"  {line}")


def _row(found: Plan, number: int) -> dict[str, str]:
    mine = found.stores[number]
    largest = max(mine.parts, key=lambda part: part.num_bytes)
    return {
        "store": mine.store.name,
        "rows": f"{mine.store.num_embeddings:,}",
        "width": str(mine.store.embedding_dim),
        "reads": f"{found.workload.accesses.get(mine.store.name, 0.0):.4g}",
        "kind": mine.placement.kind,
        "ranks": rank_text(mine.placement.ranks, found.cluster.world_size),
        "weights per rank": byte_text(largest.weight_bytes),
        "state per rank": byte_text(largest.state_bytes),
        "memory": "host, cached" if mine.cached else "device",
    }


def rank_text(ranks: Sequence[int], world_size: int) -> str:
    """One of "all", "3", "8-15" and "0, 2, 5 and 9 more"."""
    if len(ranks) == world_size:
        return "all" if world_size > 1 else "0"
    if len(ranks) == 1:
        return str(ranks[0])
    if list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    shown = ", ".join(str(rank) for rank in ranks[:3])
    return shown if len(ranks) <= 3 else f"{shown} and {len(ranks) - 3} more"


def _totals(found: Plan, what: str) -> dict[str, str]:
    counts = [getattr(rank, what) for rank in found.ranks]
    return {"bytes": TOTALS[what], "least": byte_text(min(counts)), "most": byte_text(max(counts))}


def _why(found: Plan) -> list[str]:
    moved = f"; in host memory, {found.cluster.cache:.0%} of it cached: few lookups per row, and its ranks are full"
    return ["why:", *(f"  {mine.store.name}: {mine.reason}{moved if mine.cached else ''}" for mine in found.stores)]


def _verdict(found: Plan) -> list[str]:
    cluster = found.cluster
    lines = [_room("rank", found.device_bytes, cluster.hbm, cluster.reserve)]
    if found.host_bytes:
        lines.append(_room("host", found.host_bytes, cluster.host_memory, cluster.reserve))
    return ["it fits:" if found.fits else "it does not fit:", *lines]


def _room(what: str, taken: float, memory: float, reserve: float) -> str:
    usable = memory * (1 - reserve)
    room = f"{byte_text(usable)} ({byte_text(memory)} less {reserve:.0%})"
    return f"  the fullest {what} takes {byte_text(taken)} of {room}{'' if taken <= usable else ': too little'}"


def _time(found: Plan) -> list[str]:
    step, cluster, rows = found.step, found.cluster, found.workload.batch_size
    stages = ", ".join(
        f"{name} {seconds_text(seconds)}"
        for name, seconds in (("lookup", step.lookup), ("all-to-all", step.exchange), ("update", step.update))
    )
    return [
        f"a step of {rows:,} rows: {seconds_text(step.total)} for the tables, of which {stages}",
        f"  at {_rate(cluster.hbm_bandwidth)} own memory, {_rate(cluster.host_bandwidth)} host memory, "
        f"{_rate(cluster.intra_bandwidth)} within a host, {_rate(cluster.inter_bandwidth)} between hosts, "
        f"{seconds_text(cluster.latency)} a collective;",
        "  uniform ids, full bandwidths, no overlap, without the dense part of the model: compare plans, not clocks",
    ]


def seconds_text(seconds: float) -> str:
    """As in "1.2 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _rate(count: float) -> str:
    power = min(12, 3 * int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 10**power:.4g} {({0: 'B', 3: 'kB', 6: 'MB', 9: 'GB', 12: 'TB'})[power]}/s"


def as_json(found: Plan) -> dict[str, Any]:
    """All of it as plain values; bytes, bytes per second and seconds."""
    stores = [
        {
            "store": mine.store.name,
            "num_embeddings": mine.store.num_embeddings,
            "embedding_dim": mine.store.embedding_dim,
            "kind": mine.placement.kind,
            "ranks": list(mine.placement.ranks),
            "weight_bytes": [part.weight_bytes for part in mine.parts],
            "state_bytes": [part.state_bytes for part in mine.parts],
            "host_memory": mine.cached,
            "reason": mine.reason,
        }
        for mine in found.stores
    ]
    return {
        "cluster": asdict(found.cluster),
        "batch_size": found.workload.batch_size,
        "optimizer": type(found.workload.optimizer).__name__,
        "stores": stores,
        "ranks": [asdict(rank) | {"device": rank.device} for rank in found.ranks],
        "fits": found.fits,
        "step_seconds": asdict(found.step) | {"total": found.step.total},
        "changes": changes(found),
    }

"""Which rank of a cluster would hold what, why, whether it fits and how long a step would take: no rank is needed.

The placement is the one that the sharded backend would take (placement.py), worked out from the stores alone; no store
is allocated, so a table of a terabyte is planned as fast as a small one. Added to it here: bytes per rank, which stores
go to host memory where a rank's own does not suffice, an estimate of the step (step_time.py), and what would change it.

Memory. A rank holds its parts' weights (float32, padded) and optimizer state, a copy of every table's own parameters
and buffers, and the vectors of a step with their gradients, as holder and as asker. If that is more than a rank has,
stores move to host memory one after the other, those with the fewest lookups per row first, each keeping the share
`Cluster.cache` of its rows in device memory (fbgemm's cached unified memory, on CUDA).

Not here: reading configs and printing (cli/plan.py); the memory and time of the dense part of a model.

Shapes: B rows of a global batch, W ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from recsys.embedding.optimizers import Adam, TableOptimizer
from recsys.embedding.placement import (
    AUTO,
    COLUMN_WISE,
    ELEMENT_WISE,
    FLOAT_BYTES,
    PLANNED_KINDS,
    ROW_WISE,
    TABLE_ROW_WISE,
    TABLE_WISE,
    Placement,
    exchange_groups,
    place,
    sharding_kinds,
    training_bytes,
)
from recsys.embedding.step_time import Cluster, Part, StepTime, step_time
from recsys.embedding.store import Store

MAX_RANKS = 1024  # as far as `changes` looks for a number of ranks


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be trained.

    accesses: rows of each store that one row of a batch reads, on average. batch_size: B, over all ranks.
    replicated_bytes: the tables' own parameters and buffers, which every rank holds.
    Raises ValueError for a batch below one row.
    """

    stores: Sequence[Store]
    optimizer: TableOptimizer
    accesses: Mapping[str, float]
    batch_size: int
    replicated_bytes: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if isinstance(self.optimizer, Adam):
            raise ValueError("backend 'sharded' has no Adam; a plan takes SGD, Adagrad or RowWiseAdagrad")


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """One store: where it lies, what each rank holds of it, and in words why."""

    store: Store
    placement: Placement
    parts: tuple[Part, ...]
    reason: str

    @property
    def cached(self) -> bool:
        """Whether it lies in host memory behind a cache."""
        return any(part.cached for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Bytes of one rank. device: in its own memory, of which weights and state are those that lie there; host: of the
    stores that lie in host memory.
    """

    weights: int
    state: int
    buffers: int
    replicated: int
    cache: int
    host: int

    @property
    def device(self) -> int:
        """All that lies in the rank's own memory."""
        return self.weights + self.state + self.buffers + self.replicated + self.cache


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole: stores in the order given, bytes of every rank, the step."""

    workload: Workload
    sharding: str | Mapping[str, str]
    cluster: Cluster
    stores: tuple[StorePlan, ...]
    ranks: tuple[RankBytes, ...]
    step: StepTime

    @property
    def host_bytes(self) -> int:
        """Of the fullest host: what it holds for its ranks."""
        size = self.cluster.host_size
        starts = range(0, self.cluster.world_size, size)
        return max(sum(rank.host for rank in self.ranks[start : start + size]) for start in starts)

    @property
    def device_bytes(self) -> int:
        """Of the fullest rank."""
        return max(rank.device for rank in self.ranks)

    @property
    def fits(self) -> bool:
        """Whether every rank and every host has room for its share."""
        fits_host = self.host_bytes <= self.cluster.usable_host_memory
        return self.device_bytes <= self.cluster.usable_hbm and fits_host


def plan(workload: Workload, sharding: str | Mapping[str, str], cluster: Cluster) -> Plan:
    """Place all stores on the cluster; sharding as for the sharded backend, and table_row_wise as well.

    A pure function; the same stores at the same number of ranks are placed as training places them. Raises ValueError
    for a kind or store that is not known, and for a kind that would train wrongly.
    """
    stores = workload.stores
    kinds = sharding_kinds(stores, sharding, workload.optimizer, cluster.world_size, PLANNED_KINDS)
    placements = place(stores, kinds, cluster.world_size, cluster.host_size)
    parts = {store.name: _parts(store, placements[store.name], workload) for store in stores}
    parts = _with_moved(parts, workload, cluster)
    planned = tuple(
        StorePlan(
            store=store,
            placement=placements[store.name],
            parts=parts[store.name],
            reason=_reason(store, placements[store.name], _is_set(store, sharding), workload, cluster),
        )
        for store in stores
    )
    every = [part for mine in parts.values() for part in mine]
    exchanges = len(exchange_groups(stores, placements, _known(workload)))
    return Plan(
        workload=workload,
        sharding=sharding,
        cluster=cluster,
        stores=planned,
        ranks=tuple(_rank_bytes(every, workload, cluster)),
        step=step_time(every, exchanges, cluster),
    )


def _is_set(store: Store, sharding: str | Mapping[str, str]) -> bool:
    return (sharding if isinstance(sharding, str) else sharding.get(store.name, AUTO)) != AUTO


def _known(workload: Workload) -> dict[str, int | None]:
    """Accesses that do not vary, for what may share an exchange."""
    return {name: int(count) if count == int(count) else None for name, count in workload.accesses.items()}


# --- bytes ---


def _parts(store: Store, placement: Placement, workload: Workload) -> tuple[Part, ...]:
    """Of every rank that holds some of it."""
    lookups = workload.batch_size * workload.accesses.get(store.name, 0.0)
    columns = placement.padded_columns(store)
    found = []
    for number, rank in enumerate(placement.ranks):
        rows = len(placement.part(store, number)[0])
        state = workload.optimizer.state_shapes(rows, columns).values()
        found.append(
            Part(
                rank=rank,
                rows=rows,
                columns=columns,
                weight_bytes=rows * columns * FLOAT_BYTES,
                state_bytes=sum(prod(shape) for shape in state) * FLOAT_BYTES,
                lookups=lookups * rows / store.num_embeddings,
            )
        )
    return tuple(found)


def _rank_bytes(parts: Sequence[Part], workload: Workload, cluster: Cluster) -> list[RankBytes]:
    of_rank: list[list[Part]] = [[] for _ in range(cluster.world_size)]
    for part in parts:
        of_rank[part.rank].append(part)
    asked = sum(part.vector_bytes for part in parts) / cluster.world_size
    found = []
    for mine in of_rank:
        here, moved = [part for part in mine if not part.cached], [part for part in mine if part.cached]
        host = sum(part.num_bytes for part in moved)
        found.append(
            RankBytes(
                weights=sum(part.weight_bytes for part in here),
                state=sum(part.state_bytes for part in here),
                buffers=round(2 * (asked + sum(part.vector_bytes for part in mine))),
                replicated=workload.replicated_bytes,
                cache=round(cluster.cache * host),
                host=host,
            )
        )
    return found


def _with_moved(
    parts: Mapping[str, tuple[Part, ...]], workload: Workload, cluster: Cluster
) -> dict[str, tuple[Part, ...]]:
    """Stores moved to host memory, coldest first, until every rank has room or all of its stores are moved."""
    found = dict(parts)
    ranks = _rank_bytes([part for mine in parts.values() for part in mine], workload, cluster)
    excess = [rank.device - cluster.usable_hbm for rank in ranks]
    coldest = sorted(
        workload.stores, key=lambda store: (workload.accesses.get(store.name, 0.0) / store.num_embeddings, store.name)
    )
    for store in coldest:
        if any(excess[part.rank] > 0 for part in parts[store.name]):
            found[store.name] = tuple(replace(part, cached=True) for part in parts[store.name])
            for part in parts[store.name]:
                excess[part.rank] -= (1 - cluster.cache) * part.num_bytes
    return found


# --- words ---


def _reason(store: Store, placement: Placement, is_set: bool, workload: Workload, cluster: Cluster) -> str:
    mine, ranks = byte_text(training_bytes(store)), cluster.world_size
    fair = byte_text(sum(training_bytes(other) for other in workload.stores) / ranks)
    held = sum(count > 0 for count in placement.weight_bytes(store).values())
    if placement.kind == COLUMN_WISE:
        width = len(placement.part(store, 0)[1])
        return f"set so; {len(placement.ranks)} blocks of {width} columns, exact as {_name(workload)} is element-wise"
    if placement.kind == TABLE_ROW_WISE:
        return (
            f"set so; rows over the {held} ranks of host {placement.ranks[0] // cluster.host_size}; it does not train"
        )
    if is_set:
        return f"set so; {mine} over {held} ranks" if placement.kind == ROW_WISE else f"set so; {mine} on one rank"
    if placement.kind == ROW_WISE:
        return f"{mine} is more than a rank's fair share of {fair}: whole, it would overload one rank"
    if training_bytes(store) * ranks > sum(training_bytes(other) for other in workload.stores):
        return f"{store.num_embeddings} rows are too few for {ranks} blocks of rows"
    where = f"rank {placement.ranks[0]}, where least lay before" if ranks > 1 else "the only rank"
    return f"{mine} is within a rank's fair share of {fair}: whole on {where}"


def _name(workload: Workload) -> str:
    return type(workload.optimizer).__name__


def byte_text(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while count >= 1023.95 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} B" if power == 0 else f"{count:.1f} {units[power]}"


# --- what would change it ---


def changes(current: Plan) -> list[str]:
    """What would make the plan fit, spare host memory, or shorten the step by 5 % and more, each found by planning."""
    return [*_room(current), *_kinds(current), *_boundaries(current), *_optimizers(current)]


def _room(current: Plan) -> list[str]:
    cluster = current.cluster
    resident = replace(cluster, hbm=float("inf"))
    need = plan(current.workload, current.sharding, resident).device_bytes / (1 - cluster.reserve)
    if all(not store.cached for store in current.stores):
        fewer = _first_ranks(current, lambda other: other.fits and not _any_cached(other))
        lines = [f"it needs {byte_text(need)} of memory per rank at these {cluster.world_size} ranks"]
        if fewer is not None and fewer < cluster.world_size:
            lines.append(f"{fewer} {_plural('rank', fewer)} would already do without host memory")
        return lines
    lines = [f"with {byte_text(need)} of memory per rank, everything would lie there"]
    for goal, found in (
        ("everything would fit", None if current.fits else _first_ranks(current, lambda other: other.fits)),
        ("nothing would lie in host memory", _first_ranks(current, lambda other: not _any_cached(other))),
    ):
        if found is not None:
            lines.append(f"at {found} ranks {goal}")
    if current.host_bytes > cluster.usable_host_memory:
        host = byte_text(current.host_bytes / (1 - cluster.reserve))
        lines.append(f"the fullest host needs {host} of host memory")
    return lines


def _any_cached(found: Plan) -> bool:
    return any(store.cached for store in found.stores)


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _first_ranks(current: Plan, holds: Callable[[Plan], bool]) -> int | None:
    """The smallest number of ranks, doubling from one and over whole hosts, at which a plan has a property."""
    cluster = current.cluster
    world_size = 1
    while world_size <= MAX_RANKS:
        size = cluster.ranks_per_host
        ranks = world_size if world_size <= size else -(-world_size // size) * size
        other = replace(cluster, world_size=ranks)
        if holds(plan(current.workload, current.sharding, other)):
            return ranks
        world_size = max(2 * world_size, ranks)
    return None


def _kinds(current: Plan, most: int = 8) -> list[str]:
    """For the largest stores, another kind that would train right and be faster."""
    element_wise = isinstance(current.workload.optimizer, ELEMENT_WISE)
    others = (ROW_WISE, TABLE_WISE, COLUMN_WISE) if element_wise else (ROW_WISE, TABLE_WISE)
    named = {store.store.name: store.placement.kind for store in current.stores}
    largest = sorted(current.stores, key=lambda found: -training_bytes(found.store))[:most]
    lines = []
    if current.cluster.world_size == 1:
        return []
    for found in largest:
        for kind in others:
            if kind == found.placement.kind:
                continue
            other = plan(current.workload, named | {found.store.name: kind}, current.cluster)
            gain = current.step.total / other.step.total
            if gain >= 1.05 and other.fits >= current.fits:
                lines.append(f"{found.store.name} as {kind}: the step {gain:.2f} times as fast")
    return lines or ["no other kind of sharding of one of the largest stores would gain 5 %"]


def _boundaries(current: Plan) -> list[str]:
    """The number of ranks from which on the largest whole store would be split."""
    whole = [
        found.store
        for found in current.stores
        if found.placement.kind == TABLE_WISE and not _is_set(found.store, current.sharding)
    ]
    if not whole:
        return []
    largest = max(whole, key=training_bytes)
    total = sum(training_bytes(store) for store in current.workload.stores)
    ranks = total // training_bytes(largest) + 1
    if ranks > largest.num_embeddings:
        return []
    return [f"from {ranks} ranks on, {largest.name} would be row-wise, the first of those that are whole now"]


def _optimizers(current: Plan) -> list[str]:
    state = sum(part.state_bytes for store in current.stores for part in store.parts)
    rows = sum(part.rows for store in current.stores for part in store.parts)
    if state <= rows * FLOAT_BYTES:
        return []
    saved = byte_text(state - rows * FLOAT_BYTES)
    return [f"row-wise Adagrad would keep one number per row: {saved} less optimizer state over all ranks"]

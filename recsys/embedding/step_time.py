"""How long a step of the sharded tables takes on given hardware: an estimate from bytes and bandwidths, made anywhere.

Three stages, each as slow as its slowest rank, since all ranks meet in the exchange between them:

    lookup      every access reads the row of its part
    exchange    row numbers to the holders, vectors back, gradients to the holders; own ones stay, those of the same
                host take the fast links, the others the network
    update      every access's gradient is read; every row hit is read and written, with its optimizer state

What it is not: a measurement. Ids are taken as uniform (hot rows and uneven blocks make the slowest rank slower, caches
make it faster), bandwidths as reached in full, nothing as overlapping, and the dense part of a model is not in it. It
is for comparing plans.

Shapes: B rows of a global batch, W ranks, R ranks of a host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

VECTOR_TRIPS = 2  # a vector to whoever asked, its gradient back
ROW_NUMBER_BYTES = 8
COLLECTIVES = 4  # of an exchange: how many row numbers, the row numbers, vectors, gradients


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Hardware: bytes of memory and bytes per second, of each rank unless it says host; bandwidths are those one way.

    host_bandwidth: between a rank and its host's memory. intra_bandwidth: to the ranks of the same host.
    inter_bandwidth: to all others. latency: seconds of one collective beside its bytes. reserve: the share of memory
    that is left to everything else (the dense part, activations, the allocator). cache: the share of a store in host
    memory that is kept in device memory.
    Raises ValueError naming what is out of range.
    """

    world_size: int
    ranks_per_host: int = 8
    hbm: float = 80 * 2**30
    host_memory: float = 2**40
    hbm_bandwidth: float = 2e12
    host_bandwidth: float = 25e9
    intra_bandwidth: float = 300e9
    inter_bandwidth: float = 25e9
    latency: float = 20e-6
    reserve: float = 0.15
    cache: float = 0.2

    def __post_init__(self) -> None:
        for name in ("world_size", "ranks_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("hbm", "host_memory", "hbm_bandwidth", "host_bandwidth", "intra_bandwidth", "inter_bandwidth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.latency < 0:
            raise ValueError(f"latency must not be negative, got {self.latency}")
        if not 0 <= self.reserve < 1:
            raise ValueError(f"reserve must be in [0, 1), got {self.reserve}")
        if not 0 < self.cache < 1:
            raise ValueError(f"cache must be between 0 and 1, got {self.cache}")
        if self.world_size % self.host_size:
            raise ValueError(
                f"world_size {self.world_size} is no multiple of ranks_per_host {self.ranks_per_host}: hosts are alike"
            )

    @property
    def host_size(self) -> int:
        """R: ranks of a host; a cluster smaller than a host is one host."""
        return min(self.ranks_per_host, self.world_size)

    @property
    def usable_hbm(self) -> float:
        """Bytes of a rank for the tables."""
        return self.hbm * (1 - self.reserve)

    @property
    def usable_host_memory(self) -> float:
        """Bytes of a host for the tables."""
        return self.host_memory * (1 - self.reserve)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank holds of one store, and does with it in a step.

    lookups: accesses of all ranks together that reach it, B x accesses per batch row, or its share of them by rows.
    cached: whether the part lies in host memory behind a cache.
    """

    rank: int
    rows: int
    columns: int
    weight_bytes: int
    state_bytes: int
    lookups: float
    cached: bool = False

    @property
    def num_bytes(self) -> int:
        """Of weights and state."""
        return self.weight_bytes + self.state_bytes

    @property
    def vector_bytes(self) -> float:
        """Of the vectors of all lookups."""
        return self.lookups * self.columns * 4


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of the three stages, each of its slowest rank."""

    lookup: float
    exchange: float
    update: float

    @property
    def total(self) -> float:
        """Of the stages one after the other."""
        return self.lookup + self.exchange + self.update


def step_time(parts: Sequence[Part], num_exchanges: int, cluster: Cluster) -> StepTime:
    """The estimate for all parts of all stores, looked up in so many exchanges."""
    lookup, update = [0.0] * cluster.world_size, [0.0] * cluster.world_size
    for part in parts:
        lookup[part.rank] += part.vector_bytes * _seconds_per_byte(part, cluster)
        update[part.rank] += updated_bytes(part) * _seconds_per_byte(part, cluster)
    return StepTime(lookup=max(lookup), exchange=_exchange(parts, num_exchanges, cluster), update=max(update))


def updated_bytes(part: Part) -> float:
    """Read and written by an update: every gradient once, every row hit and its state twice."""
    hit = min(part.lookups, part.rows)
    row_bytes = part.num_bytes / part.rows if part.rows else 0.0
    return part.vector_bytes + 2 * hit * row_bytes


def _seconds_per_byte(part: Part, cluster: Cluster) -> float:
    if not part.cached:
        return 1 / cluster.hbm_bandwidth
    return cluster.cache / cluster.hbm_bandwidth + (1 - cluster.cache) / cluster.host_bandwidth


def _exchange(parts: Sequence[Part], num_exchanges: int, cluster: Cluster) -> float:
    if cluster.world_size == 1:
        return 0.0
    vectors = _all_to_all([(part.rank, part.vector_bytes) for part in parts], cluster)
    numbers = _all_to_all([(part.rank, part.lookups * ROW_NUMBER_BYTES) for part in parts], cluster)
    return VECTOR_TRIPS * vectors + numbers + num_exchanges * COLLECTIVES * cluster.latency


def _all_to_all(held: Sequence[tuple[int, float]], cluster: Cluster) -> float:
    """Seconds until each rank has its 1/W of what every holder has: (rank, bytes) for each part.

    The same in the other direction. A rank's links carry what it sends beside what it receives: the larger counts.
    """
    world_size, host_size = cluster.world_size, cluster.host_size
    of_rank, of_host = [0.0] * world_size, [0.0] * (world_size // host_size)
    for rank, count in held:
        of_rank[rank] += count
        of_host[rank // host_size] += count
    total = sum(of_rank)
    slowest = 0.0
    for rank, mine in enumerate(of_rank):
        host = of_host[rank // host_size]
        intra = max(mine * (host_size - 1), host - mine) / world_size
        inter = max(mine * (world_size - host_size), total - host) / world_size
        slowest = max(slowest, intra / cluster.intra_bandwidth + inter / cluster.inter_bandwidth)
    return slowest

"""Which rank holds what: how each store is sharded, on which ranks its parts lie, and which are exchanged together.

Pure functions of the stores, the optimizer and the number of ranks: every rank computes the same, and so does a plan
for ranks that do not exist (planner.py). Nothing here moves a tensor (sharded.py does).

The kinds, for a store of n rows and d columns over W ranks:

    row_wise         W blocks of ceil(n / W) rows, one per rank
    table_wise       whole, on one rank
    column_wise      k blocks of ceil(d / k) columns on k ranks, k <= W and no block thinner than kernels allow (4);
                     only for optimizers whose state is element-wise
    table_row_wise   one block of rows per rank of one host; can be planned, not trained
    auto             the choice of `automatic_kinds`, row_wise or table_wise
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from recsys.embedding.optimizers import SGD, Adagrad, TableOptimizer, padded_dim
from recsys.embedding.store import Store

AUTO, ROW_WISE, TABLE_WISE, COLUMN_WISE = "auto", "row_wise", "table_wise", "column_wise"
TABLE_ROW_WISE = "table_row_wise"
KINDS = (AUTO, ROW_WISE, TABLE_WISE, COLUMN_WISE)
PLANNED_KINDS = (*KINDS, TABLE_ROW_WISE)
ELEMENT_WISE = (SGD, Adagrad)
LANES = padded_dim(1)
FLOAT_BYTES = 4
REFUSED = {
    "data_parallel": "on CPU torchrec looks its lists up wrongly without a word, and loading it loses optimizer state",
    TABLE_ROW_WISE: "torchrec has no table-row-wise lookup on CPU; `recsys plan` can plan it",
}
ELEMENT_WISE_ONLY = (
    "each part would average over its own columns, which was measured 5.7 times off the unsplit update; take SGD or "
    "Adagrad, whose state is element-wise, or 'row_wise'"
)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How one store is sharded, and the ranks that hold its parts, in the order of the parts."""

    kind: str
    ranks: tuple[int, ...]

    @property
    def by_rows(self) -> bool:
        """Whether a part is a block of rows (else it is a block of columns, or the whole)."""
        return self.kind in (ROW_WISE, TABLE_ROW_WISE)

    def part(self, store: Store, number: int) -> tuple[range, range]:
        """The rows and the true columns of part `number`; of even blocks the last ones may be short or empty."""
        rows, columns = range(store.num_embeddings), range(store.embedding_dim)
        whole = rows if self.by_rows else columns
        block = -(-len(whole) // len(self.ranks))
        mine = whole[number * block : (number + 1) * block]
        return (mine, columns) if self.by_rows else (rows, mine)

    def part_of(self, store: Store, rank: int) -> tuple[range, range]:
        """The rows and the true columns that a rank holds, empty where it holds none."""
        return self.part(store, self.ranks.index(rank)) if rank in self.ranks else (range(0), range(0))

    @property
    def split_dim(self) -> int:
        """Along which dimension of [n, d] the parts lie: 0, or 1 for several blocks of columns."""
        return 0 if self.by_rows or len(self.ranks) == 1 else 1

    def padded_columns(self, store: Store) -> int:
        """Columns of each part as it lies in memory."""
        return padded_dim(store.embedding_dim if self.by_rows else -(-store.embedding_dim // len(self.ranks)))

    def weight_bytes(self, store: Store) -> dict[int, int]:
        """Rank -> bytes of its part while training, padding included; ranks that hold nothing are left out."""
        rows = (len(self.part(store, number)[0]) for number in range(len(self.ranks)))
        row_bytes = self.padded_columns(store) * FLOAT_BYTES
        return {rank: count * row_bytes for rank, count in zip(self.ranks, rows, strict=True) if count}


# --- kinds ---


def sharding_kinds(
    stores: Sequence[Store],
    sharding: str | Mapping[str, str],
    optimizer: TableOptimizer,
    world_size: int,
    accepted: Collection[str] = KINDS,
) -> dict[str, str]:
    """Store -> kind, "auto" resolved; a store that a mapping does not name is "auto".

    A store with too few rows for a block on every rank is table-wise also where "row_wise" is asked for.

    accepted: KINDS to train, PLANNED_KINDS to plan. Raises ValueError naming the kind or store that is not known, and
    what is accepted; and for a kind that would be wrong, saying why.
    """
    names = [store.name for store in stores]
    given = {} if isinstance(sharding, str) else dict(sharding)
    unknown = sorted(given.keys() - set(names))
    if unknown:
        raise ValueError(f"sharding names store {unknown[0]!r}, there are {sorted(names)}")
    kinds = dict.fromkeys(names, sharding if isinstance(sharding, str) else AUTO) | given
    check_sharding(kinds, optimizer, accepted)
    automatic = automatic_kinds(stores, world_size)
    few = {store.name for store in stores if leaves_ranks_empty(store, world_size)}
    resolved = {name: automatic[name] if kind == AUTO else kind for name, kind in kinds.items()}
    return {name: TABLE_WISE if kind == ROW_WISE and name in few else kind for name, kind in resolved.items()}


def leaves_ranks_empty(store: Store, world_size: int) -> bool:
    """Whether blocks of ceil(n / W) rows end before the last rank; torchrec's row-wise op fails on a rank without."""
    return -(-store.num_embeddings // world_size) * (world_size - 1) >= store.num_embeddings and world_size > 1


def check_sharding(
    sharding: str | Mapping[str, str], optimizer: TableOptimizer, accepted: Collection[str] = KINDS
) -> None:
    """What is wrong with a setting whatever the stores are: ValueError naming store, kind, and why or what there is."""
    kinds = {"": sharding} if isinstance(sharding, str) else sharding
    for store, kind in kinds.items():
        what = f"sharding of store {store!r}" if store else "sharding"
        if kind not in accepted:
            reason = f" ({REFUSED[kind]})" if kind in REFUSED else ""
            raise ValueError(f"{what} is {kind!r}, accepted are {', '.join(map(repr, accepted))}{reason}")
        if kind == COLUMN_WISE and not isinstance(optimizer, ELEMENT_WISE):
            raise ValueError(f"{what} is 'column_wise' under {type(optimizer).__name__}: {ELEMENT_WISE_ONLY}")


def automatic_kinds(stores: Sequence[Store], world_size: int) -> dict[str, str]:
    """Store -> kind where the user says nothing.

    A store is row-wise if it is larger than a rank's fair share, all bytes / W: on one rank it would leave others with
    less than theirs however the rest is dealt. So one unified store lies on all ranks, as do eight equal stores on
    more than eight. The others are table-wise, since no rank then holds more than two fair shares, and a lookup sends
    row numbers to one rank instead of all.
    """
    fair = sum(training_bytes(store) for store in stores) / world_size
    return {store.name: ROW_WISE if training_bytes(store) > fair else TABLE_WISE for store in stores}


def training_bytes(store: Store) -> int:
    """Bytes of a whole store's float32 rows while training, padding included."""
    return store.num_embeddings * padded_dim(store.embedding_dim) * FLOAT_BYTES


# --- ranks ---


def place(
    stores: Sequence[Store], kinds: Mapping[str, str], world_size: int, host_size: int = 1
) -> dict[str, Placement]:
    """Store -> placement, given what `sharding_kinds` found: the largest part first, to the ranks with fewest bytes.

    host_size: ranks of a host, for table-row-wise stores; it divides world_size. Independent of the order of stores.
    """
    held = [0] * world_size
    placements = {}
    for store in sorted(stores, key=lambda store: (-_part_bytes(store, kinds[store.name], world_size), store.name)):
        ranks = _ranks(store, kinds[store.name], held, host_size)
        placements[store.name] = Placement(kind=kinds[store.name], ranks=ranks)
        for rank, count in placements[store.name].weight_bytes(store).items():
            held[rank] += count
    return {store.name: placements[store.name] for store in stores}


def _ranks(store: Store, kind: str, held: Sequence[int], host_size: int) -> tuple[int, ...]:
    world_size = len(held)
    if kind == ROW_WISE:
        return tuple(range(world_size))
    if kind == TABLE_ROW_WISE:
        hosts = [sum(held[start : start + host_size]) for start in range(0, world_size, host_size)]
        start = hosts.index(min(hosts)) * host_size
        return tuple(range(start, start + host_size))
    blocks = num_column_blocks(store, world_size) if kind == COLUMN_WISE else 1
    return tuple(sorted(sorted(range(world_size), key=lambda rank: (held[rank], rank))[:blocks]))


def num_column_blocks(store: Store, world_size: int) -> int:
    """k: as many blocks as ranks, none thinner than the kernels' 4 columns, none empty."""
    most = min(world_size, -(-store.embedding_dim // LANES))
    return -(-store.embedding_dim // -(-store.embedding_dim // most))


def _part_bytes(store: Store, kind: str, world_size: int) -> int:
    """Of one part; row-wise parts weigh on all ranks alike and are placed last."""
    if kind == ROW_WISE:
        return 0
    return training_bytes(store) // (num_column_blocks(store, world_size) if kind == COLUMN_WISE else 1)


# --- exchanges ---


def exchange_groups(
    stores: Sequence[Store], placements: Mapping[str, Placement], accesses: Mapping[str, int | None]
) -> list[list[Store]]:
    """Stores that share an exchange: row-wise by padded width; the others by equal, known accesses per batch row."""
    groups: dict[tuple[object, ...], list[Store]] = {}
    for store in stores:
        count = accesses.get(store.name)
        if placements[store.name].kind == ROW_WISE:
            key: tuple[object, ...] = (ROW_WISE, padded_dim(store.embedding_dim))
        else:
            key = (TABLE_WISE, store.name if count is None else count)
        groups.setdefault(key, []).append(store)
    return list(groups.values())

"""Which rank holds what: how each store is sharded, who owns the whole ones, and which are exchanged together.

Pure functions of the stores and the number of ranks: every rank computes the same. Nothing here moves a tensor
(sharded.py does).
"""

from collections.abc import Mapping, Sequence

from recsys.embedding.optimizers import padded_dim
from recsys.embedding.table import Store

ROW_WISE, TABLE_WISE = "row_wise", "table_wise"


def sharding_kinds(stores: Sequence[Store], sharding: str | Mapping[str, str]) -> dict[str, str]:
    """Store -> kind. Raises ValueError naming the kind or store that is not known, and what is accepted."""
    names = [store.name for store in stores]
    kinds = dict.fromkeys(names, sharding) if isinstance(sharding, str) else dict.fromkeys(names, TABLE_WISE)
    given = {} if isinstance(sharding, str) else dict(sharding)
    unknown = sorted(given.keys() - set(names))
    if unknown:
        raise ValueError(f"sharding names store {unknown[0]!r}, there are {sorted(names)}")
    kinds |= given
    for name, kind in kinds.items():
        if kind not in (ROW_WISE, TABLE_WISE):
            raise ValueError(
                f"sharding of store {name!r} is {kind!r}, accepted are 'row_wise' and 'table_wise' (torchrec looks "
                "data-parallel lists up wrongly and updates column-wise tables wrongly)"
            )
    return kinds


def table_owners(stores: Sequence[Store], world_size: int) -> dict[str, int]:
    """The rank of each table-wise store: the largest first, each to the rank that holds the fewest bytes so far."""
    held = [0] * world_size
    owners = {}
    for store in sorted(stores, key=lambda store: (-store.num_bytes, store.name)):
        owners[store.name] = held.index(min(held))
        held[owners[store.name]] += store.num_embeddings * padded_dim(store.embedding_dim)
    return owners


def exchange_groups(
    stores: Sequence[Store], kinds: Mapping[str, str], accesses: Mapping[str, int | None]
) -> list[list[Store]]:
    """Stores that share an exchange: row-wise by padded width; table-wise by equal, known accesses per batch row."""
    groups: dict[tuple[object, ...], list[Store]] = {}
    for store in stores:
        count = accesses.get(store.name)
        if kinds[store.name] == ROW_WISE:
            key: tuple[object, ...] = (ROW_WISE, padded_dim(store.embedding_dim))
        else:
            key = (TABLE_WISE, store.name if count is None else count)
        groups.setdefault(key, []).append(store)
    return list(groups.values())

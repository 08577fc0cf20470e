"""Placement: a pure function of stores and ranks, balanced, and no kind that torchrec gets wrong."""

import pytest

from recsys.embedding.placement import exchange_groups, sharding_kinds, table_owners
from recsys.embedding.table import Store


def stores_of(**shapes: tuple[int, int]) -> list[Store]:
    return [Store(name=name, num_embeddings=n, embedding_dim=d) for name, (n, d) in shapes.items()]


STORES = stores_of(user=(100, 16), item=(60, 10), tag=(50, 12), weight=(10, 1))


def test_sharding_is_one_kind_or_one_per_store() -> None:
    assert set(sharding_kinds(STORES, "row_wise").values()) == {"row_wise"}
    kinds = sharding_kinds(STORES, {"item": "row_wise"})
    assert kinds == {"user": "table_wise", "item": "row_wise", "tag": "table_wise", "weight": "table_wise"}


@pytest.mark.parametrize("kind", ["data_parallel", "column_wise", "rowwise", ""])
def test_other_kinds_of_sharding_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"sharding of store 'item' is '{kind}', accepted are 'row_wise'"):
        sharding_kinds(STORES, {"item": kind})
    with pytest.raises(ValueError, match="'user'"):
        sharding_kinds(STORES, kind)


def test_sharding_of_an_unknown_store_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names store 'itme', there are \['item', 'tag', 'user', 'weight'\]"):
        sharding_kinds(STORES, {"itme": "row_wise"})


def test_owners_balance_bytes_and_ignore_order() -> None:
    owners = table_owners(STORES, 2)
    assert owners == table_owners(STORES[::-1], 2)
    held = [sum(store.num_bytes for store in STORES if owners[store.name] == rank) for rank in range(2)]
    assert max(held) <= 6400
    assert set(table_owners(STORES, 1).values()) == {0}
    assert sorted(table_owners(STORES, 9).values()) == [0, 1, 2, 3]


def test_groups_share_an_exchange_where_torchrec_allows() -> None:
    kinds = sharding_kinds(STORES, "row_wise")
    assert grouped(kinds, {}) == [["user"], ["item", "tag"], ["weight"]]
    kinds = sharding_kinds(STORES, "table_wise")
    assert grouped(kinds, {"user": 1, "weight": 1, "item": None}) == [["user", "weight"], ["item"], ["tag"]]
    kinds = sharding_kinds(STORES, {"user": "row_wise"})
    assert grouped(kinds, {"user": 1, "weight": 1}) == [["user"], ["item"], ["tag"], ["weight"]]


def grouped(kinds: dict[str, str], accesses: dict[str, int | None]) -> list[list[str]]:
    return [[store.name for store in group] for group in exchange_groups(STORES, kinds, accesses)]

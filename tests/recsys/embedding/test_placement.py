"""Placement: a pure function of stores and ranks, balanced, and no kind that torchrec gets wrong."""

from collections.abc import Mapping

import pytest

from recsys.embedding.optimizers import SGD, Adagrad, Adam, RowWiseAdagrad
from recsys.embedding.placement import (
    PLANNED_KINDS,
    Placement,
    automatic_kinds,
    check_sharding,
    exchange_groups,
    num_column_blocks,
    place,
    sharding_kinds,
    training_bytes,
)
from recsys.embedding.store import Store


def stores_of(**shapes: tuple[int, int]) -> list[Store]:
    return [Store(name=name, num_embeddings=n, embedding_dim=d) for name, (n, d) in shapes.items()]


STORES = stores_of(user=(100, 16), item=(60, 10), tag=(50, 12), weight=(10, 1))
ROW_WISE = RowWiseAdagrad(lr=0.1)


# --- kinds ---


def test_sharding_is_one_kind_or_one_per_store() -> None:
    assert set(sharding_kinds(STORES, "row_wise", ROW_WISE, 2).values()) == {"row_wise"}
    kinds = sharding_kinds(STORES, {"item": "column_wise", "user": "table_wise"}, SGD(lr=0.1), 2)
    assert kinds == {"user": "table_wise", "item": "column_wise", "tag": "table_wise", "weight": "table_wise"}


@pytest.mark.parametrize("kind", ["data_parallel", "table_row_wise", "rowwise", ""])
def test_other_kinds_of_sharding_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"sharding of store 'item' is '{kind}', accepted are 'auto', 'row_wise'"):
        sharding_kinds(STORES, {"item": kind}, ROW_WISE, 2)
    with pytest.raises(ValueError, match="'user'"):
        sharding_kinds(STORES, kind, ROW_WISE, 2)


@pytest.mark.parametrize(("kind", "reason"), [("data_parallel", "lists up wrongly"), ("table_row_wise", "CPU")])
def test_a_known_wrong_kind_says_why(kind: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_sharding(kind, ROW_WISE)


@pytest.mark.parametrize("optimizer", [ROW_WISE, Adam(lr=0.1)])
def test_column_wise_is_refused_where_state_spans_a_row(optimizer: RowWiseAdagrad | Adam) -> None:
    with pytest.raises(ValueError, match=r"'item' is 'column_wise' under \w+: .*5\.7 times off.*SGD or Adagrad"):
        check_sharding({"user": "auto", "item": "column_wise"}, optimizer)
    check_sharding("column_wise", Adagrad(lr=0.1))


def test_table_row_wise_can_be_planned() -> None:
    kinds = sharding_kinds(STORES, {"item": "table_row_wise"}, ROW_WISE, 2, PLANNED_KINDS)
    assert kinds["item"] == "table_row_wise"


def test_sharding_of_an_unknown_store_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names store 'itme', there are \['item', 'tag', 'user', 'weight'\]"):
        sharding_kinds(STORES, {"itme": "row_wise"}, ROW_WISE, 2)


def test_auto_splits_what_exceeds_a_fair_share() -> None:
    assert automatic_kinds(stores_of(ids=(1000, 8)), 2) == {"ids": "row_wise"}
    assert automatic_kinds(stores_of(ids=(1000, 8)), 1) == {"ids": "table_wise"}
    eight = stores_of(**{f"t{number}": (1000, 8) for number in range(8)})
    assert set(automatic_kinds(eight, 8).values()) == {"table_wise"}
    assert set(automatic_kinds(eight, 9).values()) == {"row_wise"}
    assert automatic_kinds(stores_of(big=(1000, 8), small=(10, 8)), 4) == {"big": "row_wise", "small": "table_wise"}
    for asked in ("auto", "row_wise"):
        kinds = sharding_kinds(stores_of(few=(5, 512), more=(40, 512)), asked, ROW_WISE, 4)
        assert kinds == {"few": "table_wise", "more": "row_wise"}, "blocks of two rows of five leave the last rank none"
    assert sharding_kinds(STORES, "auto", ROW_WISE, 2) == automatic_kinds(STORES[::-1], 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
def test_auto_gives_no_rank_more_than_two_fair_shares(world_size: int) -> None:
    stores = stores_of(**{f"t{number}": (64 * number * number + 64, 4 + 4 * (number % 5)) for number in range(30)})
    placements = place(stores, automatic_kinds(stores, world_size), world_size)
    held = dict.fromkeys(range(world_size), 0)
    for store in stores:
        for rank, count in placements[store.name].weight_bytes(store).items():
            held[rank] += count
    assert max(held.values()) <= 2.05 * sum(map(training_bytes, stores)) / world_size


# --- ranks and parts ---


def placed(kind: str, world_size: int) -> dict[str, Placement]:
    return place(STORES, dict.fromkeys((store.name for store in STORES), kind), world_size)


def test_owners_balance_bytes_and_ignore_order() -> None:
    kinds = dict.fromkeys((store.name for store in STORES), "table_wise")
    placements = place(STORES, kinds, 2)
    assert placements == place(STORES[::-1], kinds, 2)
    held = [sum(store.num_bytes for store in STORES if placements[store.name].ranks == (rank,)) for rank in range(2)]
    assert max(held) <= 6400
    assert {found.ranks for found in placed("table_wise", 1).values()} == {(0,)}
    assert sorted(found.ranks for found in placed("table_wise", 9).values()) == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("kind", ["row_wise", "table_wise", "column_wise"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
def test_parts_cover_a_store_once(kind: str, world_size: int) -> None:
    placements = placed(kind, world_size)
    for store in STORES:
        found = placements[store.name]
        assert len(set(found.ranks)) == len(found.ranks)
        cells = [
            (row, column)
            for number in range(len(found.ranks))
            for row in found.part(store, number)[0]
            for column in found.part(store, number)[1]
        ]
        assert len(cells) == len(set(cells)) == store.num_embeddings * store.embedding_dim
        assert sum(found.weight_bytes(store).values()) >= 4 * len(cells)


def test_a_rank_that_holds_nothing_has_an_empty_part() -> None:
    found = Placement(kind="row_wise", ranks=(0, 1, 2))
    assert found.part_of(STORES[0], 2) == (range(68, 100), range(16))
    assert found.part_of(STORES[0], 3) == (range(0), range(0))
    assert (found.split_dim, Placement(kind="column_wise", ranks=(0, 1)).split_dim) == (0, 1)


@pytest.mark.parametrize(
    ("width", "world_size", "blocks"), [(1, 8, 1), (4, 2, 1), (5, 2, 2), (64, 8, 8), (64, 64, 16), (41, 10, 9)]
)
def test_column_blocks_are_no_thinner_than_kernels_allow_and_none_is_empty(
    width: int, world_size: int, blocks: int
) -> None:
    (store,) = stores_of(ids=(10, width))
    assert num_column_blocks(store, world_size) == blocks
    placement = place([store], {"ids": "column_wise"}, world_size)["ids"]
    assert all(placement.part(store, number)[1] for number in range(blocks))


def test_table_row_wise_takes_the_emptiest_host() -> None:
    kinds = {"user": "table_wise", "item": "table_row_wise", "tag": "table_wise", "weight": "table_wise"}
    placements = place(STORES, kinds, 8, host_size=4)
    assert placements["user"].ranks == (0,)
    assert placements["item"].ranks == (4, 5, 6, 7)


# --- exchanges ---


def test_groups_share_an_exchange_where_torchrec_allows() -> None:
    assert grouped(placed("row_wise", 2), {}) == [["user"], ["item", "tag"], ["weight"]]
    accesses: dict[str, int | None] = {"user": 1, "weight": 1, "item": None}
    assert grouped(placed("table_wise", 2), accesses) == [["user", "weight"], ["item"], ["tag"]]
    kinds = {"user": "row_wise", "item": "table_wise", "tag": "column_wise", "weight": "table_wise"}
    assert grouped(place(STORES, kinds, 2), {"user": 1, "tag": 1, "weight": 1}) == [
        ["user"],
        ["item"],
        ["tag", "weight"],
    ]


def grouped(placements: dict[str, Placement], accesses: Mapping[str, int | None]) -> list[list[str]]:
    return [[store.name for store in group] for group in exchange_groups(STORES, placements, accesses)]

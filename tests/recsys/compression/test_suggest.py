"""What is proposed fits the budget, loses less the more it may take, and follows the formula that it states."""

import os
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from features.hashes import mix64
from recsys.compression import make_specs
from recsys.compression.suggest import Suggestion, Usage, suggest
from recsys.config import TableConfig
from recsys.embedding.table import Reader
from recsys.embedding.unified import salt_of

DATA = os.environ.get("RECSYS_DATA")
USAGES = [Usage.zipf("item", 3000), Usage.zipf("user", 6000), Usage.counted("device", torch.tensor([5, 90, 40]))]
BUDGETS = [500, 2_000, 10_000, 30_000, 60_000, 100_000, 140_000, 200_000, 400_000]


def test_lost_is_the_share_that_hashing_loses() -> None:
    counts, rows, chunks = torch.arange(400, 0, -1), 150, 2
    lost = []
    for seed in range(30):
        at = [mix64(torch.arange(400) + salt_of("user", chunk, seed), 0).remainder(rows) for chunk in range(chunks)]
        met = [all(bool((row[:one] == row[one]).any()) for row in at) for one in range(400)]
        lost.append(float(counts[torch.tensor(met)].sum() / counts.sum()))
    expected = Usage.counted("user", counts).lost(rows, chunks)
    assert expected == pytest.approx(sum(lost) / len(lost), rel=0.1)


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_lost_falls_with_rows_and_with_chunks(chunks: int) -> None:
    usage = Usage.zipf("user", 5000)
    found = [usage.lost(rows, chunks) for rows in (1, 10, 100, 1000, 10_000, 100_000)]
    assert found == sorted(found, reverse=True)
    assert usage.lost(1000, chunks) > usage.lost(1000, chunks + 1)


def test_usage_in_groups_is_near_that_of_each_id() -> None:
    number = 20_000
    each = Usage.counted("user", 1e9 / torch.arange(1, number + 1))
    for rows, chunks in ((5_000, 1), (5_000, 3), (50_000, 2)):
        assert Usage.zipf("user", number).lost(rows, chunks) == pytest.approx(each.lost(rows, chunks), rel=0.02)
    assert Usage.zipf("user", number).effective == pytest.approx(each.effective, rel=0.02)


def test_usage_of_a_billion_ids_takes_little_memory() -> None:
    assert len(Usage.zipf("user", 10**9).mass) < 10_000


@pytest.mark.parametrize("budget", BUDGETS)
def test_suggestion_fits_and_can_be_pasted(budget: int) -> None:
    found = suggest("ids", USAGES, 30, budget)
    assert found.chosen.bytes <= budget
    section = tomllib.loads(found.section())["tables"]["ids"]
    (spec,) = make_specs({"ids": TableConfig.model_validate(section)}).values()
    readers = [Reader(name=usage.name, salt=usage.name, num_embeddings=usage.num_embeddings) for usage in USAGES]
    tables = spec.build("ids", readers)
    stores = {store.name: store.num_bytes for table in tables.values() for store in table.stores}
    assert sum(stores.values()) == found.chosen.bytes


def test_suggestion_does_no_more_harm_for_more_bytes() -> None:
    harm = [suggest("ids", USAGES, 30, budget).chosen.harm for budget in BUDGETS]
    assert harm == sorted(harm, reverse=True)
    assert harm[0] > harm[-1] == 0


def test_suggestion_is_the_same_in_any_order() -> None:
    def plain(found: Suggestion) -> tuple[object, ...]:
        return found.section(), found.fewer, found.why

    assert plain(suggest("ids", USAGES, 30, 60_000)) == plain(suggest("ids", USAGES[::-1], 30, 60_000))


@pytest.mark.parametrize(("share", "precision"), [(0.99, "unified"), (1.0, "int4"), (2.0, "int8"), (9.0, "int8")])
def test_suggestion_is_without_collisions_where_that_fits(share: float, precision: str) -> None:
    full = sum(usage.num_embeddings for usage in USAGES) * (15 + 4)
    found = suggest("ids", USAGES, 30, int(full * share)).chosen
    assert (found.precision if found.collisionless else "unified") == precision


def test_suggestion_for_hashed_ids_is_never_a_row_per_id() -> None:
    usage = Usage.of(Reader(name="word", salt="word"), 1000, hashed=True)
    assert not suggest("ids", [usage], 16, 10**9).chosen.collisionless


@pytest.mark.parametrize("budget", BUDGETS[:6])
def test_suggestion_is_the_least_harm_of_all(budget: int) -> None:
    found = suggest("ids", USAGES, 30, budget)
    shared = [one for one in found.others if not one.collisionless]
    assert found.chosen.harm == min(one.harm for one in (found.chosen, *shared))
    for one in (found.chosen, *shared):
        assert one.worst == max(usage.lost(one.rows, one.chunks) for usage in USAGES)
        assert one.load == pytest.approx(one.chunks * sum(usage.effective for usage in USAGES) / one.rows)


def test_suggestion_says_where_fewer_chunks_do_no_more_harm() -> None:
    found = suggest("ids", USAGES, 30, 100_000)
    assert found.fewer["device"] == 1
    for usage in USAGES:
        chunks = found.fewer.get(usage.name, found.chosen.chunks)
        assert usage.lost(found.chosen.rows, chunks) <= found.chosen.harm
        assert chunks == 1 or usage.lost(found.chosen.rows, chunks - 1) > found.chosen.harm


@pytest.mark.parametrize(("counts", "effective"), [([7, 7, 7, 7], 4.0), ([5, 0, 0], 1.0), ([1] * 50 + [0], 50.0)])
def test_usage_has_as_many_ids_in_effect_as_are_alike(counts: list[int], effective: float) -> None:
    assert Usage.counted("user", torch.tensor(counts)).effective == pytest.approx(effective)


def test_suggestion_below_one_row_names_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"table 'ids': 3B is too small, the minimum is 6B"):
        suggest("ids", USAGES, 30, 3)


def test_usage_without_a_number_of_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="number of ids of 'user' is not known"):
        Usage.of(Reader(name="user", salt="user"))


def movielens() -> list[Usage]:
    assert DATA is not None
    events = pq.read_table(Path(DATA) / "ml-1m" / "ratings.parquet", columns=["user_id", "movie_id", "rating_class"])
    events = events.filter(pc.is_in(events["rating_class"], value_set=pa.array([0, 2])))
    counts = [events.group_by(name).aggregate([([], "count_all")])["count_all"] for name in ("user_id", "movie_id")]
    return [Usage.counted(str(n), torch.tensor([0, *column.to_pylist()])) for n, column in enumerate(counts)]


@pytest.mark.skipif(DATA is None, reason="RECSYS_DATA is not set")
def test_suggestion_for_movielens_in_158_kb_is_int4_in_three_chunks() -> None:
    users, movies = movielens()
    zips = Usage.zipf("zip", 3440)  # of the raw table only users and movies are counted here
    found = suggest("ids", [users, movies, zips, Usage.zipf("others", 33)], 30, 158_000).chosen
    assert (found.precision, found.chunks, found.chunk_dim, found.rows) == ("int4", 3, 10, 17_555)

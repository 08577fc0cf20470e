"""One store for all features: rows by name and chunk, sizes by budget, and the twin without multiplexing."""

import pytest
import torch
from pydantic import ValidationError

from features.hashes import hash64, mix64
from recsys.embedding.table import EmbeddingTable, Reader
from recsys.embedding.unified import UnifiedTable, slice_rows


def reader(name: str, num_embeddings: int | None = None, chunks: int = 1) -> Reader:
    return Reader(name=name, salt=name, num_embeddings=num_embeddings, chunks=chunks)


def rows(spec: UnifiedTable, ids: torch.Tensor, *readers: Reader) -> dict[str, torch.Tensor]:
    return {name: table.rows(ids)["ids"] for name, table in spec.build("ids", readers).items()}


def only(spec: UnifiedTable, one: Reader) -> EmbeddingTable:
    return spec.build("ids", [one])[one.name]


def test_rows_are_the_stated_hash() -> None:
    ids = [0, 1, -5, 2**62]
    table = UnifiedTable(num_embeddings=97).build("ids", [reader("item", chunks=3)], seed=5)["item"]
    found = table.rows(torch.tensor(ids))["ids"]
    for place, raw in enumerate(ids):
        for chunk in range(3):
            salted = (raw + hash64(f"item#{chunk}", salt="salt#5") + 2**63) % 2**64 - 2**63
            assert int(found[place, chunk]) == mix64(salted, salt=0) % 97


def test_rows_of_one_id_differ_between_features_and_chunks() -> None:
    ids, count = torch.arange(20_000), 1000
    found = rows(UnifiedTable(num_embeddings=count), ids, reader("user"), reader("item", chunks=2))
    for one, other in [(found["user"][:, 0], found["item"][:, 0]), found["item"].unbind(1)]:
        meetings = float((one == other).float().mean())
        assert abs(meetings - 1 / count) < 4 * (1 / count / len(ids)) ** 0.5


def test_rows_fill_the_store_evenly() -> None:
    found = rows(UnifiedTable(num_embeddings=50), torch.arange(50_000), reader("user"))["user"]
    assert torch.bincount(found.flatten(), minlength=50).sub(1000).abs().max() < 5 * 1000**0.5


def test_rows_do_not_depend_on_other_features_or_their_order() -> None:
    spec, ids = UnifiedTable(num_embeddings=97), torch.arange(100)
    few = rows(spec, ids, reader("user"), reader("item", chunks=2))
    more = rows(spec, ids, reader("new"), reader("item", chunks=2), reader("user"))
    assert torch.equal(few["user"], more["user"])
    assert torch.equal(few["item"], more["item"])


def test_rows_follow_the_seed() -> None:
    ids = torch.arange(100)
    spec = UnifiedTable(num_embeddings=97)
    one, other = (spec.build("ids", [reader("a")], seed=seed)["a"].rows(ids)["ids"] for seed in (0, 2))
    assert not torch.equal(one, other)


def test_vector_is_the_chunks_side_by_side() -> None:
    spec = UnifiedTable(num_embeddings=11, chunk_dim=2)
    table, store = only(spec, reader("item", chunks=3)), torch.randn(11, 2)
    found = table(torch.tensor([7, 8]), {"ids": store})
    for place, chunks in enumerate(table.rows(torch.tensor([7, 8]))["ids"].tolist()):
        assert torch.equal(found[place], torch.cat([store[row] for row in chunks]))


def test_chunks_of_the_table_override_those_of_the_schema() -> None:
    assert only(UnifiedTable(num_embeddings=11, chunk_dim=2), reader("item", chunks=3)).embedding_dim == 6
    assert only(UnifiedTable(num_embeddings=11, chunk_dim=2, chunks=4), reader("item", chunks=3)).embedding_dim == 8


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (UnifiedTable(num_embeddings=77), 77),
        (UnifiedTable(budget="25MiB", chunk_dim=16), (25 * 2**20 - 16) // 64),
        (UnifiedTable(budget="158kB", chunk_dim=10, chunks=3), 3948),
        (UnifiedTable(budget="10%", chunk_dim=30), 1317),
        (UnifiedTable(budget="10%", chunk_dim=10, chunks=3), 3951),
    ],
)
def test_store_is_the_largest_within_the_budget(spec: UnifiedTable, count: int) -> None:
    readers = [reader("user", 6041), reader("movie", 7134)]
    (store,) = spec.build("ids", readers)["user"].stores
    assert store.num_embeddings == count
    assert store.num_bytes + 8 * sum(spec.chunks or one.chunks for one in readers) <= spec.max_bytes("ids", readers)


def test_budget_below_one_row_names_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"table 'ids': 100B is too small, the minimum is 128B: 1 rows of 30"):
        UnifiedTable(budget="100B", chunk_dim=30).build("ids", [reader("user", 5)])
    twin = UnifiedTable(num_embeddings=2, chunk_dim=4, multiplexed=False)
    with pytest.raises(ValueError, match=r"num_embeddings = 2 is too small, the minimum is 72B: 3 rows"):
        twin.build("ids", [reader(name, 5) for name in "abc"])


@pytest.mark.parametrize("sizes", [{}, {"budget": "1kB", "num_embeddings": 3}])
def test_size_is_given_exactly_once(sizes: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="exactly one of budget and num_embeddings"):
        UnifiedTable.model_validate(sizes)


def test_share_without_known_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the number of ids of 'word'"):
        UnifiedTable(budget="10%").build("ids", [reader("user", 5), reader("word")])


def test_twin_has_the_same_bytes_and_chunks() -> None:
    readers = [reader("user", 60, chunks=2), reader("item", 30), reader("sex", 2)]
    both = [UnifiedTable(budget="1kB", chunk_dim=4, multiplexed=kind).build("ids", readers) for kind in (True, False)]
    stores = [table["user"].stores for table in both]
    widths = [{name: table.embedding_dim for name, table in tables.items()} for tables in both]
    assert stores[0] == stores[1]
    assert widths[0] == widths[1] == {"user": 8, "item": 4, "sex": 4}


def test_twin_keeps_each_feature_in_its_slice() -> None:
    readers = [reader("user", 60, chunks=2), reader("item", 30), reader("sex", 2)]
    found = rows(UnifiedTable(num_embeddings=46, multiplexed=False), torch.arange(500), *readers)
    slices = slice_rows({"user": 60, "item": 30, "sex": 2}, 46)
    assert slices == {"item": (0, 15), "sex": (15, 1), "user": (16, 30)}
    for name, (start, count) in slices.items():
        assert found[name].unique().tolist() == list(range(start, start + count))


@pytest.mark.parametrize("total", [4, 5, 9, 10, 1000, 1001])
def test_slices_never_exceed_the_store(total: int) -> None:
    slices = slice_rows({"a": 5, "b": 5, "c": 5, "d": 1}, total)
    assert sum(count for _, count in slices.values()) <= total
    assert min(count for _, count in slices.values()) >= 1

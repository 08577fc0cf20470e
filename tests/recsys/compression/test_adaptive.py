"""Frequent ids have rows of their own, the others share; never both, and all of it within the budget."""

from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from features.hashes import mix64
from recsys.compression.adaptive import AdaptTable, OwnOrShared, frequent_ids, id_type
from recsys.embedding.dense import RowPerId
from recsys.embedding.layout import unique_stores
from recsys.embedding.stores import initial_weights
from recsys.embedding.table import Reader
from recsys.embedding.unified import HashedChunks, salt_of
from tests.recsys.compression.served import BUDGETS, VOCABULARIES, readers_of, served_bytes

SIZE = 200


def made(budget: str = "30%", **options: float) -> OwnOrShared:
    table = AdaptTable(embedding_dim=4, budget=budget, **options).build("ids", readers_of({"item": SIZE}), seed=5)[
        "item"
    ]
    assert isinstance(table, OwnOrShared)
    return table


def test_rows_are_a_dictionary_of_hot_ids_and_a_hash() -> None:
    table = made()
    own = {raw: row for row, raw in enumerate(table.hot.tolist())}
    found = table.rows(torch.arange(SIZE))["ids"].flatten().tolist()
    for raw in range(SIZE):
        hashed = int(mix64(torch.tensor([raw + salt_of("item", 0, 5)]).to(torch.int64), salt=0)[0])
        assert found[raw] == own.get(raw, len(own) + hashed % table.num_shared)


def test_hot_ids_are_the_most_frequent_of_equals_the_smaller() -> None:
    counts = {"b": torch.tensor([5, 9, 5, 0, 9, 5]), "a": torch.tensor([1, 5, 30])}

    def chosen(count: int) -> dict[str, list[int]]:
        return {name: ids.tolist() for name, ids in frequent_ids(counts, count).items()}

    assert chosen(0) == {"a": [], "b": []}
    assert chosen(3) == {"a": [2], "b": [1, 4]}
    assert chosen(4) == {"a": [1, 2], "b": [1, 4]}
    assert chosen(6) == {"a": [1, 2], "b": [0, 1, 2, 4]}


def test_an_own_row_is_of_one_id_and_shared_rows_are_of_all_others() -> None:
    table = made()
    hot = len(table.hot)
    uses = Counter(table.rows(torch.arange(SIZE))["ids"].flatten().tolist())
    assert all(uses[row] == 1 for row in range(hot))
    assert sum(uses[row] for row in range(hot, hot + table.num_shared)) == SIZE - hot
    assert set(uses) <= set(range(table.stores[0].num_embeddings))


@pytest.mark.parametrize("shared", [0.05, 0.2, 0.5, 0.95])
def test_the_declared_share_of_the_rows_is_shared(shared: float) -> None:
    table = made(shared=shared)
    rows = table.stores[0].num_embeddings
    assert shared * rows <= table.num_shared < shared * rows + 1
    assert len(table.hot) + table.num_shared == rows


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("sizes", VOCABULARIES, ids=str)
def test_served_bytes_stay_within_every_budget(sizes: dict[str, int], precision: str) -> None:
    readers = readers_of(sizes)
    for budget in BUDGETS:
        spec = AdaptTable(embedding_dim=5, budget=budget, precision=precision)
        try:
            tables = spec.build("ids", readers)
        except ValueError as error:
            least = str(error).rpartition(" ")[2]
            assert int(least.removesuffix("B")) > spec.max_bytes("ids", readers)
            tables = spec.model_copy(update={"budget": least}).build("ids", readers)  # what it names can be had
            assert served_bytes(tables) <= int(least.removesuffix("B"))
            continue
        assert served_bytes(tables) <= spec.max_bytes("ids", readers)


def test_one_more_row_would_not_fit() -> None:
    table = made()
    spare = 0.3 * 4 * 4 * SIZE - served_bytes({"item": table})
    assert 0 <= spare < 16 + 4


def test_own_rows_of_vocabularies_lie_side_by_side_and_shared_ones_are_of_all() -> None:
    sizes = {"a": 50, "b": 3, "c": 200}
    tables = AdaptTable(embedding_dim=4, budget="40%").build("ids", readers_of(sizes))
    assert len(unique_stores(tables.values())) == 1
    own: list[int] = []
    for name, table in tables.items():
        rows = table.rows(torch.arange(sizes[name]))["ids"].flatten()
        if isinstance(table, OwnOrShared):
            own += rows[rows < table.first_shared].tolist()
            assert torch.equal(rows[table.hot.long()], torch.arange(len(table.hot)) + table.start)
    assert own == list(range(len(own)))
    assert isinstance(tables["b"], HashedChunks)  # its ids are rare


def test_both_parts_get_gradients() -> None:
    table = made()
    weight = initial_weights(table.stores, seed=0)["ids"].requires_grad_()
    table(torch.arange(SIZE), {"ids": weight}).square().sum().backward()
    assert weight.grad is not None
    touched = weight.grad.any(1)
    assert touched[: len(table.hot)].all()
    assert touched[table.rows(torch.arange(SIZE))["ids"].flatten()].all()


def test_a_reader_without_counts_says_what_to_give() -> None:
    readers = readers_of({"item": SIZE}, counted=False)
    with pytest.raises(ValueError, match=r"adapt.*'item'.*counts of the train split.*method 'hash'"):
        AdaptTable(embedding_dim=4, budget="30%").build("ids", readers)
    whole = AdaptTable(embedding_dim=4, budget="100%").build("ids", readers)["item"]
    assert isinstance(whole, RowPerId)


def test_a_budget_for_shared_rows_alone_is_a_hash() -> None:
    assert isinstance(AdaptTable(embedding_dim=4, budget="30B").build("ids", readers_of({"a": 90}))["a"], HashedChunks)


def test_large_ids_are_listed_in_64_bits() -> None:
    assert (id_type(2**31), id_type(2**31 + 1)) == (torch.int32, torch.int64)
    store = made().stores[0]
    table = OwnOrShared("item", store, torch.tensor([3, 2**33]), (0, 2), 0, 2**34)
    assert table.rows(torch.tensor([2**33, 3, 2**33 % 2**32 + 4]))["ids"].flatten().tolist()[:2] == [1, 0]
    assert int(table.rows(torch.tensor([4]))["ids"]) >= 2


def test_rows_take_ids_of_any_layout() -> None:
    ids = torch.arange(SIZE)[::3]
    table = made()
    assert torch.equal(table.rows(ids)["ids"], table.rows(ids.clone())["ids"])


@pytest.mark.parametrize("shared", [0.0, 1.0, -0.1])
def test_the_share_lies_between_none_and_all(shared: float) -> None:
    with pytest.raises(ValidationError, match="shared"):
        AdaptTable(embedding_dim=4, budget="30%", shared=shared)


def test_hashed_features_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the number of ids of 'word'"):
        AdaptTable(embedding_dim=4, budget="1kB").build("ids", [Reader(name="word", salt="word")])

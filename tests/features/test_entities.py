"""The catalogue holds every entity once, in the order of ids, and answers for those that it does not know."""

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch import Jagged
from features.encoder import Encoder
from features.entities import EntityTable
from features.spec import FeatureSchema, parse_schema

Json = dict[str, Any]
ITEMS = pa.table(
    {
        "item": ["b", "a", "d"],
        "price": [1.0, 4.0, None],
        "brand": ["x", "y", None],
        "tags": [["p"], ["q", "p"], None],
        "title": ["B", "A", "D"],
    }
)


def schema_of(**changes: Json) -> FeatureSchema:
    features: Json = {
        "user": {"table": "ids"},
        "item": {"table": "ids"},
        "price": {"kind": "dense", "entity": "item", "missing": 2.0},
        "brand": {"table": "ids", "entity": "item"},
        "tags": {"table": "ids", "kind": "id_list", "entity": "item"},
    }
    tables = {name: spec | changes.get(name, {}) for name, spec in features.items()}
    return parse_schema({"name": "x", "user": "user", "item": "item", "features": tables}, "x")


def table_of(extra_ids: Any = ("c",), raw: pa.Table = ITEMS, **changes: Json) -> EntityTable:
    schema = schema_of(**changes)
    counts = {"user": ([1, 2], [1, 1]), "item": (["a", "b"], [3, 2])}
    counts |= {"brand": (["x", "y", None], [1, 1, 1]), "tags": (["p", "q"], [1, 1])}
    encoder = Encoder.from_counts(schema, {name: counts[name] for name in schema.vocabularies})
    return EntityTable.build(schema, encoder, "item", raw, extra_ids)


def lists_of(column: Any) -> list[list[int]]:
    assert isinstance(column, Jagged)
    return [part.tolist() for part in column.values.split(column.lengths.tolist())]


def test_catalogue_is_the_sorted_union_with_the_unknown_last() -> None:
    table = table_of(["c", "a", None, "c"])
    assert table.raw_ids.tolist() == ["a", "b", "c", "d"]
    assert len(table) == 4
    assert table.features.ids("item").tolist() == [1, 2, 0, 0, 0], "c and d are cold: not in train"
    assert table.features.ids("price").tolist() == [4.0, 1.0, 2.0, 2.0, 2.0]
    assert table.features.ids("brand").tolist() == [3, 2, 1, 1, 1]
    assert lists_of(table.features["tags"]) == [[2, 1], [1], [], [], []]


def test_attributes_stay_raw_and_are_null_where_unknown() -> None:
    table = table_of()
    assert table.column("item").to_pylist() == ["a", "b", "c", "d"]
    assert table.column("title").to_pylist() == ["A", "B", None, "D"]
    with pytest.raises(ValueError, match=r"items have no attribute 'colour'; they have \['item', 'price'"):
        table.column("colour")


def test_positions_and_raw_are_inverse() -> None:
    table = table_of()
    positions = table.positions(["d", "zz", None, "a"])
    assert positions.tolist() == [3, -1, -1, 0]
    assert table.raw(positions).tolist() == ["d", None, None, "a"]
    assert table.raw(torch.tensor([1, 1])).tolist() == ["b", "b"]
    with pytest.raises(ValueError, match="holds strings, got ids of type int64"):
        table.positions([1])


@settings(deadline=None)
@given(listed=st.sets(st.integers(-50, 50)), extra=st.lists(st.integers(-50, 50)), asked=st.lists(st.integers(-60, 60)))
def test_positions_equal_a_sorted_list(listed: set[int], extra: list[int], asked: list[int]) -> None:
    schema = schema_of()
    counts = {"user": ([0], [1]), "item": ([0], [1]), "brand": ([0], [1]), "tags": ([0], [1])}
    users = pa.table({"user": pa.array(list(listed), pa.int64())})
    table = EntityTable.build(schema, Encoder.from_counts(schema, counts), "user", users, extra)
    expected = sorted(listed | set(extra))
    assert table.raw_ids.tolist() == expected
    assert table.positions(asked).tolist() == [expected.index(v) if v in expected else -1 for v in asked]
    assert table.features.ids("user").tolist() == [int(v == 0) for v in expected] + [0]


def test_gather_gives_the_unknown_row_for_minus_one() -> None:
    table = table_of()
    batch = table.gather(torch.tensor([1, -1, 0]))
    assert batch.ids("price").tolist() == [1.0, 2.0, 4.0]
    assert lists_of(batch["tags"]) == [[1], [], [2, 1]]
    assert set(table.gather(torch.tensor([0]), ["price"]).features) == {"price"}
    for outside in (4, -2):
        with pytest.raises(ValueError, match=r"item positions span .* accepted -1\.\.3"):
            table.gather(torch.tensor([outside]))


def test_save_load_round_trips(tmp_path: Path) -> None:
    table = table_of()
    table.save(tmp_path / "items")
    loaded = EntityTable.load(tmp_path / "items")
    assert list(loaded.features.features) == list(table.features.features)
    assert loaded.attributes.equals(table.attributes)
    assert loaded.raw_ids.tolist() == table.raw_ids.tolist()
    for name in ("item", "price", "brand"):
        assert torch.equal(loaded.features.ids(name), table.features.ids(name))
    assert lists_of(loaded.features["tags"]) == lists_of(table.features["tags"])


@pytest.mark.parametrize("name", ["attributes.parquet", "features.safetensors"])
def test_load_refuses_a_flipped_byte(tmp_path: Path, name: str) -> None:
    table_of().save(tmp_path / "items")
    data = bytearray((tmp_path / "items" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "items" / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        EntityTable.load(tmp_path / "items")


def test_entities_without_a_table_have_their_id_alone() -> None:
    schema = schema_of()
    counts = {"user": ([1, 2], [1, 1]), "item": (["a"], [1]), "brand": ([1], [1]), "tags": ([1], [1])}
    encoder = Encoder.from_counts(schema, counts)
    users = EntityTable.build(schema, encoder, "user", None, pa.array([7, 2, 7]))
    assert users.raw_ids.tolist() == [2, 7]
    assert users.features.ids("user").tolist() == [2, 0, 0]
    assert len(EntityTable.build(schema, encoder, "user", None)) == 0
    with pytest.raises(ValueError, match=r"\['price', 'brand', 'tags'\] belong to the item, so a table of items"):
        EntityTable.build(schema, encoder, "item", None, ["a"])


def test_values_that_may_not_be_missing_are_the_median_for_the_unknown() -> None:
    whole = ITEMS.slice(0, 2)
    table = table_of((), raw=whole, price={"missing": "refuse"}, brand={"missing": "refuse"})
    assert table.features.ids("price").tolist() == [4.0, 1.0, 1.0]
    assert table.features.ids("brand").tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match=r"\['price'\] refuse missing values, but id 'c' has no row"):
        table_of(["c"], raw=whole, price={"missing": "refuse"})
    with pytest.raises(ValueError, match="feature 'price', row 2: the value is missing"):
        table_of((), price={"missing": "refuse"})


def test_hashed_and_bucketised_features_of_the_unknown() -> None:
    buckets = {
        "kind": "id",
        "table": "ids",
        "missing": "own_id",
        "transforms": [{"kind": "bucketise", "boundaries": [2]}],
    }
    table = table_of(price=buckets, brand={"hashed": True})
    assert table.features.ids("price").tolist() == [2, 1, 0, 0, 0]
    assert len(table.features.ids("brand")[2:].unique()) == 1


def test_unknown_is_refused_where_unseen_ids_are() -> None:
    table = table_of((), raw=ITEMS.slice(0, 2), item={"unseen": "refuse"})
    assert table.refusing == ("item",)
    assert table.gather(torch.tensor([-1]), ["brand"]).ids("brand").tolist() == [1]
    with pytest.raises(ValueError, match=r"features \['item'\] have no row for an unknown item"):
        table.gather(torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="feature 'item', row 2: vocabulary 'item' has no such id, got 'c'"):
        table_of(["c"], raw=ITEMS.slice(0, 2), item={"unseen": "refuse"})


@pytest.mark.parametrize(
    ("raw", "extra", "message"),
    [
        (pa.concat_tables([ITEMS, ITEMS]), (), "the item table: id 'b' stands twice"),
        (ITEMS, [1], "item ids are large_string in the item table and int64 in the events"),
        (ITEMS.drop(["item"]), (), r"lacks the id column 'item'; it has \['price'"),
        (ITEMS.drop(["brand"]), (), "feature 'brand' reads column 'brand', which the table lacks"),
        (ITEMS.set_column(0, "item", [["b", None, "d"]]), (), "the item table, row 1: the id .* is missing"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(raw: pa.Table, extra: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_of(extra, raw=raw)


def encoder_of(**more: Json) -> Encoder:
    counts = {"user": ([1, 2], [1, 1]), "item": (["a", "b"], [3, 2])}
    counts |= {"brand": (["x", "y", None], [1, 1, 1]), "tags": (["p", "q"], [1, 1])}
    return Encoder.from_counts(schema_of(**more), counts)


def test_grown_keeps_positions_and_appends() -> None:
    table = table_of(["c"])
    encoder = encoder_of().grown({"item": (["zz", "aa", "c"], [1, 1, 1]), "brand": (["w"], [2])})
    later = pa.table({"item": ["zz", "b"], "brand": ["w", "y"], "price": [None, 7], "weight": [1.5, 2.5]})
    grown = table.grown(encoder, later, ["aa", "a", None])
    assert grown.raw_ids.tolist() == ["a", "b", "c", "d", "aa", "zz"]
    assert torch.equal(grown.positions(table.raw_ids), table.positions(table.raw_ids))
    assert grown.features.ids("item").tolist() == [1, 2, 4, 0, 3, 5, 0]
    assert grown.features.ids("price").tolist() == [4.0, 7.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert grown.features.ids("brand").tolist() == [3, 3, 1, 1, 1, 4, 1]
    assert lists_of(grown.features["tags"]) == [*lists_of(table.features["tags"])[:-1], [], [], []]
    assert grown.column("title").to_pylist() == ["A", "B", None, "D", None, None], "b's is kept"
    assert grown.column("weight").to_pylist() == [None, 2.5, None, None, None, 1.5]


def test_grown_by_nothing_is_the_same() -> None:
    table = table_of(price={"missing": "refuse"}, raw=ITEMS.slice(0, 2), extra_ids=())
    same = table.grown(encoder_of(price={"missing": "refuse"}), None)
    assert same.raw_ids.tolist() == table.raw_ids.tolist()
    for name in ("item", "price", "brand"):
        assert torch.equal(same.features.ids(name), table.features.ids(name)), "the unknown item's median too"
    assert same.attributes.select(ITEMS.column_names).equals(table.attributes)


def test_grown_from_an_empty_table_equals_built() -> None:
    schema, encoder = schema_of(), encoder_of()
    empty = EntityTable.build(schema, encoder, "item", ITEMS.slice(0, 0))
    grown, built = empty.grown(encoder, ITEMS, ["c"]), table_of()
    assert grown.raw_ids.tolist() == built.raw_ids.tolist()
    assert grown.attributes.equals(built.attributes)
    assert torch.equal(grown.features.ids("item"), built.features.ids("item"))


def test_grown_keeps_what_an_unknown_entity_is() -> None:
    table = table_of((), raw=ITEMS.slice(0, 2), price={"missing": "refuse"})
    later = pa.table({"item": ["e", "f"], "price": [90.0, 91.0]})
    grown = table.grown(encoder_of(price={"missing": "refuse"}), later)
    assert grown.features.ids("price").tolist() == [4.0, 1.0, 90.0, 91.0, 1.0]
    with pytest.raises(ValueError, match=r"\['price'\] refuse missing values, but id 'g' has no row"):
        table.grown(encoder_of(price={"missing": "refuse"}), later, ["g"])
    with pytest.raises(ValueError, match="holds strings, got ids of type int64"):
        table.grown(encoder_of(), None, [1])


@pytest.mark.parametrize("entity", ["user", "item"])
def test_entities_are_named_in_messages(entity: Literal["user", "item"]) -> None:
    schema = parse_schema({"name": "x", entity: "i", "features": {"i": {"table": "ids"}}}, "x")
    table = EntityTable.build(schema, Encoder.from_counts(schema, {"i": ([1], [1])}), entity, None, [1])
    with pytest.raises(ValueError, match=f"{entity}s have no attribute"):
        table.column("x")

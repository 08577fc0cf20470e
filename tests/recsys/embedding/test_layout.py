"""From a schema to readers, tables and stores."""

from typing import Any

import pytest
import torch

from features.spec import FeatureSchema, parse_schema
from recsys.embedding.dense import DenseTable
from recsys.embedding.layout import Layout, readers_by_table
from recsys.embedding.table import Reader, TableSpec
from recsys.embedding.unified import UnifiedTable
from tests.recsys.embedding.small_schema import SCHEMA, SPECS, Ids


def schema(**features: dict[str, Any]) -> FeatureSchema:
    return parse_schema({"name": "s", "features": features}, where="test")


def test_features_of_one_vocabulary_share_a_table() -> None:
    layout = Layout.build(Ids(), SPECS, seed=0)
    assert layout.table_of["item"] == layout.table_of["history"] == "odd/item"
    assert layout.table_of["tag"] == layout.table_of["score"] == "thirty/tag"
    assert layout.table_of["word"] != layout.table_of["query"]
    assert "price" not in layout.table_of


def test_hashed_features_share_what_they_name() -> None:
    shared = schema(word={"table": "ids", "hashed": True}, query={"table": "ids", "hashed": True, "shares": "word"})
    assert list(readers_by_table(shared)["ids"].values()) == [["word", "query"]]


def test_readers_know_what_the_encoder_knows() -> None:
    ((reader, features),) = readers_by_table(Ids())["odd"].items()
    assert (reader.name, reader.num_embeddings, reader.chunks, features) == ("item", 41, 1, ["item", "history"])
    ((bare, _),) = readers_by_table(SCHEMA)["odd"].items()
    assert bare.num_embeddings is None


def test_one_vocabulary_in_two_tables_is_two_tables() -> None:
    both = schema(item={"table": "deep"}, linear={"table": "wide", "vocabulary": "item"})
    specs: dict[str, TableSpec] = {"deep": DenseTable(embedding_dim=8), "wide": DenseTable(embedding_dim=1)}
    layout = Layout.build(Ids(both, {"item": 5}), specs, seed=0)
    assert [store.name for store in layout.stores] == ["deep.item", "wide.item"]


def test_a_hashed_feature_may_not_take_the_name_of_a_vocabulary() -> None:
    twice = schema(item={"table": "ids", "hashed": True}, seen={"table": "ids", "vocabulary": "item"})
    with pytest.raises(ValueError, match=r"share the ids of 'item' in table 'ids' must agree"):
        readers_by_table(twice)


@pytest.mark.parametrize(
    ("specs", "says"),
    [({}, "table 'ids' is missing: named"), ({"ids": 1, "other": 1}, "table 'other' has no reader: named")],
)
def test_specifications_and_schema_must_name_the_same_tables(specs: dict[str, int], says: str) -> None:
    given: dict[str, TableSpec] = {name: UnifiedTable(num_embeddings=4) for name in specs}
    with pytest.raises(ValueError, match=says):
        Layout.build(schema(item={"table": "ids"}), given, seed=0)


def test_stores_of_one_name_must_be_one_store() -> None:
    class Clash(TableSpec):
        def build(self, name, readers, seed=0):  # type: ignore[no-untyped-def]
            sizes = [Reader(name="all", salt="", num_embeddings=3 + place) for place in range(len(readers))]
            tables = [DenseTable(embedding_dim=2).build(name, [one])["all"] for one in sizes]
            return dict(zip([reader.name for reader in readers], tables, strict=True))

    layout = Layout.build(schema(a={"table": "ids"}, b={"table": "ids"}), {"ids": Clash()}, seed=0)
    with pytest.raises(ValueError, match=r"store 'ids\.all' is declared twice"):
        _ = layout.stores


def test_accesses_are_known_where_no_list_reads() -> None:
    accesses = Layout.build(Ids(), SPECS, seed=0).accesses()
    assert accesses == {"wide.user": 1, "odd.item": None, "thirty.tag": None, "single.bias": 1, "shared": None}


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Layout.build(Ids(), SPECS, seed=0)
    assert torch.equal(torch.rand(3), expected)

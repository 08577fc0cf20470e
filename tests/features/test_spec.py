"""A schema round-trips, and refuses in one line what it does not understand or what would have no effect."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.spec import (
    Bucketise,
    Clip,
    FeatureSchema,
    FeatureSpec,
    LabelSpec,
    Log1p,
    SequenceGroup,
    Standardise,
    parse_schema,
)

SCHEMAS = Path(__file__).resolve().parents[2] / "configs" / "schemas"
TEXT = """
name = "shop"
user = "user"
item = "item"
timestamp = "at"

[features.user]
table = "ids"

[features.item]
table = "ids"
column = "item id"
chunks = 2

[features.category]
table = "ids"
entity = "item"

[features.price]
kind = "dense"
missing = 0
transforms = [{ kind = "log1p" }, { kind = "standardise" }]

[sequences.past]
of = { history = "item", history_category = "category" }
max_length = 3

[labels.click]
column = "clicked"
"""


def shop(**changes: Any) -> FeatureSchema:
    return parse_schema(tomllib.loads(TEXT) | changes, "shop.toml")


def feature(**values: Any) -> FeatureSpec:
    return FeatureSpec.model_validate({"name": "f"} | values)


def test_schema_loads_from_toml(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(TEXT)
    schema = FeatureSchema.load(tmp_path / "shop.toml")
    assert schema == shop()
    assert schema.feature("item").column == "item id"
    assert schema.labels[0].column == "clicked"
    assert [spec.name for spec in schema.inputs] == ["user", "item", "category", "price", "history", "history_category"]


def test_schema_json_round_trips() -> None:
    schema = shop()
    assert FeatureSchema.from_json(schema.to_json()) == schema
    assert FeatureSchema.from_json(schema.to_json()).content_hash == schema.content_hash
    assert shop(name="other").content_hash != schema.content_hash


FEATURES = st.builds(
    lambda kind, column, entity, ids: feature(
        kind=kind, column=column, entity=entity, **({} if kind == "dense" else ids)
    ),
    st.sampled_from(["id", "id_list", "id_score_list", "dense"]),
    st.text(min_size=1, max_size=5),
    st.sampled_from(["user", "item", "event"]),
    st.fixed_dictionaries({"table": st.just("t"), "chunks": st.integers(1, 4), "hashed": st.booleans()}),
)  # fmt: skip


@settings(deadline=None)
@given(spec=FEATURES)
def test_feature_json_round_trips(spec: FeatureSpec) -> None:
    schema = FeatureSchema(name="x", features=(spec,))
    assert FeatureSchema.from_json(schema.to_json()).features == (spec,)


def test_role_features_belong_to_their_entity() -> None:
    given_as_objects = FeatureSchema(
        name="x", user="u", item="i", features=(FeatureSpec(name="u", table="t"), FeatureSpec(name="i", table="t"))
    )
    for schema in (shop(), given_as_objects):
        assert [schema.feature(name).entity for name in (schema.user, schema.item)] == ["user", "item"]
    assert [spec.name for spec in shop().of_entity("item")] == ["item", "category"]


def test_sequences_read_what_they_repeat() -> None:
    schema = shop()
    history = schema.feature("history")
    assert (history.kind, history.vocabulary, history.table, history.chunks) == ("id_list", "item", "ids", 2)
    assert history.max_length == 3
    assert history.salt == schema.feature("item").salt
    assert schema.source("history").name == "item"
    assert schema.source("price").name == "price"


def test_hashed_features_share_salts_by_name() -> None:
    tables = tomllib.loads(TEXT)["features"]
    tables["item"]["hashed"] = True
    tables["clicked"] = {"kind": "id_list", "table": "ids", "hashed": True, "shares": "item", "chunks": 2}
    schema = shop(features=tables)
    assert {schema.feature(name).salt for name in ("item", "clicked", "history")} == {"item"}
    assert schema.feature("history").hashed
    assert list(schema.vocabularies) == ["user", "category"]


REPEATED = {"history": "item", "history_category": "category", "history_action": "action"}
PAST: dict[str, Any] = {"of": REPEATED, "max_length": 3}


def with_actions(**age: Any) -> FeatureSchema:
    named = {"age": {"name": "history_age", "by": "position", "table": "ages", "chunks": 2} | age} if age else {}
    return shop(**with_feature("action", history_only=True), sequences={"past": PAST | named})


def test_features_of_past_events_are_no_inputs_of_their_own() -> None:
    schema = with_actions()
    assert [spec.name for spec in schema.inputs] == ["user", "item", "category", "price", *REPEATED]
    assert "action" in schema.vocabularies
    assert schema.feature("history_action").vocabulary == "action"


def test_age_is_an_input_with_ids_of_its_own() -> None:
    schema = with_actions(by="time")
    spec = schema.feature("history_age")
    assert schema.inputs[-1] == schema.source("history_age") == spec
    assert (spec.kind, spec.table, spec.chunks, spec.salt, spec.max_length) == ("id_list", "ages", 2, "history_age", 3)
    assert "history_age" not in schema.vocabularies
    assert schema.ages == {"history_age": schema.sequences[0].age}
    assert FeatureSchema.from_json(schema.to_json()) == schema


def test_alignment_pairs_what_the_target_has() -> None:
    found = with_actions(by="position").alignment("past")
    assert found.pairs == {"item": "history", "category": "history_category"}
    assert found.alone == ("history_action", "history_age")
    with pytest.raises(ValueError, match=r"no sequence group 'clicks', it has \['past'\]"):
        with_actions().alignment("clicks")


def test_new_settings_leave_old_schemas_as_they_were() -> None:
    """Prepared folders and bundles are named by this hash."""
    expected = "46a04d886c8144d2a65ff10e85eb7ad1471ff97342732a66fa207a21c002793b"
    assert FeatureSchema.load(SCHEMAS / "demo.toml").content_hash == expected


def test_vocabularies_name_their_readers() -> None:
    tables = tomllib.loads(TEXT)["features"]
    tables["wish"] = {"kind": "id_list", "table": "ids", "vocabulary": "item", "chunks": 2}
    tables["age"] = {"table": "ids", "transforms": [{"kind": "bucketise", "boundaries": [18, 30]}]}
    readers = {name: [spec.name for spec in specs] for name, specs in shop(features=tables).vocabularies.items()}
    assert readers == {"user": ["user"], "item": ["item", "wish"], "category": ["category"]}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "needs a table"),
        ({"kind": "dense", "table": "ids"}, "reads no table"),
        ({"kind": "dense", "chunks": 2}, "are for ids"),
        ({"kind": "dense", "missing": "own_id"}, "own_id' is for ids"),
        ({"kind": "dense", "unseen": "refuse"}, "unseen and min_count"),
        ({"table": "ids", "pooling": "sum"}, "are for lists"),
        ({"table": "ids", "max_length": 3}, "are for lists"),
        ({"table": "ids", "separator": ","}, "separator is for lists"),
        ({"table": "ids", "kind": "id_list", "separator": ""}, "cannot separate"),
        ({"table": "ids", "kind": "id_score_list", "separator": ":"}, "cannot separate"),
        ({"table": "ids", "missing": 0.0}, "for kind 'dense'"),
        ({"table": "ids", "hashed": True, "vocabulary": "v"}, "keep no vocabulary"),
        ({"table": "ids", "hashed": True, "min_count": 2}, "unseen and min_count"),
        ({"table": "ids", "shares": "g"}, "for hashed ids"),
        ({"table": "ids", "transforms": (Log1p(),)}, "must end in bucketise"),
        ({"kind": "dense", "transforms": (Bucketise(num_buckets=3),)}, "bucketise is for kind 'id'"),
        ({"table": "ids", "transforms": (Bucketise(num_buckets=3), Log1p())}, "must come last"),
        ({"kind": "dense", "transforms": (Standardise(), Standardise())}, "each stand once"),
        ({"table": "ids", "name": "a.b"}, "name 'a.b' must consist of"),
        ({"table": "ids", "vocabulary": "../v"}, "vocabulary '../v' must consist of"),
        ({"table": "ids.x"}, "table 'ids.x' must consist of"),
        ({"table": "ids", "history_only": True, "entity": "item"}, "history_only is for ids of events"),
        ({"table": "ids", "history_only": True, "kind": "id_list"}, "history_only is for ids of events"),
    ],
)  # fmt: skip
def test_feature_settings_without_effect_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        feature(**values)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Clip(low=2, high=1), "low <= high"),
        (lambda: Clip(low=0, high=float("inf")), "finite"),
        (lambda: Bucketise(), "either boundaries or num_buckets"),
        (lambda: Bucketise(boundaries=(1,), num_buckets=2), "either boundaries or num_buckets"),
        (lambda: Bucketise(boundaries=(2, 1)), "must rise"),
        (lambda: LabelSpec(name="y", positive=(1,), positive_from=2), "either positive or positive_from"),
    ],
)  # fmt: skip
def test_transforms_and_labels_refuse_contradictions(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


def with_feature(name: str, **values: Any) -> dict[str, Any]:
    tables = tomllib.loads(TEXT)["features"]
    return {"features": tables | {name: tables.get(name, {"table": "ids"}) | values}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user": "who"}, "user = 'who' must name a feature"),
        ({"user": "price"}, "user = 'price' must name a feature of kind 'id'"),
        (with_feature("user", entity="item"), "that feature's entity is 'item'"),
        (with_feature("history"), r"feature names must be unique, \['history'\]"),
        ({"sequences": {"past": {"of": {"h": "item"}, "max_length": 3, "label": "buy"}}}, "names label 'buy'"),
        ({"sequences": {"past": {"of": {}, "max_length": 3}}}, "repeats no feature"),
        ({"sequences": {"past": {"of": {"h": "user"}, "max_length": 3}}}, "must be an id of an item or event"),
        ({"sequences": {"past": {"of": {"h": "itm"}, "max_length": 3}}}, "did you mean 'item'"),
        ({"item": "", "sequences": {"past": {"of": {"h": "item"}, "max_length": 3}}}, "needs `user` and `item`"),
        (with_feature("b", vocabulary="item", unseen="refuse", chunks=2), "'item' differ in unseen"),
        (with_feature("b", vocabulary="item", min_count=2, chunks=2), "'item' differ in min_count"),
        (with_feature("b", vocabulary="item"), "differ in chunks"),
        (with_feature("b", vocabulary="item", transforms=[{"kind": "bucketise", "num_buckets": 2}]), "is bucketised"),
        (with_feature("b", hashed=True, shares="item"), "must be hashed"),
        (with_feature("b", history_only=True), "'b' is history_only, but no sequence repeats it"),
        ({"sequences": {"past": {"of": {"h": "item", "i": "item"}, "max_length": 3}}}, "repeats a feature twice"),
        ({"sequences": {"past": PAST | {"age": {"name": "item", "by": "time", "table": "t"}}}}, "must be unique"),
    ],
)  # fmt: skip
def test_schema_parts_that_disagree_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        shop(**changes)
    assert "shop.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_feature("user", tabel="ids"), "features.user: tabel: unknown key 'tabel', did you mean 'table'"),
        ({"featurs": {}}, "featurs: unknown key 'featurs', did you mean 'features'"),
        (with_feature("price", transforms=[{"kind": "clip", "lov": 1}]), "features.price: transforms.0.clip"),
        (with_feature("price", kind="number"), "features.price: kind: Input should be"),
        ({"features": [1]}, r"features must be tables, one per name: \[features.NAME\]"),
        ({"labels": {"click": 3}}, r"labels must be tables, one per name: \[labels.NAME\]"),
    ],
)  # fmt: skip
def test_schema_typos_name_place_and_nearest_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shop(**changes)


def test_schema_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ValueError, match=r"bad.toml is not TOML"):
        FeatureSchema.load(tmp_path / "bad.toml")


def test_schema_unknown_feature_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="has no feature 'prize', did you mean 'price'"):
        shop().feature("prize")


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SequenceGroup(name="s", of={"h": "item"}, max_length=1).max_length = 2  # type: ignore[misc]

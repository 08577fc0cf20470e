"""Encoding equals a naive loop over rows; policies for missing and unseen values hold; messages name what is wrong."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch import Jagged
from features.columns import as_table
from features.encoder import Encoder, Statistic
from features.hashes import hash64, mix64
from features.spec import FeatureSchema, FeatureSpec, parse_schema
from features.vocab import Vocabulary

Json = dict[str, Any]


def schema_of(
    labels: Json | None = None, sequences: Json | None = None, roles: Json | None = None, **of: Json
) -> FeatureSchema:
    """A schema of the features given by keyword; ids read the table "ids"."""
    tables = {name: ({} if spec.get("kind") == "dense" else {"table": "ids"}) | spec for name, spec in of.items()}
    values = {"name": "x", "features": tables, "labels": labels or {}, "sequences": sequences or {}}
    return parse_schema(values | (roles or {}), "x")


def lists_of(column: Any) -> list[list[int]]:
    assert isinstance(column, Jagged)
    return [part.tolist() for part in column.values.split(column.lengths.tolist())]


def encoded(schema: FeatureSchema, train: dict[str, Any], asked: dict[str, Any] | None = None) -> Any:
    encoder = Encoder.fit(schema, pa.table(train))
    table = pa.table(train if asked is None else asked)
    name = schema.inputs[-1].name
    return encoder.encode(table, [name])[name]


IDS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), min_size=1, max_size=12)


@settings(deadline=None)
@given(train=IDS, asked=IDS, min_count=st.integers(1, 2))
def test_id_rows_equal_a_loop(train: list[Any], asked: list[Any], min_count: int) -> None:
    frequent = {value for value in train if train.count(value) >= min_count}
    order = [None] * (None in frequent) + sorted(frequent - {None})
    expected = [order.index(value) + 1 if value in frequent else 0 for value in asked]
    column = encoded(schema_of(f={"min_count": min_count}), {"f": train}, {"f": asked})
    assert column.tolist() == expected
    assert column.dtype == torch.int64


LISTS = st.lists(st.one_of(st.none(), st.lists(st.sampled_from("abcd"), max_size=5)), min_size=1, max_size=8)


@settings(deadline=None)
@given(rows=LISTS, max_length=st.integers(1, 4))
def test_id_lists_equal_in_arrow_text_and_a_loop(rows: list[list[str] | None], max_length: int) -> None:
    order = sorted({value for row in rows for value in (row or [])[-max_length:]})
    expected = [[order.index(value) + 1 for value in (row or [])[-max_length:]] for row in rows]
    schema = schema_of(f={"kind": "id_list", "max_length": max_length})
    as_text = [None if row is None else "|".join(row) for row in rows]
    assert lists_of(encoded(schema, {"f": pa.array(rows, pa.list_(pa.string()))})) == expected
    assert lists_of(encoded(schema, {"f": pa.array(as_text, pa.string())})) == expected


def test_id_score_lists_equal_in_arrow_and_text() -> None:
    schema = schema_of(f={"kind": "id_score_list", "separator": ";"})
    structs = pa.array([[{"id": "a:x", "score": 0.5}, {"id": "b", "score": -2}], None, []])
    columns = [encoded(schema, {"f": structs}), encoded(schema, {"f": ["a:x:.5;;b:-2", None, ""]})]
    for column in columns:
        assert lists_of(column) == [[1, 2], [], []]
        assert column.weights.tolist() == [0.5, -2.0]


@pytest.mark.parametrize(
    "rows",
    [
        pa.array([[1, 2], [3, 1]], pa.list_(pa.int64(), 2)),
        pa.array([[1, 2], [3, 1]], pa.large_list(pa.int32())),
        pa.chunked_array([[[1, 2]], [[3, 1]]]),
        pa.array([[9, 9], [1, 2], [3, 1]], pa.list_(pa.int64()))[1:],
        pd.Series([[1, 2], [3, 1]]),
    ],
    ids=["fixed size", "large", "chunked", "sliced", "pandas"],
)
def test_id_lists_in_every_arrow_form(rows: Any) -> None:
    assert lists_of(encoded(schema_of(f={"kind": "id_list"}), {"f": rows})) == [[1, 2], [3, 1]]


def test_text_lists_hold_integers_where_the_vocabulary_does() -> None:
    schema = schema_of(item={}, seen={"kind": "id_list", "vocabulary": "item"})
    encoder = Encoder.fit(schema, pd.DataFrame({"item": [10, 2, 10], "seen": ["2|7", "", "10"]}))
    assert encoder.vocabularies["item"].raw_ids.tolist() == [2, 7, 10]
    assert lists_of(encoder.encode(pa.table({"seen": ["7|2|3"]}), ["seen"])["seen"]) == [[2, 1, 0]]


def test_null_elements_of_lists_follow_the_policy() -> None:
    rows = pa.array([["a", None], ["b"]])
    assert lists_of(encoded(schema_of(f={"kind": "id_list"}), {"f": rows})) == [[2, 1], [3]]
    with pytest.raises(ValueError, match="feature 'f', row 0: the value is missing"):
        encoded(schema_of(f={"kind": "id_list", "missing": "refuse"}), {"f": rows})
    with pytest.raises(ValueError, match="feature 'f', row 1: the value is missing"):
        encoded(schema_of(f={"kind": "id_list", "missing": "refuse"}), {"f": [["a"], None]})


NUMBERS = st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(0, 1e6)), min_size=1, max_size=12)


@settings(deadline=None)
@given(rows=NUMBERS)
def test_dense_transforms_equal_a_loop(rows: list[float | None]) -> None:
    transforms = [{"kind": "clip", "low": 1, "high": 500}, {"kind": "log1p"}, {"kind": "standardise"}]
    column = encoded(
        schema_of(f={"kind": "dense", "missing": 3, "transforms": transforms}), {"f": pa.array(rows, pa.float64())}
    )
    logs = [None if v is None or math.isnan(v) else math.log1p(min(max(v, 1), 500)) for v in rows]
    present = [v for v in logs if v is not None]
    mean = sum(present) / len(present) if present else 0.0
    std = math.sqrt(sum((v - mean) ** 2 for v in present) / len(present)) if present else 1.0
    constant = bool(present) and min(present) == max(present)
    expected = [0.0 if constant else ((math.log1p(3) if v is None else v) - mean) / std for v in logs]
    assert column.dtype == torch.float32
    torch.testing.assert_close(column.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "values", [[1, 2], [True, False], pa.array([1, 2], pa.decimal128(5, 2)), pa.array([1, 2], pa.int8())]
)
def test_dense_takes_every_kind_of_number(values: Any) -> None:
    assert encoded(schema_of(f={"kind": "dense"}), {"f": values}).tolist() == [
        float(v) for v in pa.array(values).to_pylist()
    ]


@settings(deadline=None)
@given(rows=NUMBERS, own=st.booleans())
def test_buckets_equal_a_loop(rows: list[float | None], own: bool) -> None:
    boundaries = [10.0, 100.0, 5e5]
    spec = {"transforms": [{"kind": "bucketise", "boundaries": boundaries}], "missing": "own_id" if own else "refuse"}
    present = [v for v in rows if v is not None and not math.isnan(v)]
    values: list[float | None] = list(rows) if own else [*(present or [1.0])]
    expected = [0 if v is None or math.isnan(v) else sum(v >= bound for bound in boundaries) + own for v in values]
    encoder = Encoder.fit(schema_of(f=spec), pa.table({"f": pa.array(values, pa.float64())}))
    column = encoder.encode(pa.table({"f": pa.array(values, pa.float64())}), ["f"])["f"]
    assert isinstance(column, torch.Tensor)
    assert column.tolist() == expected
    assert encoder.num_embeddings("f") == len(boundaries) + 1 + own
    counts = encoder.counts("f")
    assert counts is not None
    assert counts.tolist() == [0] * own + [expected.count(row) for row in range(own, len(boundaries) + 1 + own)]


def test_quantile_buckets_hold_equal_shares() -> None:
    values = np.random.default_rng(0).permutation(1000)
    encoder = Encoder.fit(
        schema_of(f={"transforms": [{"kind": "bucketise", "num_buckets": 4}]}), pa.table({"f": values})
    )
    assert encoder.num_embeddings("f") == 5
    assert encoder.counts("f").tolist() == [0, 250, 250, 250, 250]  # type: ignore[union-attr]
    assert encoder.statistics["f"].boundaries == tuple(np.quantile(values, [0.25, 0.5, 0.75]))


def test_quantiles_of_a_constant_column_make_one_bucket() -> None:
    encoder = Encoder.fit(
        schema_of(f={"transforms": [{"kind": "bucketise", "num_buckets": 4}]}), pa.table({"f": [7, 7]})
    )
    assert encoder.num_embeddings("f") == 2
    assert encoder.counts("f").tolist() == [0, 2]  # type: ignore[union-attr]


def test_hashed_ids_need_no_training() -> None:
    encoder = Encoder(schema_of(f={"hashed": True}, g={"hashed": True, "kind": "id_list"}), {})
    columns = encoder.encode(pa.table({"f": [3, None], "g": ["a|b", ""]}), ["f", "g"])
    assert isinstance(columns["f"], torch.Tensor)
    assert columns["f"].tolist() == [mix64(3, 0), hash64("", "missing")]
    assert lists_of(columns["g"]) == [[hash64("a"), hash64("b")], []]
    assert encoder.num_embeddings("f") is None
    assert encoder.counts("f") is None


def test_sequences_read_the_vocabulary_of_what_they_repeat() -> None:
    sequences = {"past": {"of": {"history": "item"}, "max_length": 2}}
    schema = schema_of(user={}, item={}, sequences=sequences, roles={"user": "user", "item": "item"})
    encoder = Encoder.fit(schema, pa.table({"user": [1, 2], "item": ["a", "b"]}))
    assert encoder.num_embeddings("history") == encoder.num_embeddings("item") == 3
    assert lists_of(encoder.encode(pa.table({"history": [["a", "b", "z"]]}), ["history"])["history"]) == [[2, 0]]


@pytest.mark.parametrize(
    ("spec", "train", "asked", "message"),
    [
        ({"unseen": "refuse"}, ["a"], ["a", "z"], "feature 'f', row 101: vocabulary 'f' has no such id, got 'z'"),
        ({"missing": "refuse"}, ["a"], ["a", None], "feature 'f', row 101: the value is missing .* got None"),
        ({}, ["a"], [5], "feature 'f', row 100: vocabulary 'f' holds texts, got 5"),
        ({}, [5], ["a"], "feature 'f', row 100: vocabulary 'f' holds integers, got 'a'"),
        ({}, [5], [2.0, 2.5], "feature 'f', row 101: ids are integers or strings, got 2.5"),
        ({"kind": "id_list", "unseen": "refuse"}, ["a"], ["a", "a|z"], "feature 'f', row 101: .* no such id, got 'z'"),
        ({"kind": "id_list"}, [[1]], [[1.0, 1.5]], "feature 'f', row 100: ids are integers or strings, got 1.5"),
        ({"kind": "id_list"}, [[1]], ["", "1|q"], "feature 'f', row 101: an integer id is needed, not 'q'"),
        ({"kind": "id_list"}, ["a"], [1.5], "feature 'f' needs lists or text joined by '|', column 'f' holds double"),
        ({"kind": "id_score_list"}, ["a:1"], ["a:1", "b"], "feature 'f', row 101: .* written id:score, got 'b'"),
        ({"kind": "id_score_list"}, ["a:1"], ["a:1|b:x"], "feature 'f', row 100: a score must be a number, not 'x'"),
        ({"kind": "id_score_list"}, ["a:1"], ["a:inf"], "feature 'f', row 100: a score must be a finite number"),
        ({"kind": "id_score_list"}, ["a:1"], [["a"]], "feature 'f' needs lists of structs of id and score"),
        ({"kind": "dense"}, [1.0], [1.0, None], "feature 'f', row 101: the value is missing"),
        ({"kind": "dense"}, [1.0], [math.inf], "feature 'f', row 100: a number must be finite, got inf"),
        ({"kind": "dense"}, [1.0], [1e300], "feature 'f', row 100: .* does not fit float32, got 1e[+]300"),
        ({"kind": "dense"}, [1.0], ["1"], "feature 'f' needs numbers, column 'f' holds string"),
        ({"kind": "dense", "transforms": [{"kind": "log1p"}]}, [1.0], [0.0, -2.0], "row 101: log1p takes .* got -2.0"),
        (
            {"transforms": [{"kind": "log1p"}, {"kind": "bucketise", "num_buckets": 2}]},
            [1.0, 2.0], [None, 0.0, -2.0], "feature 'f', row 102: log1p takes .* got -2.0",
        ),
    ],
)  # fmt: skip
def test_refused_values_are_named(spec: dict[str, Any], train: list[Any], asked: list[Any], message: str) -> None:
    encoder = Encoder.fit(schema_of(f=spec), pa.table({"f": train}))
    with pytest.raises(ValueError, match=message):
        encoder.encode(pa.table({"f": asked}), ["f"], first_row=100)


def test_absent_and_doubled_columns_are_named() -> None:
    encoder = Encoder.fit(schema_of(f={"column": "price"}), pa.table({"price": [1]}))
    with pytest.raises(
        ValueError, match="feature 'f' reads column 'price', which the table lacks, did you mean 'prise'"
    ):
        encoder.encode(pa.table({"prise": [1]}), ["f"])
    with pytest.raises(ValueError, match="stands 2 times"):
        encoder.encode(pa.table([[1], [2]], names=["price", "price"]), ["f"])
    with pytest.raises(ValueError, match="column 'price': values of one column"):
        encoder.batch(pd.DataFrame({"price": [1, "a"]}))


def test_features_that_share_a_vocabulary_must_agree_on_type() -> None:
    schema = schema_of(a={}, b={"vocabulary": "a"})
    with pytest.raises(ValueError, match=r"all hold integers or all strings, got .'a': 'int64', 'b': 'large_string'"):
        Encoder.fit(schema, pa.table({"a": [1], "b": ["x"]}))
    assert Encoder.fit(schema, pa.table({"a": pa.nulls(1), "b": ["x"]})).num_embeddings("a") == 3


LABELS = {
    "click": {},
    "good": {"column": "stars", "positive_from": 4, "dropped": [3]},
    "odd": {"column": "stars", "positive": [1, 5]},
}
FRAME = pd.DataFrame(
    {
        "f": list("abcd"),
        "click": [0, 1, 1, 0],
        "stars": [1, 3, 4, 5],
        "w": [1, 2, 0.5, 1],
        "g": list("xyxy"),
        "p": [0.1, 0.2, 0.3, 1],
    }
)


def test_batch_holds_labels_weights_and_group_of_kept_rows() -> None:
    schema = schema_of(labels=LABELS, roles={"weight": "w", "group": "g", "probability": "p"}, f={})
    batch = Encoder.fit(schema, FRAME).batch(FRAME)
    assert batch.ids("f").tolist() == [1, 3, 4]
    assert {name: label.tolist() for name, label in batch.labels.items() if name != "probability"} == {
        "click": [0, 1, 0], "good": [0, 1, 1], "odd": [1, 0, 1],
    }  # fmt: skip
    torch.testing.assert_close(batch.labels["probability"], torch.tensor([0.1, 0.3, 1.0]))
    assert batch.row_weights().tolist() == [1.0, 0.5, 1.0]
    assert batch.group is not None
    assert batch.group.tolist() == [hash64("x"), hash64("x"), hash64("y")]


def test_batch_without_labels_keeps_every_row() -> None:
    schema = schema_of(labels=LABELS, roles={"weight": "w"}, f={})
    batch = Encoder.fit(schema, FRAME).batch(FRAME[["f"]], labels=False)
    assert len(batch) == 4
    assert not batch.labels
    assert batch.weights is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"click": [0, 1, None, 0]}, "label 'click', row 2: a value is needed"),
        ({"click": list("abcd")}, "label 'click' needs numbers"),
        ({"w": [1, -1, 1, 1]}, "weight, row 1: a weight must be at least 0, got -1"),
        ({"g": ["x", None, "y", "y"]}, "group, row 1: a group is needed"),
        ({"p": [0, 0.5, 1.5, 1]}, "probability, row 2: a probability lies in 0..1, got 1.5"),
    ],
)
def test_batch_bad_labels_are_named(change: dict[str, Any], message: str) -> None:
    schema = schema_of(labels=LABELS, roles={"weight": "w", "group": "g", "probability": "p"}, f={})
    with pytest.raises(ValueError, match=message):
        Encoder.fit(schema, FRAME).batch(FRAME.assign(**change))


def aged(by: str) -> Encoder:
    age = {"name": "age", "by": by, "table": "t", "buckets": 8}
    past = {"of": {"history": "item", "kinds": "kind"}, "max_length": 3, "age": age}
    features = {"user": {"table": "t"}, "item": {"table": "t"}, "kind": {"table": "t", "history_only": True}}
    named = {"name": "s", "user": "user", "item": "item", "features": features, "sequences": {"past": past}}
    return Encoder.fit(parse_schema(named, "test"), pd.DataFrame({"user": [1], "item": [2], "kind": [3]}))


@pytest.mark.parametrize(
    ("by", "given", "expected"),
    [("time", [0, 6, 7, 10**6], [3, 4, 7]), ("position", [9, 8, 2, 1], [7, 2, 1])],
)
def test_ages_are_encoded_by_their_formula(by: str, given: list[int], expected: list[int]) -> None:
    encoder = aged(by)
    for column in ([given], ["|".join(map(str, given))]):
        found = encoder.encode(as_table(pd.DataFrame({"age": column}), ["age"]), ["age"])["age"]
        assert isinstance(found, Jagged)
        assert found.values.tolist() == expected
    assert (encoder.num_embeddings("age"), encoder.counts("age")) == (8, None)


@pytest.mark.parametrize(
    ("by", "given", "message"),
    [("time", [-1], "at least 0"), ("position", [2, 0], "at least 1"), ("time", ["soon"], "is a whole number")],
)
def test_ages_that_are_none_are_refused(by: str, given: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"feature 'age', row 0: .*{message}"):
        aged(by).encode(as_table(pd.DataFrame({"age": [given]}), ["age"]), ["age"])


def test_batch_leaves_out_what_only_past_events_have() -> None:
    frame = pd.DataFrame({"user": [1], "item": [2]})
    assert set(aged("time").batch(frame, labels=False).features) == {"user", "item"}


def test_copies_of_features_read_the_same_ids() -> None:
    encoder = aged("time")
    copies = (
        FeatureSpec(name="item-attention", vocabulary="item", table="narrow"),
        FeatureSpec(name="age-attention", kind="id_list", vocabulary="age", table="narrow"),
    )
    extended = encoder.schema.model_copy(update={"features": encoder.schema.features + copies})
    found = encoder.with_schema(FeatureSchema.model_validate(extended.model_dump()))
    for copy, own in (("item-attention", "item"), ("age-attention", "age")):
        assert found.num_embeddings(copy) == encoder.num_embeddings(own)


def mixed() -> tuple[FeatureSchema, pd.DataFrame]:
    schema = schema_of(
        f={}, n={"vocabulary": "number"}, d={"kind": "dense", "transforms": [{"kind": "standardise"}]},
        b={"column": "d", "transforms": [{"kind": "bucketise", "num_buckets": 2}]},
    )  # fmt: skip
    return schema, pd.DataFrame({"f": ["x", "y", None], "n": [5, 3, 5], "d": [1.0, 2.0, 4.0]})


def test_save_load_round_trips(tmp_path: Path) -> None:
    schema, frame = mixed()
    encoder = Encoder.fit(schema, frame)
    encoder.save(tmp_path / "encoder")
    loaded = Encoder.load(tmp_path / "encoder")
    assert loaded.content_hash == encoder.content_hash
    before, after = encoder.batch(frame), loaded.batch(frame)
    assert all(torch.equal(before.ids(name), after.ids(name)) for name in before.features)


def test_load_refuses_files_of_two_savings(tmp_path: Path) -> None:
    schema, frame = mixed()
    Encoder.fit(schema, frame).save(tmp_path / "one")
    Encoder.fit(schema, frame.assign(n=[9, 9, 9])).save(tmp_path / "two")
    (tmp_path / "two" / "vocab" / "number.parquet").replace(tmp_path / "one" / "vocab" / "number.parquet")
    with pytest.raises(ValueError, match="is damaged"):
        Encoder.load(tmp_path / "one")


def test_from_counts_equals_fit() -> None:
    schema, frame = mixed()
    fitted = Encoder.fit(schema, frame)
    counts = {"f": (["y", None, "x"], [1, 1, 1]), "number": (pa.array([3, 5]), pa.array([1, 2]))}
    assert Encoder.from_counts(schema, counts, fitted.statistics).content_hash == fitted.content_hash


def test_parts_that_do_not_fit_the_schema_are_refused() -> None:
    schema, frame = mixed()
    encoder = Encoder.fit(schema, frame)
    with pytest.raises(ValueError, match=r"vocabularies do not fit the schema: missing \['f'\], not in it \['z'\]"):
        Encoder(schema, {"number": encoder.vocabularies["number"], "z": encoder.vocabularies["f"]}, encoder.statistics)
    with pytest.raises(ValueError, match=r"statistics do not fit the schema: missing \['d'\], not in it \['f'\]"):
        Encoder(schema, encoder.vocabularies, {"b": Statistic(), "f": Statistic()})
    refusing = Vocabulary.from_counts("f", ["x"], [1], unseen="refuse")
    with pytest.raises(ValueError, match="built with another `unseen`"):
        Encoder(schema, encoder.vocabularies | {"f": refusing}, encoder.statistics)
    with pytest.raises(ValueError, match="'d' is dense"):
        encoder.num_embeddings("d")


def test_grown_encodes_known_values_alike() -> None:
    standardised: Json = {"kind": "dense", "missing": 0.0, "transforms": [{"kind": "standardise"}]}
    schema = schema_of(a={}, b={"hashed": True}, c=standardised)
    train = pa.table({"a": ["x", "y", None], "b": [1, 2, 3], "c": [1.0, 2.0, 9.0]})
    before = Encoder.fit(schema, train)
    after = before.grown({"a": (["w", "x"], [3, 4])})
    for name, column in before.encode(train, ["a", "b", "c"]).items():
        assert torch.equal(column, after.encode(train, [name])[name])  # type: ignore[arg-type]
    assert after.vocabularies["a"].rows(["w"]).tolist() == [4]
    assert after.counts("a").tolist() == [0, 1, 5, 1, 3]  # type: ignore[union-attr]
    after.check_extends(before)
    with pytest.raises(ValueError, match=r"counts do not fit the schema: missing \[\], not in it \['b'\]"):
        before.grown({"b": ([1], [1])})


@pytest.mark.parametrize(
    ("a", "c", "schema", "message"),
    [
        (["x", "z"], [1.0, 3.0], {}, "vocabulary 'a' does not extend the older one: row 2 is 'z', was 'y'"),
        (["x", "y"], [1.0, 5.0], {}, "feature 'c' has other statistics"),
        (["x", "y"], [1.0, 3.0], {"chunks": 2}, "schema 'x' is not the one"),
    ],
)
def test_encoder_that_does_not_extend_names_what_differs(a: Any, c: Any, schema: Json, message: str) -> None:
    dense: Json = {"kind": "dense", "transforms": [{"kind": "standardise"}]}
    older = Encoder.fit(schema_of(a={}, c=dense), pa.table({"a": ["x", "y"], "c": [1.0, 3.0]}))
    other = Encoder.fit(schema_of(a=schema, c=dense), pa.table({"a": a, "c": c}))
    with pytest.raises(ValueError, match=message):
        other.check_extends(older)


def test_shared_vocabulary_counts_all_its_readers() -> None:
    schema = schema_of(a={}, b={"vocabulary": "a"})
    encoder = Encoder.fit(schema, pa.table({"a": ["x", "y"], "b": ["x", "z"]}))
    assert encoder.counts("a").tolist() == encoder.counts("b").tolist() == [0, 2, 1, 1]  # type: ignore[union-attr]


def test_tables_without_rows_encode_to_nothing() -> None:
    schema, frame = mixed()
    assert len(Encoder.fit(schema, frame).batch(frame[:0])) == 0


def test_tables_without_rows_can_be_fitted() -> None:
    lists = schema_of(f={"kind": "id_list"})
    assert Encoder.fit(lists, pa.table({"f": pa.array([], pa.list_(pa.int64()))})).num_embeddings("f") == 1
    schema, frame = mixed()
    assert Encoder.fit(schema, frame[:0]).num_embeddings("b") == 2


@pytest.mark.slow
def test_encoding_takes_less_cpu_time_than_a_python_loop() -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 40, 100_000)
    encoder = Encoder.fit(schema_of(f={}), pa.table({"f": ids}))
    table = pa.table({"f": np.tile(ids, 20)})
    encoder.encode(table[:10], ["f"])
    start = time.process_time()
    encoder.encode(table, ["f"])
    fast = time.process_time() - start
    rows = dict(zip(encoder.vocabularies["f"].raw_ids.tolist(), range(1, len(ids) + 1), strict=False))
    start = time.process_time()
    assert len([rows.get(value, 0) for value in ids.tolist()]) == len(ids)
    assert fast < 20 * (time.process_time() - start), "the table holds the ids twenty times"

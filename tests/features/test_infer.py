"""Whatever is read, the text that comes out is a schema; guesses follow names and values."""

import gzip
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encoder import Encoder
from features.infer import feature_names, infer
from features.spec import FeatureSchema, parse_schema

CLICKS = pa.table(
    {
        "user_id": pa.array([f"u{row % 7}" for row in range(140)]),
        "movieId": pa.array([row % 11 for row in range(140)]),
        "timestamp": pa.array([1_700_000_000 + row for row in range(140)]),
        "click": pa.array([row % 2 for row in range(140)]),
        "price": pa.array([None if row % 9 == 0 else row * 20.5 for row in range(140)]),
        "depth": pa.array([row % 3 for row in range(140)]),
        "views": pa.array([row * 3 for row in range(140)]),
        "country": pa.array([("de", "fr", "it", "es", "pl", "at", "ch")[row % 7] for row in range(140)]),
        "genres": pa.array([("drama|war", "war", "comedy|drama")[row % 3] for row in range(140)]),
        "title": pa.array([f"free text {row}" for row in range(140)]),
        "constant": pa.array(["x"] * 140),
    }
)


def schema_from(text: str) -> FeatureSchema:
    return parse_schema(tomllib.loads(text), "inferred")


def test_clicks_give_roles_kinds_and_label() -> None:
    schema = schema_from(infer(CLICKS))
    assert (schema.user, schema.item, schema.timestamp) == ("user_id", "movieId", "timestamp")
    assert [label.name for label in schema.labels] == ["click"]
    kinds = {spec.name: spec.kind for spec in schema.features}
    assert kinds == {
        "user_id": "id",
        "movieId": "id",
        "price": "dense",
        "depth": "id",
        "views": "dense",
        "country": "id",
        "genres": "id_list",
    }
    assert {spec.table for spec in schema.features} == {"ids", None}
    assert isinstance(schema.feature("price").missing, float)


def test_doubts_are_comments() -> None:
    text = infer(CLICKS)
    for doubt in (
        'column "title" is left out: nearly every value differs',
        'column "constant" is left out: it holds one value only, "x"',
        'one value per user in these rows: entity = "user"',
        "the median stands for missing values",
        "hold '|', so each is read as a list",
        "few distinct numbers: ids",
        'of = { history = "movieId" }',
    ):
        assert doubt in text
    assert "all 140 rows" in text
    assert "7 distinct" in text


def test_inferred_schema_encodes_the_table_it_was_read_from() -> None:
    schema = schema_from(infer(CLICKS))
    batch = Encoder.fit(schema, CLICKS).batch(CLICKS)
    assert len(batch) == 140


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".parquet"])
def test_files_give_what_the_table_gives(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"table{ending}"
    if ending == ".parquet":
        pq.write_table(CLICKS, path)
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if "tsv" in ending else ",")
        plain = pa.BufferOutputStream()
        pyarrow.csv.write_csv(CLICKS, plain, options)
        data = plain.getvalue().to_pybytes()
        path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    assert infer(path) == infer(str(path)) == infer(f"file://{path}") == infer(CLICKS)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_large_files_are_read_in_part_and_say_so(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"clicks{ending}"
    if ending == ".csv":
        pyarrow.csv.write_csv(CLICKS, path)
    else:
        pq.write_table(CLICKS, path, row_group_size=20)
    text = infer(path, max_rows=35)
    expected = "the first 35 rows" if ending == ".csv" else "35 rows of 140, the first ones of 7 row groups of 7"
    assert expected in text.splitlines()[0]
    assert schema_from(text).user == "user_id"
    assert "35 evenly spaced rows of 140" in infer(CLICKS, max_rows=35)


CELLS = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), min_size=4, max_size=4),
    st.lists(st.one_of(st.none(), st.floats()), min_size=4, max_size=4),
    st.lists(st.one_of(st.none(), st.text(max_size=6)), min_size=4, max_size=4),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=4, max_size=4),
    st.lists(st.one_of(st.none(), st.datetimes()), min_size=4, max_size=4),
    st.lists(st.one_of(st.none(), st.lists(st.text(max_size=2), max_size=2)), min_size=4, max_size=4),
)
NAMES = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["user", "item", "rating", "weight", "time", "label", "user_id", "a:token", "tags"]),
)


@settings(deadline=None)
@given(columns=st.dictionaries(NAMES, CELLS, min_size=1, max_size=5))
def test_any_table_gives_a_schema(columns: dict[str, Any]) -> None:
    schema = schema_from(infer(pa.table(columns)))
    assert {spec.column for spec in schema.features} <= set(columns)


@settings(deadline=None)
@given(columns=st.lists(st.text(max_size=4), max_size=8))
def test_feature_names_are_distinct_and_valid(columns: list[str]) -> None:
    names = feature_names(columns)
    assert len(set(names)) == len(columns)
    features = {name: {"table": "ids"} for name in names}
    assert len(schema_from_values(features).features) == len(columns)


def schema_from_values(features: dict[str, Any]) -> FeatureSchema:
    return parse_schema({"name": "x", "features": features}, "x")


def test_feature_names_keep_what_they_can() -> None:
    assert feature_names(["user_id:token", "user id", "user-id", "", "é"]) == [
        "user_id",
        "user_id_2",
        "user-id",
        "column",
        "é",
    ]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("007\n008\n", "id"),
        ("1\n2\n", "id"),
        ("1.5\n2.5\n", "dense"),
        ("18446744073709551615\n7\n", "id"),
        ("1e3\n2\n", "dense"),
    ],
)
def test_text_columns_are_typed_carefully(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "t.csv").write_text("x,z\n" + text.replace("\n", ",1\n"))
    schema = schema_from(infer(tmp_path / "t.csv"))
    assert schema.feature("x").kind == kind


def test_ratings_get_a_threshold_and_a_doubt() -> None:
    text = infer(pa.table({"rating": [1, 5, 3, 4]}))
    assert schema_from(text).labels[0].positive_from == 4.0
    assert "from where on is a row positive" in text


def test_values_in_comments_stay_on_one_line() -> None:
    text = infer(pa.table({"user": ["a", "b"], 'od"d\nname': ["x\ny\x7f", "x\ny\x7f"], "name": ["1", "#\n"]}))
    assert 'column "od\\"d\\nname" is left out' in text
    schema_from(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv cannot be read: Empty CSV file"),
        ("b.csv", b"x,y\n", "b: nothing to read, 2 columns and 0 rows"),
        ("c.csv", b"x,y\n1\n", "c.csv cannot be read: .*Expected 2 columns"),
        ("d.csv", b"x,x\n1,2\n", r"d.*columns \['x'\] stand twice"),
        ("e.csv", b"x\n\xff\xfe\n", "e.csv cannot be read: .*UTF8"),
        ("f.parquet", b"PAR1", "f.parquet cannot be read"),
        ("g.csv.gz", b"x\n1\n", "g.csv.gz cannot be read"),
        ("h.xls", b"x", r"h.xls: the ending must be one of \['.csv', '.tsv', '.parquet', '.pq'\]"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        infer(tmp_path / name)


@pytest.mark.parametrize("table", [pa.table({}), pa.table({"x": pa.array([], pa.int64())})])
def test_empty_tables_are_refused(table: pa.Table) -> None:
    with pytest.raises(ValueError, match="nothing to read"):
        infer(table)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        infer(tmp_path / "absent.csv")

"""Which columns are read from where, and whether ids are integers: decided once for all that share them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.database import Database
from features.log_columns import LogColumns
from features.source_files import FILE, ROW, SourceTable
from features.spec import FeatureSchema, parse_schema

ID = {"table": "ids"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path) as opened:
        yield opened


def table(database: Database, role: str, untyped: bool = True, **columns: Any) -> SourceTable:
    rows = pa.table(columns)
    numbers = pa.array(range(1, len(rows) + 1), pa.int64())
    rows = rows.append_column(FILE, pa.nulls(len(rows), pa.int32()).fill_null(0)).append_column(ROW, numbers)
    return SourceTable(rows=database.store_arrow(role, rows), names=(f"{role}.csv",), untyped=untyped)


def schema_of(features: dict[str, Any], **parts: Any) -> FeatureSchema:
    return parse_schema({"name": "test", "features": features} | parts, where="test")


def values_of(database: Database, columns: LogColumns, role: str) -> dict[str, list[Any]]:
    values = {part.name: part.reading.value for part in columns.parts(role)}
    return database.fetch(columns.tables[role].rows.select(**values)).to_pydict()  # type: ignore[no-any-return]


USER_ITEM = {"user": "u", "item": "i"}


@pytest.mark.parametrize(
    ("events", "users", "expected"),
    [
        (["1", "2"], ["2"], [1, 2]),
        (["1", "2"], ["02"], ["1", "2"]),
        (["1", "x"], ["2"], ["1", "x"]),
        (["1", None], ["2"], [1, None]),
    ],
)
def test_ids_are_integers_where_all_that_share_them_are(
    database: Database, events: Any, users: Any, expected: Any
) -> None:
    tables = {"events": table(database, "events", u=events), "users": table(database, "users", u=users)}
    columns = LogColumns(database, tables, schema_of({"u": ID}, user="u"), "")
    assert values_of(database, columns, "events")["u"] == expected
    assert type(values_of(database, columns, "users")["u"][0]) is type(expected[0])


def test_typed_text_stays_text(database: Database) -> None:
    tables = {"events": table(database, "events", untyped=False, u=["1", "2"])}
    columns = LogColumns(database, tables, schema_of({"u": ID}), "")
    assert values_of(database, columns, "events")["u"] == ["1", "2"]


def test_text_lists_follow_the_ids_that_they_share(database: Database) -> None:
    features = {"i": ID, "past": {"kind": "id_list", "table": "ids", "vocabulary": "i"}}
    tables = {"events": table(database, "events", i=["1", "2"], past=["3|4", None])}
    columns = LogColumns(database, tables, schema_of(features), "")
    assert values_of(database, columns, "events") == {"i": [1, 2], "past": [[3, 4], None]}


def test_text_lists_alone_are_text(database: Database) -> None:
    tables = {"events": table(database, "events", past=["3|4"])}
    columns = LogColumns(database, tables, schema_of({"past": {"kind": "id_list", "table": "ids"}}), "")
    assert values_of(database, columns, "events") == {"past": [["3", "4"]]}


def test_homes_prefer_the_entity_table(database: Database) -> None:
    features = {"u": ID, "i": ID, "age": ID | {"entity": "user"}, "city": ID | {"entity": "user"}, "hour": ID}
    tables = {
        "events": table(database, "events", u=["1"], i=["2"], city=["a"], age=["9"], hour=["3"]),
        "users": table(database, "users", u=["1"], age=["8"]),
    }
    columns = LogColumns(database, tables, schema_of(features, **USER_ITEM), "")
    assert columns.homes == {"u": "users", "i": "events", "age": "users", "city": "events", "hour": "events"}
    assert set(values_of(database, columns, "events")) == {"u", "i", "city", "hour"}


def test_attributes_are_kept_and_become_numbers_where_they_are(database: Database) -> None:
    users = table(database, "users", u=["1", "2"], zip=["01", "2"], born=["1990", "91"], height=["1.5", None])
    tables = {"events": table(database, "events", u=["1"]), "users": users}
    columns = LogColumns(database, tables, schema_of({"u": ID}, user="u"), "")
    found = values_of(database, columns, "users")
    assert found == {"u": [1, 2], "zip": ["01", "2"], "born": [1990, 91], "height": [1.5, None]}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"features": {"user": ID | {"column": "usr"}}}, r"no column 'usr' for feature 'user'"),
        ({"features": {"u": ID}, "timestamp": "tme"}, "no column 'tme' for timestamp, did you mean 'time'"),
        ({"features": {"u": ID}, "labels": {"click": {}}}, "no column 'click' for label 'click'"),
        ({"features": {"u": ID, "age": ID | {"entity": "user"}}}, "belongs to users, but the schema names no `user`"),
    ],
)
def test_a_missing_column_is_one_clear_line(database: Database, parts: dict[str, Any], message: str) -> None:
    tables = {"events": table(database, "events", u=["1"], time=["2"], age=["3"])}
    with pytest.raises(ValueError, match=message):
        LogColumns(database, tables, schema_of(**parts), "")


def test_a_column_may_be_an_id_and_a_number(database: Database) -> None:
    features = {"age": ID, "years": {"kind": "dense", "column": "age"}}
    tables = {"events": table(database, "events", age=["30", "41"])}
    columns = LogColumns(database, tables, schema_of(features), "")
    assert values_of(database, columns, "events") == {"age": [30, 41]}


def test_a_column_may_not_be_text_and_a_number(database: Database) -> None:
    features = {"age": ID, "years": {"kind": "dense", "column": "age"}}
    tables = {"events": table(database, "events", age=["30", "x"])}
    with pytest.raises(ValueError, match="features 'age' and 'years' read column 'age' in two ways"):
        LogColumns(database, tables, schema_of(features), "").parts("events")


@pytest.mark.parametrize(
    ("time", "unit"), [(["1", "2"], "as given"), (["2020-01-01"], "microseconds"), ([5], "as given")]
)
def test_time_unit_says_what_times_are(database: Database, time: Any, unit: str) -> None:
    tables = {"events": table(database, "events", u=["1"] * len(time), time=time)}
    assert LogColumns(database, tables, schema_of({"u": ID}, timestamp="time"), "").time_unit == unit


def test_labels_without_a_column_are_one_where_all_are_positive(database: Database) -> None:
    tables = {"events": table(database, "events", u=["1", "2"], bought=["0", "1"])}
    schema = schema_of({"u": ID}, labels={"click": {}, "bought": {}})
    columns = LogColumns(database, tables, schema, "", positives_only=True)
    found = values_of(database, columns, "events")
    assert found["label:click"] == [1.0, 1.0]
    assert found["label:bought"] == [0.0, 1.0]
    with pytest.raises(ValueError, match="no column 'click' for label 'click'"):
        LogColumns(database, tables, schema, "")

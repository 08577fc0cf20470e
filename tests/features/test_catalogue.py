"""The raw rows of users and items: from their tables, or the last that the log knew."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.catalogue import ROWS, Catalogue, read_catalogue
from features.database import Database
from features.log_columns import CODE, NUMBER, TIME
from features.logs import Log
from features.spec import parse_schema

ID = {"table": "ids"}
FEATURES = {"user": ID, "city": ID | {"entity": "user"}, "tags": ID | {"entity": "user", "kind": "id_list"}}
EVENTS = {
    NUMBER: [0, 1, 2, 3, 4, 5],
    "user": ["a", "b", "a", "b", None, "c"],
    "city": ["rome", "oslo", "bern", None, "bonn", "nice"],
    "tags": [["x"], None, ["y"], ["z"], None, None],
    TIME: [9, 1, 5, 2, 0, 0],
    CODE: [0, 0, 0, 2, 0, 2],
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path) as opened:
        yield opened


def read(database: Database, homes: dict[str, str], users: dict[str, Any] | None, **events: Any) -> Catalogue:
    schema = parse_schema({"name": "t", "user": "user", "features": FEATURES}, where="test")
    rows = database.store_arrow("events", pa.table(EVENTS | events))
    listed = None if users is None else database.store_arrow("log_users", pa.table(users))
    log = Log(
        events=rows,
        users=listed,
        items=None,
        homes=homes,
        time_unit="",
        num_read=6,
        num_bad=0,
        num_dropped=0,
        num_events=6,
    )
    return read_catalogue(database, log, rows, schema, "user")


def listed(database: Database, catalogue: Catalogue) -> list[dict[str, Any]]:
    assert catalogue.listed is not None
    return database.fetch(catalogue.listed.order_by("user")).to_pylist()  # type: ignore[no-any-return]


IN_EVENTS = {"user": "events", "city": "events", "tags": "events"}


def test_properties_in_the_log_are_the_last_known_of_train(database: Database) -> None:
    assert listed(database, read(database, IN_EVENTS, None)) == [
        {"user": "a", "city": "rome", "tags": ["x"]},
        {"user": "b", "city": "oslo", "tags": ["z"]},
        {"user": "c", "city": "nice", "tags": None},
    ]


def test_properties_of_tables_are_taken_as_they_are(database: Database) -> None:
    users = {"user": ["b", "z"], "city": ["kiel", None], "tags": [["k"], []]}
    catalogue = read(database, {"user": "users", "city": "users", "tags": "users"}, users)
    assert listed(database, catalogue) == pa.table(users).to_pylist()


def test_properties_of_tables_and_log_are_joined(database: Database) -> None:
    users = {"user": ["b", "z"], "city": ["kiel", "york"], "born": [1990, 1991]}
    catalogue = read(database, {"user": "users", "city": "users", "tags": "events"}, users)
    assert listed(database, catalogue) == [
        {"user": "a", "city": None, "born": None, "tags": ["x"]},
        {"user": "b", "city": "kiel", "born": 1990, "tags": ["z"]},
        {"user": "c", "city": None, "born": None, "tags": None},
        {"user": "z", "city": "york", "born": 1991, "tags": None},
    ]


def test_seen_ids_stand_once_without_nulls(database: Database) -> None:
    catalogue = read(database, {"user": "users", "city": "users", "tags": "users"}, {"user": ["z"]})
    assert sorted(database.fetch(catalogue.seen)["user"].to_pylist()) == ["a", "b", "c"]


def test_train_rows_are_counted_by_id(database: Database) -> None:
    catalogue = read(database, IN_EVENTS, None)
    events = database.table("events")
    counted = database.fetch(catalogue.with_train_rows(events.filter(events[CODE] == 0))).to_pylist()
    assert {(row["user"], row["city"], row[ROWS]) for row in counted} == {
        ("a", "rome", 2), ("b", "oslo", 1), (None, None, 1),
    }  # fmt: skip

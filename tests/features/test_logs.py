"""The canonical log: equal to a naive reading, every bad row found, by number and column."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.database import Database
from features.log_columns import DROPPED
from features.logs import NUMBER, TIME, BadRowFiles, Log, LogRules, label_column, read_log
from features.sources import SourceRequest, make_source
from features.spec import FeatureSchema, parse_schema

DATA = os.environ.get("RECSYS_DATA")
ID = {"table": "ids"}
FEATURES = {"user": ID | {"missing": "refuse"}, "item": ID | {"missing": "refuse"}, "price": {"kind": "dense"}}
LABEL = {"like": {"column": "rating", "positive_from": 4, "dropped": [3]}}
GOOD = "user,item,price,time,rating\na,x,1.5,10,5\nb,y,2,20,1\n"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "work").mkdir()
    with Database.open(tmp_path / "work") as opened:
        yield opened


def schema_of(**parts: Any) -> FeatureSchema:
    named = {"name": "t", "user": "user", "item": "item", "timestamp": "time", "features": FEATURES, "labels": LABEL}
    return parse_schema(named | parts, where="test")


def read(database: Database, folder: Path, content: str, rules: LogRules | None = None, **parts: Any) -> Log:
    (folder / "log.csv").write_text(content)
    source = make_source("csv", SourceRequest(path=str(folder / "log.csv"))).read(database)
    files = BadRowFiles(report=folder / "bad.csv", quarantine=folder / "quarantine")
    return read_log(database, source, schema_of(**parts), rules or LogRules(), files)


def rows_of(database: Database, log: Log) -> list[dict[str, Any]]:
    return database.fetch(log.events).to_pylist()  # type: ignore[no-any-return]


def test_log_holds_every_column_in_its_form(database: Database, tmp_path: Path) -> None:
    log = read(database, tmp_path, GOOD)
    like = label_column("like")
    assert rows_of(database, log) == [
        {NUMBER: 0, "user": "a", "item": "x", "price": 1.5, TIME: 10, like: 1.0},
        {NUMBER: 1, "user": "b", "item": "y", "price": 2.0, TIME: 20, like: 0.0},
    ]
    assert (log.num_read, log.num_bad, log.num_dropped, log.time_unit) == (2, 0, 0, "as given")


def test_label_drops_rows_and_leaves_gaps_in_the_numbers(database: Database, tmp_path: Path) -> None:
    log = read(database, tmp_path, GOOD.replace("10,5", "10,3") + "c,z,3,30,4\n")
    assert [row[NUMBER] for row in rows_of(database, log)] == [1, 2]
    assert (log.num_read, log.num_dropped) == (3, 1)


def test_label_marks_rows_where_histories_are_ordered(database: Database, tmp_path: Path) -> None:
    past = {"past": {"of": {"history": "item"}, "max_length": 3}}
    log = read(database, tmp_path, GOOD.replace("10,5", "10,3") + "c,z,3,30,4\n", sequences=past)
    assert [(row[NUMBER], row[DROPPED]) for row in rows_of(database, log)] == [(0, True), (1, False), (2, False)]
    assert (log.num_read, log.num_dropped, log.num_events) == (3, 1, 3)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [({"positive": [1, 5]}, [1.0, 1.0, 0.0]), ({"positive_from": 2}, [1.0, 0.0, 1.0]), ({}, [5.0, 1.0, 4.0])],
)
def test_label_rules(database: Database, tmp_path: Path, rule: dict[str, Any], expected: list[float]) -> None:
    log = read(database, tmp_path, GOOD + "c,z,3,30,4\n", labels={"like": rule | {"column": "rating"}})
    assert [row[label_column("like")] for row in rows_of(database, log)] == expected


BAD = GOOD + ",x,1,30,5\nc,,cheap,-4,5\nd,w,1,noon,good\ne,v,,50,\nf,u,1,60,5\n"
FOUND = {
    ("3", "user", "", "is missing"),
    ("4", "item", "", "is missing"),
    ("4", "price", "cheap", "is no number"),
    ("4", "time", "-4", "is no time (whole numbers, dates or dates with times: one of these for the whole column)"),
    ("5", "time", "noon", "is no time (whole numbers, dates or dates with times: one of these for the whole column)"),
    ("5", "rating", "good", "is no number"),
    ("6", "price", "", "is missing"),
    ("6", "rating", "", "is missing"),
}


def test_every_bad_value_is_listed_by_row_and_column(database: Database, tmp_path: Path) -> None:
    dated = BAD.replace(",10,", ",2020-01-01,").replace(",20,", ",2020-01-02,")
    dated = dated.replace(",30,", ",2020-01-03,").replace(",50,", ",2020-01-03,").replace(",60,", ",2020-01-03,")
    with pytest.raises(ValueError, match="bad rows") as caught:
        read(database, tmp_path, dated)
    with (tmp_path / "bad.csv").open() as lines:
        listed = {(row["row"], row["column"], row["value"], row["problem"]) for row in csv.DictReader(lines)}
    assert listed == FOUND
    message = str(caught.value)
    assert "4 of 7 in events" in message
    assert "log.csv row 3: user is missing" in message
    assert str(tmp_path / "bad.csv") in message
    assert "\n" not in message


def test_negative_times_are_bad(database: Database, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1: time '-10' is negative"):
        read(database, tmp_path, GOOD.replace(",10,", ",-10,"))


def test_quarantine_keeps_bad_rows_in_files_and_reads_the_others(database: Database, tmp_path: Path) -> None:
    content = GOOD + ",x,1,30,5\ng,h,1,2,3,4,5\ne,v,2,50,5\n"
    log = read(database, tmp_path, content, LogRules(bad_rows="quarantine"))
    assert [row["user"] for row in rows_of(database, log)] == ["a", "b", "e"]
    assert (log.num_read, log.num_bad) == (5, 2)
    listed = pq.read_table(tmp_path / "quarantine" / "bad_rows.parquet").to_pylist()
    assert [(row["row"], row["line"], row["column"]) for row in listed] == [(3, None, "user"), (None, 5, None)]
    raw = pq.read_table(tmp_path / "quarantine" / "events.parquet").to_pylist()
    assert raw == [{"file": "log.csv", "row": 3, "user": None, "item": "x", "price": "1", "time": "30", "rating": "5"}]


def test_duplicates_are_bad_only_where_refused(database: Database, tmp_path: Path) -> None:
    content = GOOD + "a,x,9,10,5\na,x,9,11,5\n"
    assert read(database, tmp_path, content).num_bad == 0
    database.drop("raw_events", "bad_events", "malformed_events", "log_events")
    with pytest.raises(ValueError, match=r"bad rows \(1 of 4 in events\): log.csv row 3: user 'a' repeats an earlier"):
        read(database, tmp_path, content, LogRules(duplicates="refuse"))


@pytest.mark.parametrize(("row", "problem"), [("a,7", "stands in an earlier row too"), (",7", "is missing")])
def test_users_are_listed_once_by_id(database: Database, tmp_path: Path, row: str, problem: str) -> None:
    (tmp_path / "log.csv").write_text(GOOD)
    (tmp_path / "users.csv").write_text(f"user,age\na,30\nb,40\n{row}\n")
    files = {"events": "log.csv", "users": "users.csv"}
    source = make_source("csv", SourceRequest(path=str(tmp_path), files=files)).read(database)
    where = BadRowFiles(report=tmp_path / "bad.csv", quarantine=tmp_path / "quarantine")
    with pytest.raises(ValueError, match=f"1 of 3 in users.*row 3: user.* {problem}"):
        read_log(database, source, schema_of(), LogRules(), where)


def test_published_split_column_is_checked(database: Database, tmp_path: Path) -> None:
    content = "user,item,price,time,rating,part\na,x,1,1,5,train\nb,y,1,2,5,dev\n"
    with pytest.raises(ValueError, match=r"row 2: part 'dev' is none of train, validation, test"):
        read(database, tmp_path, content, LogRules(split_column="part"))


def test_weight_and_probability_have_bounds(database: Database, tmp_path: Path) -> None:
    content = "user,item,price,time,rating,w,p\na,x,1,1,5,1,1.5\nb,y,1,2,5,-1,0\n"
    with pytest.raises(ValueError, match=r"row 1: p '1\.5' is outside 0\.\.1; log.csv row 2: w '-1' is below 0"):
        read(database, tmp_path, content, weight="w", probability="p")


def test_an_unknown_user_needs_a_row_for_it(database: Database, tmp_path: Path) -> None:
    lenient = FEATURES | {"user": ID}
    assert read(database, tmp_path, GOOD + ",x,1,30,5\n", features=lenient).num_bad == 0
    database.drop("raw_events", "bad_events", "malformed_events", "log_events")
    with pytest.raises(ValueError, match="row 3: user is missing"):
        read(database, tmp_path, GOOD + ",x,1,30,5\n", features=FEATURES | {"user": ID | {"unseen": "refuse"}})


def test_a_log_without_rows_is_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no events in .*: 2 rows read, 0 of them bad"):
        read(database, tmp_path, GOOD, labels={"like": {"column": "rating", "dropped": [1, 5]}})


def test_numbers_run_over_all_files(database: Database, tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / f"part{name}.csv").write_text(GOOD)
    source = make_source("csv", SourceRequest(path=str(tmp_path / "part*.csv"))).read(database)
    files = BadRowFiles(report=tmp_path / "bad.csv", quarantine=tmp_path / "quarantine")
    log = read_log(database, source, schema_of(), LogRules(), files)
    assert [row[NUMBER] for row in rows_of(database, log)] == [0, 1, 2, 3]


def test_a_parquet_file_that_is_broken_inside_is_named(database: Database, tmp_path: Path) -> None:
    for name in ("one", "two"):
        table = pa.table({"user": list(range(9000)), "item": ["x"] * 9000, "price": [1.5] * 9000})
        pq.write_table(table, tmp_path / f"{name}.parquet", use_dictionary=False)
    data = (tmp_path / "two.parquet").read_bytes()
    (tmp_path / "two.parquet").write_bytes(data[:4] + b"\xff" * 2000 + data[2004:])
    source = make_source("parquet", SourceRequest(path=str(tmp_path / "*.parquet"))).read(database)
    files = BadRowFiles(report=tmp_path / "bad.csv", quarantine=tmp_path / "quarantine")
    with pytest.raises(ValueError, match=r"two\.parquet: not a readable Parquet file") as caught:
        read_log(database, source, schema_of(timestamp="", labels={}), LogRules(), files)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(DATA is None, reason="RECSYS_DATA is not set")
def test_movielens_protocol_keeps_the_published_samples(database: Database, tmp_path: Path) -> None:
    columns = {"user": "user_id", "movie": "movie_id"}
    features: dict[str, Any] = {name: ID | {"column": column} for name, column in columns.items()}
    features |= {name: ID | {"entity": "user"} for name in ("gender", "age", "occupation", "zip")}
    labels = {"liked": {"column": "rating_class", "positive": [2], "dropped": [1, -1]}}
    values = {"name": "ml", "user": "user", "item": "movie", "features": features, "labels": labels}
    source = make_source("movielens", SourceRequest(path="ml-1m", root=Path(str(DATA)))).read(database)
    files = BadRowFiles(report=tmp_path / "bad.csv", quarantine=tmp_path / "quarantine")
    log = read_log(database, source, parse_schema(values, where="test"), LogRules(), files)
    positive = log.events.filter(log.events[label_column("liked")] > 0)
    counts = [database.value(rows.count()) for rows in (log.events, positive)]
    assert counts == [739_007, 575_280]
    assert log.num_dropped == 1_000_209 - 739_007
    assert log.users is not None
    assert database.value(log.users.count()) == 6_040

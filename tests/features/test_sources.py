"""Published formats, each in the smallest file that shows it, and the real ones where they are."""

import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.database import Database
from features.source_files import ROW, SPLIT
from features.sources import SOURCES, SourceRequest, make_source, named
from features.worlds import generate, open_world

DATA = os.environ.get("RECSYS_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="RECSYS_DATA is not set")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "work").mkdir()
    with Database.open(tmp_path / "work") as opened:
        yield opened


def read(database: Database, source: str, **request: Any) -> dict[str, list[dict[str, Any]]]:
    tables = make_source(source, SourceRequest(**request)).read(database).by_role()
    return {role: database.fetch(table.rows.select(*table.columns)).to_pylist() for role, table in tables.items()}


def test_csv_reads_events_users_and_items(database: Database, tmp_path: Path) -> None:
    for name, content in {"log": "u,i\n1,2\n", "people": "u,age\n1,30\n", "things": "i,price\n2,.5\n"}.items():
        (tmp_path / f"{name}.csv").write_text(content)
    files = {"events": "log.csv", "users": "people.csv", "items": "things.csv"}
    assert read(database, "csv", path=str(tmp_path), files=files) == {
        "events": [{"u": "1", "i": "2"}], "users": [{"u": "1", "age": "30"}], "items": [{"i": "2", "price": ".5"}],
    }  # fmt: skip


def test_a_relative_path_is_below_the_root(database: Database, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("u\n1\n")
    assert read(database, "csv", path="log.csv", root=tmp_path)["events"] == [{"u": "1"}]


def test_tsv_without_a_header_takes_names(database: Database, tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text("1\t2\n3\t\n")
    found = read(database, "tsv", path=str(tmp_path / "log.tsv"), options={"names": ["label", "I1"]})
    assert found["events"] == [{"label": "1", "I1": "2"}, {"label": "3", "I1": None}]


def test_missing_values_are_those_that_the_config_names(database: Database, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a,b\nNA,\n1,-\n")
    found = read(database, "csv", path=str(tmp_path / "log.csv"), options={"missing": ["NA", "-"]})
    assert found["events"] == [{"a": None, "b": ""}, {"a": "1", "b": None}]


def test_published_split_comes_from_the_roles(database: Database, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"a\n{split}\n")
    source = make_source("csv", SourceRequest(path=str(tmp_path), files={"train": "train.csv", "test": "test.csv"}))
    found = database.fetch(source.read(database).events.rows).to_pylist()
    assert [row["a"] for row in found] == [row[SPLIT] for row in found] == ["train", "test"]


def test_columns_go_by_the_names_of_the_schema(database: Database, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("uid,iid,user\n1,2,x\n")
    (tmp_path / "users.csv").write_text("id,uid\n1,y\n")
    columns: dict[str, Any] = {"user": "uid", "item": "iid", "users": {"user": "id"}}
    files = {"events": "log.csv", "users": "users.csv"}
    found = read(database, "csv", path=str(tmp_path), files=files, columns=columns)
    assert {key: found["events"][0][key] for key in ("user", "item")} == {"user": "1", "item": "2"}
    assert found["users"][0]["user"] == "1"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": "ui"}, r"no column 'ui' for data\.columns\.user, did you mean 'u'"),
        ({"users": {"user": "u"}}, "there is no table of users"),
        ({"events": {"user": "uu"}}, r"no column 'uu' for data\.columns\.events\.user"),
    ],
)
def test_columns_that_are_nowhere_are_refused(
    database: Database, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    (tmp_path / "log.csv").write_text("u,i\n1,2\n")
    with pytest.raises(ValueError, match=message):
        read(database, "csv", path=str(tmp_path / "log.csv"), columns=columns)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_movielens_reads_dat_files(database: Database, tmp_path: Path, suffix: str) -> None:
    contents = {
        "ratings.dat": "1::10::5::978300760\n", "users.dat": "1::F::1::10::02138\n",
        "movies.dat": "10::Misérables, Les (1995)::Drama|Musical\n",
    }  # fmt: skip
    for name, content in contents.items():
        data = content.encode("latin-1")
        (tmp_path / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    assert read(database, "movielens", path=str(tmp_path)) == {
        "events": [{"user_id": "1", "movie_id": "10", "rating": "5", "timestamp": "978300760"}],
        "users": [{"user_id": "1", "gender": "F", "age": "1", "occupation": "10", "zip": "02138"}],
        "items": [{"movie_id": "10", "title": "Misérables, Les (1995)", "genres": "Drama|Musical"}],
    }


def test_movielens_parquet_takes_zero_for_unknown(database: Database, tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2], "rating": [0, 4], "rating_class": [0, 2], "timestamp": [9, 0]})
    pq.write_table(table, tmp_path / "ratings.parquet")
    assert read(database, "movielens", path=str(tmp_path))["events"] == [
        {"user_id": 1, "rating": None, "rating_class": 0, "timestamp": 9},
        {"user_id": 2, "rating": 4, "rating_class": 2, "timestamp": None},
    ]


def test_adjacency_refuses_a_table_of_users(database: Database, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("1 2\n")
    with pytest.raises(ValueError, match="reads no table of users"):
        read(database, "adjacency", path=str(tmp_path), files={"train": "train.txt", "users": "train.txt"})


def test_world_gives_its_tables(database: Database) -> None:
    found = read(database, "world", path="small")
    world = generate("small")
    expected = {"events": world.events, "users": world.users, "items": world.items}
    assert found == {role: table.to_pylist() for role, table in expected.items()}


def test_streamed_world_numbers_its_rows_through_all_batches(database: Database) -> None:
    tables = make_source("world", SourceRequest(path="bigids_small")).read(database)
    assert list(tables.by_role()) == ["events"]
    rows = database.fetch(tables.events.rows)
    assert rows[ROW].to_pylist() == list(range(1, 50_001))
    assert rows.select(list(tables.events.columns)) == open_world("bigids_small").readers()["events"].read_all()


@pytest.mark.parametrize("world", ["small", "bigids_small"])
def test_world_fingerprint_follows_the_seed(world: str) -> None:
    prints = [make_source("world", SourceRequest(path=world, options=o)).fingerprints() for o in ({}, {"seed": 1})]
    assert prints[0] == {"world": open_world(world).content_hash} != prints[1]


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("cvs", {"path": "x"}, "unknown source 'cvs', did you mean 'csv'"),
        ("csv", {"path": "x", "options": {"delim": ";"}}, "unknown key 'delim'"),
        ("csv", {"path": "/nowhere/at/all"}, "no file of events"),
        ("world", {"path": "mars"}, "there is no world 'mars'"),
        ("world", {"path": "small", "files": {"events": "x"}}, "reads no files"),
        ("nopackage.mod:Reader", {"path": "x"}, "cannot be imported"),
        ("features.sources:Missing", {"path": "x"}, "cannot be imported"),
    ],
)
def test_sources_refuse_in_one_line(name: str, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_source(name, SourceRequest(**request_))


def test_a_users_class_is_a_source(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_source.py").write_text(
        "from features.sources import DelimitedSource\n\n\nclass Piped(DelimitedSource):\n    delimiter = '|'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "log.txt").write_text("a|b\n1|2\n")
    assert read(database, "their_source:Piped", path=str(tmp_path / "log.txt"))["events"] == [{"a": "1", "b": "2"}]
    sys.modules.pop("their_source")


def test_every_source_has_a_name_in_the_table() -> None:
    assert set(SOURCES) == {"parquet", "csv", "tsv", "movielens", "adjacency", "world"}


def test_named_keeps_unmapped_columns(database: Database, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("u,i\n1,2\n")
    tables = make_source("csv", SourceRequest(path=str(tmp_path / "log.csv"))).read(database)
    assert named({"events": tables.events}, {"user": "u"}).events.columns == ("u", "i", "user")


@needs_data
def test_gowalla_has_its_published_counts(database: Database) -> None:
    source = make_source("adjacency", SourceRequest(path="gowalla", root=Path(str(DATA))))
    rows = source.read(database).events.rows
    counts = database.fetch(rows.group_by(SPLIT).aggregate(n=rows.count())).to_pylist()
    assert {row[SPLIT]: row["n"] for row in counts} == {"train": 810_128, "test": 217_242}
    assert (database.value(rows["user"].nunique()), database.value(rows["item"].nunique())) == (29_858, 40_981)

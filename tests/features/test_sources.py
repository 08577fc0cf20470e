"""Published formats, each in the smallest file that shows it, and the real ones where they are."""

import gzip
import json
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


def test_taobao_reads_every_event(database: Database, tmp_path: Path) -> None:
    lines = ["1,2268318,2520377,pv,1511544070", "1,2333346,2520771,buy,1511561733", "100,5,6,fav,1512000000"]
    (tmp_path / "UserBehavior.csv").write_text("\n".join(lines) + "\n")
    rows = read(database, "taobao", path=str(tmp_path))["events"]
    assert [",".join(row.values()) for row in rows] == lines
    assert list(rows[0]) == ["user", "item", "category", "behaviour", "time"]


def test_criteo_reads_every_field(database: Database, tmp_path: Path) -> None:
    fields = ["1", "3", "-2", *("" for _ in range(11)), *(f"{number:08x}" for number in range(25)), ""]
    (tmp_path / "day_0").write_text("\t".join(fields) + "\n" + "0" + "\t" * 39 + "\n")
    first, second = read(database, "criteo", path=str(tmp_path / "day_0"))["events"]
    assert ["" if value is None else value for value in first.values()] == fields
    assert list(first) == ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    assert [value for value in second.values() if value is not None] == ["0"]


def test_frappe_reads_every_field(database: Database, tmp_path: Path) -> None:
    lines = ["0-957-964-971-973-976-985-1065,0-4082", "956-960-970-972-975-984-1064-1297,4081-4083"]
    (tmp_path / "cfm_train.csv").write_text("\n".join(lines) + "\n")
    rows = read(database, "frappe", path=str(tmp_path / "cfm_train.csv"))["events"]
    assert [f"{'-'.join(list(row.values())[:8])},{row['item']}-{row['cost']}" for row in rows] == lines


REVIEWS: list[dict[str, Any]] = [
    {"reviewerID": "A1", "asin": "B1", "reviewerName": "Zoë \"Z\"", "helpful": [0, 2], "reviewText": "a | b\nc",
     "overall": 5.0, "summary": "", "unixReviewTime": 1370736000, "reviewTime": "06 9, 2013"},
    {"overall": 4.0, "vote": "3", "verified": True, "reviewTime": "10 20, 2014", "reviewerID": "A2", "asin": "B2",
     "style": {"Format:": " DVD"}, "unixReviewTime": 1413763200, "image": ["u"], "new": [1, None]},
]  # fmt: skip
PRODUCTS: list[dict[str, Any]] = [
    {"asin": "B1", "categories": [["Electronics", "GPS"], ["Electronics", "Radio"]], "price": 14.99,
     "related": {"also_bought": ["B2"]}, "salesRank": {"Electronics": 7}, "title": "It's"},
    {"asin": "B2", "category": ["Movies", "DVD"], "price": "$9.99", "rank": "1,2", "brand": None},
    {"asin": "B3"},
]  # fmt: skip


def regained(row: dict[str, Any]) -> dict[str, Any]:
    """The record of a row: text, or what its JSON form stands for; `other` opened."""
    others = json.loads(row["other"]) if row["other"] else {}
    return {name: value for name, value in row.items() if name not in ("other", "last_category")} | others


@pytest.mark.parametrize("python", [False, True])
def test_amazon_reads_without_loss(database: Database, tmp_path: Path, python: bool) -> None:
    """`python`: the metadata of 2014, which are Python literals."""
    form: Any = repr if python else json.dumps
    (tmp_path / "reviews_X_5.json").write_text("".join(json.dumps(review) + "\n" for review in REVIEWS))
    (tmp_path / "meta_X.json.gz").write_bytes(gzip.compress("".join(f"{form(p)}\n" for p in PRODUCTS).encode()))
    found = read(database, "amazon", path=str(tmp_path))
    for rows, records in ((found["events"], REVIEWS), (found["items"], PRODUCTS)):
        assert len(rows) == len(records)
        for row, record in zip(rows, records, strict=True):
            values = {name: value for name, value in regained(row).items() if value is not None}
            for name, value in values.items():
                assert value == record[name] or json.loads(value) == record[name]
            assert set(values) == {name for name, value in record.items() if value is not None}
    assert [row["last_category"] for row in found["items"]] == ["Radio", "DVD", None]


def dmr_line(row: dict[str, Any]) -> list[str]:
    """The 267 fields of a row of ours."""
    masks = {name: row[name].split("|") for name in ("mask", "match_mask")}
    histories = []
    for name in ("btag_his", "cate_his", "brand_his"):
        values = iter(row[name].split("|"))
        histories += [next(values) if mask != "0" else "0" for mask in masks["mask"]]
    rest = [value for name, value in row.items() if not name.endswith(("_his", "mask"))]
    return [*histories, *masks["mask"], *masks["match_mask"], *rest]


def test_alimama_histories_are_the_places_that_are_used(database: Database, tmp_path: Path) -> None:
    used = ["0"] * 47 + ["1"] * 3
    groups = [[f"{group}{place}" if mask == "1" else "0" for place, mask in enumerate(used)] for group in (1, 2, 3)]
    line = [value for group in (*groups, used, ["0"] * 50) for value in group] + [str(number) for number in range(17)]
    (tmp_path / "log.txt").write_text(",".join(line) + "\n" + ",".join(["0"] * 266 + ["NULL"]) + "\n")
    first, second = read(database, "alimama_dmr", path=str(tmp_path / "log.txt"))["events"]
    assert (first["cate_his"], first["user"], first["clk"]) == ("247|248|249", "0", "16")
    assert (second["cate_his"], second["clk"]) == ("", None)
    assert dmr_line(first) == line


@needs_data
def test_alimama_rows_are_read_without_loss(database: Database) -> None:
    path = Path(str(DATA)) / "alimama_dmr_500" / "alimama_sampled_train.txt.gz"
    rows = read(database, "alimama_dmr", path=str(path))["events"]
    with gzip.open(path, "rt") as lines:
        assert [dmr_line(row) for row in rows] == [line.strip().split(",") for line in lines]
    assert len(rows) == 500


@needs_data
def test_criteo_and_frappe_rows_are_read_without_loss(database: Database) -> None:
    root = Path(str(DATA))
    criteo = read(database, "criteo", root=root, path="criteo_10k/train_examples.txt.gz")["events"]
    with gzip.open(root / "criteo_10k" / "train_examples.txt.gz", "rt") as lines:
        expected = [line.rstrip("\n").split("\t") for line in lines]
    assert [[value or "" for value in row.values()] for row in criteo] == expected
    database.drop("raw_events")
    frappe = read(database, "frappe", root=root, path="frappe", files={"events": "cfm_*.csv.gz"})["events"]
    assert len({tuple(row.values()) for row in frappe}) == 96_195


def test_amazon_refuses_a_table_of_users(database: Database, tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_text("{}\n")
    with pytest.raises(ValueError, match="reads no table of users"):
        read(database, "amazon", path=str(tmp_path), files={"events": "reviews.json", "users": "reviews.json"})


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
    published = {"movielens", "adjacency", "criteo", "frappe", "taobao", "amazon", "alimama_dmr"}
    assert set(SOURCES) == {"parquet", "csv", "tsv", "world", *published}


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

"""Raw files as tables: equal to naive readers, every broken file named."""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.database import Database
from features.source_files import (
    FILE,
    ROW,
    SPLIT,
    Delimited,
    InputFile,
    Inputs,
    SourceTable,
    adjacency_table,
    delimited_table,
    missing_column,
    parquet_table,
    split_columns,
)

COMMA = Delimited(delimiter=",")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "work").mkdir()
    with Database.open(tmp_path / "work") as opened:
        yield opened


def rows_of(database: Database, table: SourceTable) -> list[dict[str, Any]]:
    return database.fetch(table.rows).to_pylist()  # type: ignore[no-any-return]


def written(path: Path, content: str | bytes) -> InputFile:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return InputFile(path.name.split(".")[0], path)


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_adjacency_equals_a_naive_reader(database: Database, tmp_path: Path, suffix: str) -> None:
    lines = {"train": "0 5 6\n1 7\n\n2\n", "test": "0 9\n1\n2 8 8"}
    files = [written(tmp_path / f"{split}.{suffix}", content) for split, content in lines.items()]
    expected = [
        (int(line.split()[0]), int(item), split)
        for split, content in lines.items()
        for line in content.splitlines()
        for item in line.split()[1:]
    ]
    found = rows_of(database, adjacency_table(database, files))
    assert [(row["user"], row["item"], row[SPLIT]) for row in found] == expected
    assert [row[ROW] for row in found] == [1, 2, 3, 1, 2, 3]


def test_adjacency_longer_than_a_batch_keeps_its_numbers(database: Database, tmp_path: Path) -> None:
    users = 700
    lines = "".join(f"{user} {' '.join(map(str, range(200)))}\n" for user in range(users))
    found = database.fetch(adjacency_table(database, [written(tmp_path / "train.txt", lines)]).rows)
    assert found[ROW].to_pylist() == list(range(1, users * 200 + 1))
    assert found["user"].to_pylist() == [user for user in range(users) for _ in range(200)]


@pytest.mark.parametrize("word", ["x", "1.5", "99999999999999999999"])
def test_adjacency_names_file_and_line_of_a_wrong_word(database: Database, tmp_path: Path, word: str) -> None:
    file = written(tmp_path / "train.txt", f"0 1\n1 2 {word}\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 2: .* is no integer"):
        adjacency_table(database, [file])


def test_truncated_gzip_is_refused_by_name(database: Database, tmp_path: Path) -> None:
    whole = gzip.compress(b"0 1 2 3\n" * 10_000)
    (tmp_path / "train.txt.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train\.txt\.gz: not a whole gzip file"):
        adjacency_table(database, [InputFile("train", tmp_path / "train.txt.gz")])
    with pytest.raises(ValueError, match=r"log\.csv\.gz: not a whole gzip file"):
        delimited_table(database, "events", [InputFile("events", tmp_path / "log.csv.gz")], COMMA)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_equals_the_csv_module(database: Database, tmp_path: Path, ending: str) -> None:
    lines = ["u,i,t", '1,"a,b",3', ",4,", '"x ""y""",  5 ,007']
    path = tmp_path / "log.csv"
    file = written(path, "\ufeff" + ending.join(lines) + ending)
    expected = [{key: value or None for key, value in row.items()} for row in csv.DictReader(lines)]
    table = delimited_table(database, "events", [file], COMMA)
    assert [{key: row[key] for key in ("u", "i", "t")} for row in rows_of(database, table)] == expected
    assert table.untyped


def test_csv_with_mixed_line_ends_is_named(database: Database, tmp_path: Path) -> None:
    lines = "a,b\n" + "1,2\n" * 3 + "3,4\r\n"
    with pytest.raises(ValueError, match=r"mixed\.csv: some lines end with CRLF and others with LF"):
        delimited_table(database, "events", [written(tmp_path / "mixed.csv", lines)], COMMA)


def test_csv_sets_malformed_lines_aside(database: Database, tmp_path: Path) -> None:
    file = written(tmp_path / "log.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n")
    other = written(tmp_path / "more.csv", "a,b\n9\n")
    table = delimited_table(database, "events", [file, other], COMMA)
    assert [row["a"] for row in rows_of(database, table)] == ["1", "7"]
    assert [(name, line) for name, line, _ in table.malformed] == [("log.csv", 3), ("log.csv", 4), ("more.csv", 2)]


def test_csv_reads_named_columns_without_a_header(database: Database, tmp_path: Path) -> None:
    file = written(tmp_path / "users.dat", "1::Misérables::x|y\n2::B::\n".encode("latin-1"))
    form = Delimited(delimiter="::", quote="", encoding="latin-1", names=("id", "title", "genres"))
    found = rows_of(database, delimited_table(database, "users", [file], form))
    assert [(row["id"], row["title"], row["genres"]) for row in found] == [("1", "Misérables", "x|y"), ("2", "B", None)]


@pytest.mark.parametrize("header", ["a,a", "a,"])
def test_csv_header_must_name_columns_once(database: Database, tmp_path: Path, header: str) -> None:
    with pytest.raises(ValueError, match=r"log\.csv: the header must name every column once"):
        delimited_table(database, "events", [written(tmp_path / "log.csv", f"{header}\n1,2\n")], COMMA)


def test_csv_files_must_have_one_header(database: Database, tmp_path: Path) -> None:
    files = [written(tmp_path / "one.csv", "a,b\n1,2\n"), written(tmp_path / "two.csv", "b,a\n1,2\n")]
    with pytest.raises(ValueError, match=r"two\.csv: its header differs"):
        delimited_table(database, "events", files, COMMA)


def test_parquet_files_are_one_table_by_column_name(database: Database, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"b": ["z"], "a": [3]}), tmp_path / "test.parquet")
    files = [InputFile(role, tmp_path / f"{role}.parquet") for role in ("train", "test")]
    found = rows_of(database, parquet_table(database, "events", files))
    assert [(row["a"], row["b"], row[FILE], row[ROW], row[SPLIT]) for row in found] == [
        (1, "x", 0, 1, "train"), (2, "y", 0, 2, "train"), (3, "z", 1, 1, "test"),
    ]  # fmt: skip


def test_parquet_columns_leave_the_names_of_places_free(database: Database, tmp_path: Path) -> None:
    pq.write_table(pa.table({"file_index": [1]}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"log\.parquet: column name 'file_index' is used"):
        parquet_table(database, "events", [InputFile("events", tmp_path / "log.parquet")])


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_corrupt_parquet_is_refused_by_name(database: Database, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    path.write_bytes(b"no parquet" if damage == "text" else path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"log\.parquet: not a readable Parquet file") as caught:
        parquet_table(database, "events", [InputFile("events", path)])
    assert "\n" not in str(caught.value)


def test_inputs_take_the_first_default_that_exists(tmp_path: Path) -> None:
    for name in ("b.txt", "c.txt", "users.txt"):
        (tmp_path / name).write_text(name)
    inputs = Inputs(str(tmp_path), {}, {"events": ("a.txt", "b.txt", "c.txt"), "users": ("users.txt",)})
    assert [(file.role, file.path.name) for file in inputs.files] == [("events", "b.txt"), ("users", "users.txt")]


def test_inputs_sort_what_a_glob_finds(tmp_path: Path) -> None:
    for name in ("p2.csv", "p1.csv", "p10.csv"):
        (tmp_path / name).write_text("")
    inputs = Inputs(str(tmp_path), {"events": "p*.csv"}, {})
    assert [file.path.name for file in inputs.files] == ["p1.csv", "p10.csv", "p2.csv"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"event": "a.csv"}, "unknown role 'event'"),
        ({"events": "no.csv"}, r"data\.files\.events: there is no file 'no\.csv'"),
        ({"events": "a.csv", "test": "a.csv"}, "give either `events`, or"),
        ({"users": "a.csv"}, "no file of events"),
    ],
)
def test_inputs_refuse_what_is_not_there(tmp_path: Path, files: dict[str, str], message: str) -> None:
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match=message):
        Inputs(str(tmp_path), files, {})


def test_inputs_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    before = Inputs(str(tmp_path), {"events": "a.csv"}, {}).fingerprints()
    (tmp_path / "a.csv").write_text("2")
    assert Inputs(str(tmp_path), {"events": "a.csv"}, {}).fingerprints() != before


def test_missing_column_names_file_and_the_nearest(database: Database, tmp_path: Path) -> None:
    table = delimited_table(database, "events", [written(tmp_path / "log.csv", "user_id,item\n1,2\n")], COMMA)
    error = missing_column("userid", "feature 'user'", "events", table)
    assert str(error) == (
        "events (log.csv): no column 'userid' for feature 'user', did you mean 'user_id'? (it has user_id, item)"
    )


def test_split_columns_are_the_pieces(database: Database, tmp_path: Path) -> None:
    file = written(tmp_path / "train.csv", "1-2-3,x-9\n1-2,x-9\n4--6,y-8\n,y-8\n7-8-9-0,z-1\n")
    table = delimited_table(database, "events", [file], Delimited(delimiter=",", names=("abc", "de")))
    found = split_columns(database, table, {"abc": ("a", "b", "c"), "de": ("d", "e")}, "-")
    rows = rows_of(database, found)
    assert [[row[name] for name in "abcde"] for row in rows] == [["1", "2", "3", "x", "9"], ["4", None, "6", "y", "8"]]
    assert [row[ROW] for row in rows] == [1, 3]
    problem = "is not 3 values joined by '-' and 2 values joined by '-'"
    assert found.malformed == tuple(("train.csv", line, problem) for line in (2, 4, 5))
    assert {row[SPLIT] for row in rows} == {"train"}

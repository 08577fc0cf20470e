"""Records a line: text as it is, all else as JSON, broken lines and files named."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.database import Database
from features.json_lines import BATCH_LINES, OTHER, json_table
from features.source_files import FILE, ROW, SPLIT, InputFile

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "work").mkdir()
    with Database.open(tmp_path / "work") as opened:
        yield opened


def written(path: Path, lines: list[str], role: str = "events") -> InputFile:
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return InputFile(role, path)


def test_fields_are_columns_and_the_rest_is_other(database: Database, tmp_path: Path) -> None:
    lines = [json.dumps({"a": "x", "b": 1.5}), "{'a': True, 'c': [1, \"it's\"]}", ""]
    file = written(tmp_path / "a.json", lines)
    table = json_table(database, "events", [file], ("a", "b"), {"size": len})
    rows = database.fetch(table.rows.select("a", "b", "size", OTHER)).to_pylist()
    assert rows == [
        {"a": "x", "b": "1.5", "size": "2", OTHER: None},
        {"a": "true", "b": None, "size": "2", OTHER: json.dumps({"c": [1, "it's"]})},
    ]
    assert table.untyped


def test_lines_that_are_no_records_are_malformed(database: Database, tmp_path: Path) -> None:
    broken = ["[1]", "{'a': open('x')}", "{1: 2}", "{", "(" * 3000, "[" * 100_000, "{[]: 1}", "{'a': {1, 2}}"]
    broken += ['{"a": "\\ud83d"}', "{'a': ['\\ud83d']}"]
    lines = ["{}", *broken, '{"a": "b"}', "{'a': {(1, 2): 3}}"]
    table = json_table(database, "events", [written(tmp_path / "a.json", lines)], ("a",))
    assert [(name, line) for name, line, _ in table.malformed] == [("a.json", line) for line in (*range(2, 12), 13)]
    assert database.fetch(table.rows)["a"].to_pylist() == [None, "b"]


def test_rows_are_numbered_by_file_and_know_their_split(database: Database, tmp_path: Path) -> None:
    files = [written(tmp_path / "a.json.gz", ['{"a": "1"}'] * (BATCH_LINES + 1), "train")]
    files.append(written(tmp_path / "b.json", ['{"a": "2"}'] * 2, "test"))
    found = database.fetch(json_table(database, "events", files, ("a",)).rows)
    assert found[FILE].to_pylist() == [0] * (BATCH_LINES + 1) + [1, 1]
    assert found[ROW].to_pylist() == [*range(1, BATCH_LINES + 2), 1, 2]
    assert found[SPLIT].to_pylist() == ["train"] * (BATCH_LINES + 1) + ["test"] * 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"{}\n" * 900)[:-9], "not a whole gzip file"),
        (b"\xff\xfe", "not a whole gzip file"),
        (gzip.compress(b"\xff\xfe"), "not text"),
    ],
)
def test_broken_files_are_named(database: Database, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.json.gz").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.json\.gz: {message}"):
        json_table(database, "events", [InputFile("events", tmp_path / "a.json.gz")], ("a",))


@settings(deadline=None, max_examples=30)
@given(record=st.dictionaries(st.sampled_from("abcd"), VALUES), python=st.booleans())
def test_records_are_regained(record: dict[str, Any], python: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("json")
    with Database.open(folder) as database:
        line = repr(record) if python else json.dumps(record)
        row = database.fetch(json_table(database, "events", [written(folder / "a.json", [line])], ("a", "b")).rows)
        found = row.to_pylist()[0]
    others = json.loads(found[OTHER]) if found[OTHER] else {}
    assert others == {name: value for name, value in record.items() if name not in ("a", "b")}
    for name in ("a", "b"):
        value = record.get(name)
        assert found[name] == value if isinstance(value, str | None) else json.loads(found[name]) == value

"""Bad rows as a table: found in one look, separated, and listed. (What is bad: test_logs, test_raw_columns.)"""

from collections.abc import Iterator
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.bad_rows import SHOWN, BadRowFiles, BadRows, settle
from features.database import Database
from features.raw_columns import Fault
from features.source_files import FILE, ROW, SourceTable

NUM_ROWS = 1000


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "work").mkdir()
    with Database.open(tmp_path / "work") as opened:
        yield opened


def numbers(database: Database, malformed: int = 0) -> SourceTable:
    rows = pa.table({"a": np.arange(NUM_ROWS), FILE: np.repeat([0, 1], NUM_ROWS // 2), ROW: np.arange(NUM_ROWS) + 1})
    lines = tuple(("two.csv", line, "too short") for line in range(1, malformed + 1))
    return SourceTable(rows=database.store_arrow("numbers", rows), names=("one.csv", "two.csv"), malformed=lines)


def divisible(table: SourceTable, by: int) -> Fault:
    return Fault("a", (table.rows["a"] % by) == 0, f"divides by {by}")


def test_good_and_bad_rows_are_all_rows(database: Database) -> None:
    table = numbers(database, malformed=2)
    bad = BadRows(database, "events", table, [divisible(table, 7), divisible(table, 10)])
    expected = [a for a in range(NUM_ROWS) if a % 7 and a % 10]
    assert database.fetch(bad.good)["a"].to_pylist() == expected
    assert bad.count == NUM_ROWS - len(expected) + 2
    assert bad.num_rows == NUM_ROWS + 2
    assert sorted(database.fetch(bad.raw)["a"].to_pylist() + expected) == list(range(NUM_ROWS))


def test_a_row_is_listed_for_each_of_its_faults(database: Database) -> None:
    table = numbers(database)
    bad = BadRows(database, "events", table, [divisible(table, 100), divisible(table, 300)])
    listed = database.fetch(bad.listed().order_by("row", "problem")).to_pylist()
    assert [(line["row"], line["problem"]) for line in listed][:3] == [
        (1, "divides by 100"), (1, "divides by 300"), (101, "divides by 100"),
    ]  # fmt: skip
    assert {(line["file"], line["row"]) for line in listed} >= {("one.csv", 101), ("two.csv", 501)}


def test_faults_may_look_at_other_rows(database: Database) -> None:
    table = numbers(database)
    rank = ibis.row_number().over(ibis.window(group_by=table.rows["a"] % 3, order_by=table.rows[ROW]))
    bad = BadRows(database, "events", table, [Fault("a", rank > 0, "came before")])
    assert sorted(database.fetch(bad.good)["a"].to_pylist()) == [0, 1, 2]


def test_nothing_bad_is_nothing_to_settle(database: Database, tmp_path: Path) -> None:
    table = numbers(database)
    files = BadRowFiles(report=tmp_path / "bad.csv", quarantine=tmp_path / "quarantine")
    settle(database, [BadRows(database, "events", table, [])], files, fail=True)
    assert not files.report.exists()
    assert not files.quarantine.exists()


def test_failing_shows_the_first_and_lists_all(database: Database, tmp_path: Path) -> None:
    table = numbers(database, malformed=1)
    bad = BadRows(database, "events", table, [divisible(table, 100)])
    files = BadRowFiles(report=tmp_path / "bad.csv", quarantine=tmp_path / "quarantine")
    with pytest.raises(ValueError, match=r"bad rows \(11 of 1,001 in events\)") as caught:
        settle(database, [bad], files, fail=True)
    assert str(caught.value).count("divides by 100") == SHOWN
    assert len(files.report.read_text().splitlines()) == 12
    assert "two.csv,,1,,,too short" in files.report.read_text()


def test_quarantine_holds_the_list_and_the_rows(database: Database, tmp_path: Path) -> None:
    table = numbers(database, malformed=1)
    bad = BadRows(database, "events", table, [divisible(table, 100)])
    files = BadRowFiles(report=tmp_path / "bad.csv", quarantine=tmp_path / "quarantine")
    settle(database, [bad], files, fail=False)
    assert pq.read_table(files.quarantine / "bad_rows.parquet").num_rows == 11
    assert pq.read_table(files.quarantine / "events.parquet")["a"].to_pylist() == list(range(0, NUM_ROWS, 100))

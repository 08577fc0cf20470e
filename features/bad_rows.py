"""The rows of a log that are not as the schema says: found all at once, listed by number and column, set aside.

Nothing here knows what is wrong; it evaluates the `Fault`s that it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from features.database import Database
from features.raw_columns import Fault
from features.source_files import FILE, ROW, SourceTable
from features.storage import file_aside, third_party

SHOWN = 5
_BAD = "__bad"
_LIST = {
    "table": pa.string(), "file": pa.string(), "row": pa.int64(), "line": pa.int64(), "column": pa.string(),
    "value": pa.string(), "problem": pa.string(),
}  # fmt: skip


class BadRows:
    """The bad rows of one table, kept in the database with a flag per fault, and its good rows."""

    def __init__(self, database: Database, role: str, table: SourceTable, faults: Sequence[Fault]) -> None:
        self.role, self.table = role, table
        self._database, self._faults = database, tuple(faults)
        flags = {_flag(place): fault.condition for place, fault in enumerate(faults)}
        self._flagged = table.rows.mutate(**flags) if flags else table.rows
        found = self._flagged.filter(self._any()) if flags else table.rows.limit(0)
        self._bad = database.store(f"bad_{role}", found)
        self.num_unreadable = int(database.value(self._bad.count()))

    @property
    def count(self) -> int:
        """Bad rows, the lines that could not even be told apart included."""
        return self.num_unreadable + len(self.table.malformed)

    @cached_property
    def num_rows(self) -> int:
        """All rows of the table, good and bad."""
        return int(self._database.value(self.table.rows.count())) + len(self.table.malformed)

    @property
    def good(self) -> ir.Table:
        """The other rows, as they came."""
        if not self.num_unreadable:
            return self.table.rows
        return self._flagged.filter(~self._any()).select(*self.table.rows.columns)

    @property
    def raw(self) -> ir.Table:
        """The bad rows as they came, with file and row."""
        named = self._bad.mutate(file=self._file(self._bad), row=self._bad[ROW])
        return named.select("file", "row", *self.table.columns).order_by("file", "row")

    def listed(self) -> ir.Table:
        """One line for each bad value: table, file, row or line, column, value, problem."""
        lines = [self._lines_of(place, fault) for place, fault in enumerate(self._faults)]
        return reduce(lambda above, below: above.union(below), [self._malformed(), *lines])

    def _lines_of(self, place: int, fault: Fault) -> ir.Table:
        rows = self._bad.filter(self._bad[_flag(place)])
        value = rows[fault.column].cast("string") if fault.column in rows.columns else ibis.null("string")
        return rows.select(
            table=ibis.literal(self.role), file=self._file(rows), row=rows[ROW].cast("int64"), line=ibis.null("int64"),
            column=ibis.literal(fault.column), value=value, problem=ibis.literal(fault.problem),
        )  # fmt: skip

    def _malformed(self) -> ir.Table:
        rows = [
            {
                "table": self.role,
                "file": file,
                "row": None,
                "line": line,
                "column": None,
                "value": None,
                "problem": problem,
            }
            for file, line, problem in self.table.malformed
        ]
        return self._database.store_arrow(f"malformed_{self.role}", pa.Table.from_pylist(rows, pa.schema(_LIST)))

    def _any(self) -> Any:
        return reduce(or_, [ibis._[_flag(place)] for place in range(len(self._faults))])

    def _file(self, rows: ir.Table) -> Any:
        return ibis.array(list(self.table.names))[rows[FILE]]


@dataclass(frozen=True, kw_only=True)
class BadRowFiles:
    """Where bad rows are written: the list, if reading ends because of them; the folder, if they are set aside."""

    report: Path
    quarantine: Path


def settle(database: Database, found: Sequence[BadRows], files: BadRowFiles, *, fail: bool) -> None:
    """If there are bad rows: raise ValueError naming the first of them and the complete list, or set them aside.

    In quarantine, `bad_rows.parquet` is the list and `<table>.parquet` the rows as they came.
    """
    found = [bad for bad in found if bad.count]
    if not found:
        return
    listed = reduce(lambda above, below: above.union(below), [bad.listed() for bad in found])
    listed = listed.order_by("table", "file", "row", "line", "column", "problem")
    if fail:
        with file_aside(files.report) as aside:
            database.write(listed, aside)
        raise ValueError(_message(database, found, listed, files.report))
    files.quarantine.mkdir()
    with third_party("quarantine", files.quarantine):
        database.write(listed, files.quarantine / "bad_rows.parquet")
        for bad in found:
            if bad.num_unreadable:
                database.write(bad.raw, files.quarantine / f"{bad.role}.parquet")


def _message(database: Database, found: Sequence[BadRows], listed: ir.Table, report: Path) -> str:
    counts = ", ".join(f"{bad.count:,} of {bad.num_rows:,} in {bad.role}" for bad in found)
    first = [_line(line) for line in database.fetch(listed.limit(SHOWN)).to_pylist()]
    more = "; ..." if int(database.value(listed.count())) > SHOWN else ""
    return (
        f"bad rows ({counts}): {'; '.join(first)}{more} (all of them: {report}). "
        'Repair them, or set data.bad_rows = "quarantine" to leave them out'
    )


def _line(line: dict[str, Any]) -> str:
    if line["line"] is not None:
        return f"{line['file']} line {line['line']}: {line['problem']}"
    shown = "" if line["value"] is None else f" {line['value']!r}"
    return f"{line['file']} row {line['row']}: {line['column']}{shown} {line['problem']}"


def _flag(place: int) -> str:
    return f"{_BAD}{place}"

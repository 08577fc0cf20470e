"""The canonical log: the events of a source with every value checked and cast, labels formed, bad rows set aside.

Columns of `Log.events`, a table on disk in the order of the files:

    NUMBER        the number of the raw row over all files, from 0: unique and rising (rows left out leave gaps)
    SPLIT         the published split, where there is one
    TIME          int64 (the schema's `timestamp`)
    WEIGHT, PROBABILITY, GROUP, and `label:<name>` after its rule
    raw columns   that features read, in the canonical form of `raw_columns` (of users and items: all columns)

Users and items, where the source has tables of them, are checked in the same way. All values are checked here, at once,
so that one look at the report shows every bad row; splits, joins and encoding come later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from features.bad_rows import BadRowFiles, BadRows, settle
from features.database import Database
from features.log_columns import GROUP, NUMBER, PROBABILITY, TIME, WEIGHT, LogColumns, Part, label_column
from features.raw_columns import Fault
from features.source_files import FILE, ROW, SPLIT, broken_files_named
from features.sources import SourceTables
from features.spec import FeatureSchema

__all__ = [
    "GROUP", "NUMBER", "PROBABILITY", "SPLIT", "TIME", "WEIGHT", "BadRowFiles", "Log", "LogRules", "label_column",
    "read_log",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LogRules:
    """How strictly a log is read.

    bad_rows: a row that is not as the schema says ends the reading ("fail"), or is left out and kept in a file
    ("quarantine"). duplicates: whether a later event of the same user, item and time is bad. split_column: the raw
    column that holds the published split ("" = what the source says).
    """

    bad_rows: Literal["fail", "quarantine"] = "fail"
    duplicates: Literal["keep", "refuse"] = "keep"
    split_column: str = ""


@dataclass(frozen=True, kw_only=True)
class Log:
    """The checked tables, and how many event rows were read, found bad, and left out by a label.

    homes: feature name -> the table that its column stands in: "events", "users" or "items". time_unit: "microseconds"
    where times were dates, "as given" where they were numbers, "" where there are none.
    """

    events: ir.Table
    users: ir.Table | None
    items: ir.Table | None
    homes: dict[str, str]
    time_unit: str
    num_read: int
    num_bad: int
    num_dropped: int


def read_log(
    database: Database, source: SourceTables, schema: FeatureSchema, rules: LogRules, files: BadRowFiles
) -> Log:
    """Check and cast a source's tables.

    Raises ValueError naming the table, file and column that is not there, a column whose type cannot be read, a file
    that cannot, or the first bad rows, their number and the complete list.
    """
    with broken_files_named(database, source.by_role().values()):
        return _read(database, source, schema, rules, files)


def _read(database: Database, source: SourceTables, schema: FeatureSchema, rules: LogRules, files: BadRowFiles) -> Log:
    columns = LogColumns(database, source.by_role(), schema, rules.split_column)
    parts = {role: columns.parts(role) for role in columns.tables}
    repeated = {role: _repetitions(role, columns, parts[role], schema, rules) for role in parts}
    found = {
        role: BadRows(database, role, table, [*_faults(parts[role]), *repeated[role]])
        for role, table in columns.tables.items()
    }
    settle(database, list(found.values()), files, fail=rules.bad_rows == "fail")
    stored = {role: database.store(f"log_{role}", _canonical(database, found[role], parts[role])) for role in found}
    num_kept = int(database.value(stored["events"].count()))
    events = found["events"]
    if not num_kept:
        names = ", ".join(columns.tables["events"].names)
        raise ValueError(
            f"no events in {names}: {events.num_rows} rows read, {events.count} of them bad, the others dropped"
        )
    return Log(
        events=stored["events"],
        users=stored.get("users"),
        items=stored.get("items"),
        homes=columns.homes,
        time_unit=columns.time_unit,
        num_read=events.num_rows,
        num_bad=events.count,
        num_dropped=events.num_rows - events.count - num_kept,
    )


def _faults(parts: Sequence[Part]) -> list[Fault]:
    return [fault for part in parts for fault in part.reading.faults]


def _repetitions(
    role: str, columns: LogColumns, parts: Sequence[Part], schema: FeatureSchema, rules: LogRules
) -> list[Fault]:
    """A second row of a user or item; a second event of the same user, item and time where that is refused."""
    values = {part.name: part.reading.value for part in parts}
    if role != "events":
        keys, problem = [columns.id_column(role)], "stands in an earlier row too"
    elif rules.duplicates == "refuse":
        entities = [schema.feature(name).column for name in (schema.user, schema.item) if name]
        keys, problem = [*entities, *([TIME] if TIME in values else [])], "repeats an earlier event"
    else:
        return []
    window = ibis.window(group_by=[values[key] for key in keys], order_by=[ibis._[FILE], ibis._[ROW]])
    shown = keys[0]
    return [Fault(shown, ibis.row_number().over(window) > 0, problem)]


def _canonical(database: Database, bad: BadRows, parts: Sequence[Part]) -> ir.Table:
    """The good rows that no label drops: the parts by name; events with their numbers."""
    rows = bad.good
    for part in parts:
        if part.dropped is not None:
            rows = rows.filter(~part.dropped)
    values = {part.name: part.reading.value for part in parts}
    if bad.role == "events":
        values = {NUMBER: _file_start(database, bad) + bad.table.rows[ROW] - 1} | values
    return rows.select(**values)


def _file_start(database: Database, bad: BadRows) -> Any:
    """The number of the first row of the file that a row is in."""
    rows = bad.table.rows
    if len(bad.table.names) == 1:
        return ibis.literal(0, "int64")
    counted = database.fetch(rows.group_by(FILE).aggregate(rows_of_file=rows[ROW].max())).to_pylist()
    rows_of_file = {row[FILE]: row["rows_of_file"] for row in counted}
    counts = [rows_of_file.get(place, 0) for place in range(len(bad.table.names))]
    return ibis.array(list(accumulate(counts, initial=0))[:-1])[rows[FILE]]

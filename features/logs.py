"""The canonical log: the events of a source with every value checked and cast, labels formed, bad rows set aside.

Columns of `Log.events`, a table on disk in the order of the files:

    NUMBER        the number of the raw row over all files, from 0: unique and rising (rows left out leave gaps)
    SPLIT         the published split, where there is one
    TIME          int64 (the schema's `timestamp`)
    WEIGHT, PROBABILITY, GROUP, and `label:<name>` after its rule
    DROPPED       whether a label drops the row as an example; only where histories are ordered, which keep such events
    raw columns   that features read, in the canonical form of `raw_columns` (of users and items: all columns)

Users and items, where the source has tables of them, are checked in the same way. All values are checked here, at once,
so that one look at the report shows every bad row; splits, joins and encoding come later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from operator import or_
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from features.bad_rows import BadRowFiles, BadRows, settle
from features.database import Database
from features.log_columns import DROPPED, GROUP, NUMBER, PROBABILITY, TIME, WEIGHT, LogColumns, Part, label_column
from features.raw_columns import Fault
from features.source_files import FILE, ROW, SPLIT, broken_files_named
from features.sources import SourceTables
from features.spec import FeatureSchema
from features.utc_day import UtcDay

__all__ = [
    "GROUP", "NUMBER", "PROBABILITY", "SPLIT", "TIME", "WEIGHT", "BadRowFiles", "Log", "LogRules", "NoExamplesError",
    "label_column", "read_log",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LogRules:
    """How strictly a log is read.

    bad_rows: a row that is not as the schema says ends the reading ("fail"), or is left out and kept in a file
    ("quarantine"). duplicates: whether a later event of the same user, item and time is bad. split_column: the raw
    column that holds the published split ("" = what the source says). positives_only: the log holds positives alone, so
    that a label without a column is 1. day: the one whose log this is; events of other days are bad. text_ids: see
    `Log`; those of earlier days of the same log.
    """

    bad_rows: Literal["fail", "quarantine"] = "fail"
    duplicates: Literal["keep", "refuse"] = "keep"
    split_column: str = ""
    positives_only: bool = False
    day: UtcDay | None = None
    text_ids: frozenset[str] = frozenset()


class NoExamplesError(ValueError):
    """There are good rows, but none of them is an example."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """The checked tables, and how many event rows were read, found bad, and left out by a label.

    homes: feature name -> the table that its column stands in: "events", "users" or "items". time_unit: "microseconds"
    where times were dates, "as given" where they were numbers (of seconds, if ages are counted by time), "" where there
    are none. num_events: rows of `events`, the dropped ones among them where histories keep these. text_ids: salts
    of the ids that are text.
    """

    events: ir.Table
    users: ir.Table | None
    items: ir.Table | None
    homes: dict[str, str]
    time_unit: str
    num_read: int
    num_bad: int
    num_dropped: int
    num_events: int
    text_ids: frozenset[str] = frozenset()

    @property
    def ticks_per_second(self) -> int:
        """The unit of times."""
        return 1_000_000 if self.time_unit == "microseconds" else 1


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
    tables, sure = source.by_role(), rules.positives_only
    columns = LogColumns(database, tables, schema, rules.split_column, positives_only=sure, texts=rules.text_ids)
    parts = {role: columns.parts(role) for role in columns.tables}
    repeated = {role: _repetitions(role, columns, parts[role], schema, rules) for role in parts}
    repeated["events"] += _of_other_days(columns, parts["events"], schema, rules)
    found = {
        role: BadRows(database, role, table, [*_faults(parts[role]), *repeated[role]])
        for role, table in columns.tables.items()
    }
    settle(database, list(found.values()), files, fail=rules.bad_rows == "fail")
    keep = schema.orders_events
    stored = {
        role: database.store(f"log_{role}", _canonical(database, found[role], parts[role], keep)) for role in found
    }
    log, events = stored["events"], found["events"]
    num_events = int(database.value(log.count()))
    num_kept = int(database.value(log.filter(~log[DROPPED]).count())) if DROPPED in log.columns else num_events
    if not num_kept:
        names = ", ".join(columns.tables["events"].names)
        error = ValueError if events.count else NoExamplesError
        raise error(
            f"no events in {names}: {events.num_rows} rows read, {events.count} of them bad, the others dropped"
        )
    return Log(
        events=log,
        users=stored.get("users"),
        items=stored.get("items"),
        homes=columns.homes,
        time_unit=columns.time_unit,
        num_read=events.num_rows,
        num_bad=events.count,
        num_dropped=events.num_rows - events.count - num_kept,
        num_events=num_events,
        text_ids=columns.text_ids,
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


def _of_other_days(columns: LogColumns, parts: Sequence[Part], schema: FeatureSchema, rules: LogRules) -> list[Fault]:
    if rules.day is None:
        return []
    time = next(part.reading.value for part in parts if part.name == TIME)
    start, end = rules.day.bounds(columns.time_unit)
    outside = {f"is before {rules.day}, the day of this log": time < start, f"is after {rules.day}": time >= end}
    return [Fault(schema.timestamp, found.fill_null(False), problem) for problem, found in outside.items()]


def _canonical(database: Database, bad: BadRows, parts: Sequence[Part], keep_dropped: bool) -> ir.Table:
    """The good rows, those that a label drops marked or left out: the parts by name; events with their numbers."""
    rows = bad.good
    values = {part.name: part.reading.value for part in parts}
    dropped = [part.dropped for part in parts if part.dropped is not None]
    if dropped and keep_dropped:
        values[DROPPED] = reduce(or_, dropped)
    elif dropped:
        rows = rows.filter(~reduce(or_, dropped))
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

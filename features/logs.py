"""The canonical log: the events of a source with every value checked and cast, labels formed, bad rows set aside.

Columns of `Log.events`, a table on disk in the order of the files:

    NUMBER        number of the row over all files, from 0: unique, rising, of the raw row (rows left out leave gaps)
    SPLIT         the published split, where there is one
    TIME          int64 (the schema's `timestamp`)
    WEIGHT, PROBABILITY, GROUP, and `label:<name>` after its rule
    raw columns   that features read, in the canonical form of `raw_columns`

User and item tables, where the source has them, are checked in the same way. Values are checked here once, all of them,
so that one look at the report shows every bad row; splits, joins and encoding come later.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from features.database import Database
from features.raw_columns import (
    Fault, Reading, element_type, integer_pattern, read_id, read_list, read_number, read_time,
)  # fmt: skip
from features.source_files import FILE, ROW, SPLIT, SPLITS, SourceTable
from features.sources import SourceTables, missing_column
from features.spec import FeatureSchema, FeatureSpec, LabelSpec
from features.storage import file_aside

NUMBER, TIME, WEIGHT, PROBABILITY, GROUP = "__number", "__time", "__weight", "__probability", "__group"
SHOWN_BAD_ROWS = 5
ROLE_OF_ENTITY = {"user": "users", "item": "items", "event": "events"}
_GROUP_SALT = "group of the schema"
_TIME_SALT = "timestamp of the schema"


@dataclass(frozen=True, kw_only=True)
class LogRules:
    """How strictly a log is read.

    bad_rows: a row that is not as the schema says ends the reading ("fail"), or is left out and kept in a file
    ("quarantine"). duplicates: whether a second event of the same user, item and time is bad. split_column: the raw
    column that holds the published split ("" = what the source says).
    """

    bad_rows: Literal["fail", "quarantine"] = "fail"
    duplicates: Literal["keep", "refuse"] = "keep"
    split_column: str = ""


@dataclass(frozen=True, kw_only=True)
class Log:
    """The checked tables, and how many event rows were read, found bad, and left out by a label.

    homes: where each feature's column stands: "events", "users" or "items".
    """

    events: ir.Table
    users: ir.Table | None
    items: ir.Table | None
    homes: Mapping[str, str]
    num_read: int
    num_bad: int
    num_dropped: int


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A column of a canonical table: its name there, where it comes from, and its reading."""

    name: str
    reading: Reading


def read_log(
    database: Database, source: SourceTables, schema: FeatureSchema, rules: LogRules, *, report: Path, quarantine: Path
) -> Log:
    """Check and cast a source's tables.

    report: the CSV file that lists every bad row when reading ends because of them (file, row, column, value, problem).
    quarantine: the folder, made when needed, that takes the bad rows otherwise: `bad_rows.parquet`, the same list, and
    `<table>.parquet`, the rows as they came. Raises ValueError naming the table, file and column that is not there, the
    column of a type that cannot be read, or the first bad rows, their number and the report.
    """
    tables = {role: table for role, table in source.by_role().items() if _is_used(role, schema)}
    homes = _homes(schema, tables)
    integers = _integer_ids(database, schema, tables, homes)
    parts = {role: _parts(role, table, schema, homes, integers) for role, table in tables.items()}
    parts["events"] += _event_parts(tables["events"], schema, rules, integers)
    extra = {role: _repetitions(role, table, schema, rules) for role, table in tables.items()}
    bad = {
        role: _store_bad(database, role, table, [*_faults(parts[role]), *extra[role]]) for role, table in tables.items()
    }
    num_bad = {role: _count(database, bad[role]) + len(tables[role].malformed) for role in tables}
    if any(num_bad.values()):
        _settle(database, tables, bad, num_bad, rules, report, quarantine)
    good = {role: _good_rows(table, bad[role]) for role, table in tables.items()}
    stored = {
        role: database.store(f"log_{role}", _canonical(database, good[role], tables[role], role, parts[role], schema))
        for role in tables
    }
    ...

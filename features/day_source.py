"""The raw rows of one UTC day: of files named by day, or found by their times in a log of many days.

    {day} in data.path or data.files    only that day's files are opened
    one log, a world                    the rows with a time in the day; for Parquet whose rows stand in order of time
                                        that is a look at statistics, for text the whole of it is read

A row of one log whose time is missing or cannot be read belongs to no day and is given with every day, so that whoever
checks the rows finds it. Nothing else is judged here.
"""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import ibis

from features.data_config import DataConfig
from features.database import Database
from features.raw_columns import integer_pattern, read_time
from features.source_files import FILE, ROW, SourceTable, broken_files_named, missing_column
from features.sources import SourceRequest, SourceTables, make_source
from features.utc_day import MARK, UtcDay

YEAR_3000 = 32_503_680_000  # in seconds


class DaySource:
    """A day's rows, as a data config and the schema's column of times say.

    Raises MissingEventsError where the day has no files of events, else ValueError as sources do.
    """

    def __init__(self, config: DataConfig, timestamp: str, day: UtcDay, data_root: Path | None) -> None:
        self._day, self._timestamp = day, timestamp
        self._has_own_files = MARK in config.path or any(MARK in name for name in config.files.values())
        self._is_world = config.source == "world"
        request = SourceRequest(
            path=day.within(config.path),
            root=data_root,
            files={role: day.within(name) for role, name in config.files.items()},
            columns=config.columns,
            options=config.options,
        )
        self._source = make_source(config.source, request)

    def fingerprints(self) -> dict[str, str] | None:
        """What the rows depend on, where that is known without reading them: the day's files, a world."""
        return self._source.fingerprints() if self._has_own_files or self._is_world else None

    def read(self, database: Database) -> SourceTables:
        """The day's events, and users and items as the source has them, which are whole tables."""
        tables = self._source.read(database)
        if self._has_own_files:
            return tables
        events = tables.events
        if self._timestamp not in events.columns:
            raise missing_column(self._timestamp, "timestamp, by which days are told apart", "events", events)
        with broken_files_named(database, [events]):
            time, unit = _time(database, events, self._timestamp)
            start, end = self._day.bounds(unit)
            inside = time.isnull() | ((time >= start) & (time < end))
            rows = database.store("day_events", events.rows.filter(inside))
            if unit == "as given" and not database.value(rows.count()):
                _refuse_other_units(self._timestamp, database.value(time.max()))
        return replace(tables, events=replace(events, rows=rows, scanned=()))

    def row_fingerprints(self, database: Database, tables: SourceTables) -> dict[str, str]:
        """Role -> SHA-256, hex, of names, types, places and values of a table's rows.

        Rows without a readable time, which are no day's, are left out: one more of them changes no day before.
        """
        events = tables.events
        with broken_files_named(database, tables.by_role().values()):
            time, _ = _time(database, events, self._timestamp)
            told = replace(tables, events=replace(events, rows=events.rows.filter(time.notnull())))
            return {f"rows of {role}": _digest(database, table) for role, table in told.by_role().items()}


def _refuse_other_units(column: str, newest: int | None) -> None:
    """Raise ValueError for times that are numbers, but hardly seconds."""
    if newest is not None and newest > YEAR_3000:
        raise ValueError(f"{column!r} goes up to {newest}; times that are numbers are seconds since 1970 UTC")


def _digest(database: Database, table: SourceTable) -> str:
    rows = table.rows.select(FILE, ROW, *sorted(table.columns)).order_by(FILE, ROW)
    digest = sha256(str(rows.schema()).encode())
    as_text: Any = ibis.struct({name: rows[name] for name in rows.columns}).cast("string")
    for batch in database.stream(rows.select(text=as_text)):
        digest.update("\n".join(["", *batch.column(0).to_pylist()]).encode())
    return digest.hexdigest()


def _time(database: Database, events: SourceTable, column: str) -> tuple[Any, str]:
    """The time of each row as `logs` reads it, null where it cannot, and its unit."""
    raw: Any = events.rows[column]
    kind = raw.type()
    integers = kind.is_string() and bool(
        database.value(raw.re_search(integer_pattern(None)).fill_null(True).all().fill_null(True))
    )
    dated = kind.is_date() or kind.is_timestamp() or (kind.is_string() and not integers)
    return read_time(raw, column, integers=integers).value, "microseconds" if dated else "as given"

"""Text with one record a line, JSON or a Python literal (some published files hold those), as one table of text.

A value that is text stays as it is; a number, a truth value or anything nested becomes its JSON form, so that nothing
is lost and values are cast and checked where all are (`logs`). Known fields are columns; what else a record has stands,
as one JSON object, in the column `OTHER`. A line that is no such record is malformed, and named. One batch of lines is
in memory at a time.
"""

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from features.database import Database
from features.source_files import FILE, ROW, SPLIT, InputFile, SourceTable, opened

OTHER = "other"
BATCH_LINES = 8192
Record = Mapping[str, Any]


def json_table(
    database: Database,
    role: str,
    files: Sequence[InputFile],
    fields: Sequence[str],
    derived: Mapping[str, Callable[[Record], Any]] | None = None,
) -> SourceTable:
    """The records of all files. fields: their columns. derived: further columns, each made from a record.

    Raises ValueError naming a file that cannot be read to its end as text.
    """
    made = derived or {}
    kinds = [(FILE, pa.int32()), (ROW, pa.int64()), *((name, pa.string()) for name in (*fields, *made, OTHER))]
    schema = pa.schema(kinds + ([(SPLIT, pa.string())] if files[0].split else []))
    malformed: list[tuple[str, int, str]] = []
    rows = (
        {FILE: number, ROW: row, SPLIT: file.split, **_columns(record, fields, made)}
        for number, file in enumerate(files)
        for row, record in enumerate(_records(file, malformed), 1)
    )
    stored = database.store_arrow(f"raw_{role}", pa.RecordBatchReader.from_batches(schema, _batches(rows, schema)))
    names = tuple(file.path.name for file in files)
    return SourceTable(rows=stored, names=names, untyped=True, malformed=tuple(malformed))


def _columns(record: Record, fields: Sequence[str], derived: Mapping[str, Callable[[Record], Any]]) -> dict[str, Any]:
    known = {name: _text(record.get(name)) for name in fields}
    known |= {name: _text(make(record)) for name, make in derived.items()}
    left = {name: value for name, value in record.items() if name not in fields}
    return known | {OTHER: _text(left) if left else None}


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _records(file: InputFile, malformed: list[tuple[str, int, str]]) -> Iterator[Record]:
    """The records in order; lines that are none are added to `malformed`."""
    for number, line in _lines(file):
        record = _parsed(line)
        if record is not None:
            yield record
        else:
            malformed.append((file.path.name, number, "is neither a JSON object nor a Python one of JSON's values"))


def _lines(file: InputFile) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        with opened(file.path, "utf-8") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file.path}: not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.path}: not text ({error})") from error


def _parsed(line: str) -> Record | None:
    """A record, or None: also for a literal that JSON cannot hold (a set), and for half a surrogate pair."""
    try:
        found = _loaded(line)
        if "\\u" in line:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, dict) and all(isinstance(name, str) for name in found) else None


def _loaded(line: str) -> Any:
    """What the line says in JSON or else in Python: `literal_eval` builds values of literals alone and runs no code."""
    try:
        return json.loads(line)
    except ValueError:
        found = ast.literal_eval(line.strip())
    json.dumps(found)
    return found


def _batches(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    held: list[dict[str, Any]] = []
    for row in rows:
        held.append(row)
        if len(held) == BATCH_LINES:
            yield pa.RecordBatch.from_pylist(held, schema=schema)
            held = []
    yield pa.RecordBatch.from_pylist(held, schema=schema)

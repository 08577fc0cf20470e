"""Raw files -> tables of the working database: which files a data config means, and the three ways to read them.

Parquet stays where it is and is read through a view; delimited text and adjacency lists are copied once. Every row
carries `FILE` and `ROW` (see `SourceTable`). Values are not judged here; what is no file of its format is refused, by
name: a missing or truncated file, a corrupt Parquet file, a line that is no adjacency list.
"""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import reduce
from glob import glob
from operator import or_
from pathlib import Path
from typing import Any, TextIO

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.database import Database, DatabaseError, quoted, text
from features.storage import local, sha256_file

Ids = NDArray[np.int64]
FILE, ROW, SPLIT = "__file", "__row", "__split"
SPLITS = ("train", "validation", "test")
EVENT_ROLES = ("events", *SPLITS)
ROLES = (*EVENT_ROLES, "users", "items")
MAX_LINE_BYTES = 1 << 24
ADJACENCY_PAIRS = 1 << 16
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """One table as read.

    rows: the data's columns, with `FILE` (int: an index into `names`), `ROW` (from 1 in that file, over the rows that
    could be told apart) and, where the format has a published split, `SPLIT`.
    untyped: every value is text, because the format has no types.
    malformed: lines that could not be told apart, as (file, line, problem).
    scanned: Parquet files that are read only when `rows` is evaluated.
    """

    rows: ir.Table
    names: tuple[str, ...]
    untyped: bool = False
    malformed: tuple[tuple[str, int, str], ...] = ()
    scanned: tuple[Path, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data itself."""
        return tuple(name for name in self.rows.columns if name not in (FILE, ROW, SPLIT))


@dataclass(frozen=True)
class InputFile:
    """One raw file and its role."""

    role: str
    path: Path

    @property
    def split(self) -> str:
        """The published split that all its rows belong to, or ""."""
        return self.role if self.role in SPLITS else ""


@dataclass(frozen=True, kw_only=True)
class Delimited:
    """The form of text with one record a line.

    names: its columns when the first line is not a header. missing: the values that stand for a missing one.
    """

    delimiter: str
    quote: str = '"'
    encoding: str = "utf-8"
    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ("",)


class MissingEventsError(ValueError):
    """The files of events that a config names are not there."""


class Inputs:
    """The raw files of a data config, by role.

    files: role -> path or glob within `path`; for a role that is not given, the first of its default names that exists
    ("" is `path` itself). Raises ValueError naming the role whose files are not there.
    """

    def __init__(self, path: str, files: Mapping[str, str], defaults: Mapping[str, Sequence[str]]) -> None:
        self.path = path.rstrip("/")
        unknown = sorted(set(files) - set(ROLES))
        if unknown:
            raise ValueError(f"data.files: unknown role {unknown[0]!r}; accepted are {', '.join(ROLES)}")
        if not files.keys().isdisjoint(EVENT_ROLES):
            defaults = {role: names for role, names in defaults.items() if role not in EVENT_ROLES}
        self.files = tuple(file for role in ROLES for file in self._find(role, files, defaults.get(role, ())))
        events = self.of(*EVENT_ROLES)
        if not events:
            wanted = [name or "(the path itself)" for role in EVENT_ROLES for name in defaults.get(role, ())]
            raise MissingEventsError(
                f"{path}: no file of events here; looked for {', '.join(wanted)} "
                "(a relative data.path is in the folder that --data or RECSYS_DATA names)"
            )
        if len({bool(file.split) for file in events}) > 1:
            raise ValueError("data.files: give either `events`, or `train`, `validation` and `test`")

    def of(self, *roles: str) -> tuple[InputFile, ...]:
        """The files of these roles, in reading order."""
        return tuple(file for file in self.files if file.role in roles)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every file, read in blocks."""
        return {f"{file.role}/{number}": sha256_file(file.path) for number, file in enumerate(self.files)}

    def _find(self, role: str, files: Mapping[str, str], defaults: Sequence[str]) -> list[InputFile]:
        names = [files[role]] if role in files else defaults
        found = next((paths for name in names if (paths := self._paths(name))), [])
        if role in files and not found:
            error = MissingEventsError if role in EVENT_ROLES else ValueError
            raise error(f"data.files.{role}: there is no file {files[role]!r} in {self.path}")
        return [InputFile(role, path) for path in found]

    def _paths(self, name: str) -> list[Path]:
        whole = "/".join(part for part in (self.path, name) if part)
        if "://" in whole:
            with suppress(FileNotFoundError):
                return [local(whole)]
            return []
        return [Path(path) for path in sorted(glob(whole)) if Path(path).is_file()]


def parquet_table(database: Database, role: str, files: Sequence[InputFile]) -> SourceTable:
    """Parquet files as one view; columns go by name. Raises ValueError naming a file that is not whole."""
    for file in files:
        check_parquet(file.path)
    paths = ", ".join(text(str(file.path)) for file in files)
    split = "".join(f" WHEN {number} THEN {text(file.split)}" for number, file in enumerate(files) if file.split)
    published = f", CASE file_index{split} END AS {quoted(SPLIT)}" if split else ""
    database.run(
        f"CREATE VIEW {quoted(f'raw_{role}')} AS SELECT *, CAST(file_index AS INTEGER) AS {quoted(FILE)}, "
        f"file_row_number + 1 AS {quoted(ROW)}{published} FROM read_parquet([{paths}], union_by_name = true)"
    )
    scanned = tuple(file.path for file in files)
    return SourceTable(rows=database.table(f"raw_{role}"), names=_names(files), scanned=scanned)


@contextmanager
def broken_files_named(database: Database, tables: Iterable[SourceTable]) -> Iterator[None]:
    """Where reading fails in the block, find the Parquet file that cannot be read to its end, and name it."""
    try:
        yield
    except (DatabaseError, OSError) as error:
        for path in (path for table in tables for path in table.scanned):
            if problem := _problem_inside(database, path):
                raise ValueError(f"{path}: not a readable Parquet file ({problem})") from error
        raise


def _problem_inside(database: Database, path: Path) -> str:
    try:
        database.run(f"SELECT max(hash(COLUMNS(*))) FROM read_parquet({text(str(path))})")
    except (DatabaseError, OSError) as error:
        return str(error)
    return ""


def check_parquet(path: Path) -> None:
    """Raise ValueError unless the file's footer can be read, and its columns leave our own names free."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    taken = sorted(set(names) & {FILE, ROW, SPLIT, "file_index", "file_row_number"})
    if taken:
        raise ValueError(f"{path}: column name {taken[0]!r} is used for the place of a row; rename the column")


def delimited_table(database: Database, role: str, files: Sequence[InputFile], form: Delimited) -> SourceTable:
    """Text files as one table of text columns; a line with more or fewer fields than the header is malformed."""
    name = f"raw_{role}"
    columns = form.names or _header(files[0].path, form)
    if not columns:
        raise ValueError(f"{files[0].path} is empty: it has no header line with the names of columns")
    _refuse_repeated(columns, files[0].path)
    published = [f"{quoted(SPLIT)} VARCHAR"] if files[0].split else []
    fixed = [f"{quoted(FILE)} INTEGER", f"{quoted(ROW)} BIGINT", *published]
    database.run(f"CREATE TABLE {quoted(name)} ({', '.join(fixed + [f'{quoted(c)} VARCHAR' for c in columns])})")
    malformed: list[tuple[str, int, str]] = []
    for number, file in enumerate(files):
        _check_text(file.path, columns, form)
        split = f"{text(file.split)}, " if file.split else ""
        with _reading(file.path):
            database.run(
                f"INSERT INTO {quoted(name)} SELECT {number}, row_number() OVER (), {split}* "
                f"FROM {_read_csv(file.path, columns, form)}"
            )
        malformed += [(file.path.name, line, problem) for line, problem in database.rejected_lines(file.path)]
    return SourceTable(rows=database.table(name), names=_names(files), untyped=True, malformed=tuple(malformed))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file that the database cannot read, and mixed line ends, which it takes for a broken file."""
    try:
        yield
    except ValueError as error:
        if _has_mixed_line_ends(path):
            problem = "some lines end with CRLF and others with LF; make them alike (tr -d '\\r' leaves LF alone)"
            raise ValueError(f"{path}: {problem}") from None
        raise ValueError(f"{path}: {error}") from error


def _has_mixed_line_ends(path: Path) -> bool:
    kinds = set()
    with opened(path, "latin-1") as lines:  # which reads any bytes
        for line in lines:
            kinds.add(line.endswith("\r\n"))
            if len(kinds) > 1:
                return True
    return False


def split_columns(
    database: Database, table: SourceTable, joined: Mapping[str, Sequence[str]], separator: str
) -> SourceTable:
    """The same rows where each text column of `joined` stands as the columns that its pieces are.

    A row with more or fewer pieces than names is malformed and left out.
    """
    rows: Any = table.rows
    pieces = {column: rows[column].split(separator) for column in joined}
    wrong = reduce(or_, (found.length().fill_null(0) != len(joined[column]) for column, found in pieces.items()))
    listed = database.fetch(rows.filter(wrong).select(FILE, ROW).order_by(FILE, ROW)).to_pylist()
    problem = " and ".join(f"{len(names)} values joined by {separator!r}" for names in joined.values())
    malformed = tuple((table.names[row[FILE]], row[ROW], f"is not {problem}") for row in listed)
    parts = {
        name: pieces[column][place].nullif("") for column, names in joined.items() for place, name in enumerate(names)
    }
    kept = rows.filter(~wrong)
    kept = kept.select(*(name for name in rows.columns if name not in joined), **parts)
    return replace(table, rows=kept, malformed=table.malformed + malformed)


def join_columns(table: SourceTable, joined: Mapping[str, Sequence[str]], used: Sequence[str]) -> SourceTable:
    """The same rows where each group of text columns stands as one, its values joined by `|`, a missing one as 0.

    joined: new column -> the columns that it is made of, in order. used: for each place, the column whose 0 says that
    the place is empty; values of empty places are left out. Without `used` all places are kept.
    """
    rows: Any = table.rows
    lists = {new: ibis.array([rows[name].fill_null("0") for name in names]) for new, names in joined.items()}
    if used:
        marks = ibis.array([rows[name].try_cast("float64").fill_null(0.0) for name in used])
        full = {new: values.zip(marks).filter(lambda pair: pair["f2"] != 0) for new, values in lists.items()}
        lists = {new: pairs.map(lambda pair: pair["f1"]) for new, pairs in full.items()}
    inside = {name for names in joined.values() for name in names}
    kept = [name for name in rows.columns if name not in inside]
    return replace(table, rows=rows.select(*kept, **{new: values.join("|") for new, values in lists.items()}))


def _read_csv(path: Path, columns: Sequence[str], form: Delimited) -> str:
    kinds = ", ".join(f"{text(name)}: 'VARCHAR'" for name in columns)
    missing = ", ".join(text(value) for value in form.missing)
    settings = {
        "auto_detect": "false", "header": str(not form.names).lower(), "columns": f"{{{kinds}}}",
        "delim": text(form.delimiter), "quote": text(form.quote), "escape": text(form.quote),
        "encoding": text(form.encoding), "nullstr": f"[{missing}]", "comment": "''", "skip": "0",
        "store_rejects": "true", "max_line_size": str(MAX_LINE_BYTES),
    }  # fmt: skip
    return f"read_csv({text(str(path))}, {', '.join(f'{name} = {value}' for name, value in settings.items())})"


def _check_text(path: Path, columns: Sequence[str], form: Delimited) -> None:
    """Refuse a truncated gzip file, which DuckDB would read in part, and a header unlike that of the first file."""
    if path.suffix == ".gz":
        check_gzip(path)
    if not form.names and _header(path, form) != tuple(columns):
        raise ValueError(f"{path}: its header differs from that of the first file: {', '.join(columns)}")


def check_gzip(path: Path) -> None:
    """Raise ValueError unless the file can be unpacked to its end."""
    try:
        with gzip.open(path, "rb") as file:
            while file.read(_BLOCK_BYTES):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error


def _header(path: Path, form: Delimited) -> tuple[str, ...]:
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    quoting = {"quotechar": form.quote} if form.quote else {"quoting": csv.QUOTE_NONE}
    with opened(path, encoding) as lines:
        line = lines.readline().rstrip("\r\n")
    if len(form.delimiter) > 1:
        return tuple(line.split(form.delimiter))
    return tuple(next(csv.reader([line], delimiter=form.delimiter, **quoting), ()))


def _refuse_repeated(columns: Sequence[str], path: Path) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice or not all(columns):
        raise ValueError(f"{path}: the header must name every column once, {twice or ['']} does not: {list(columns)}")


def opened(path: Path, encoding: str) -> TextIO:
    """A text file, unpacked where its name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def adjacency_table(database: Database, files: Sequence[InputFile]) -> SourceTable:
    """Lines `user item item ...` as rows (user, item), one for each item; `ROW` numbers them.

    A user without items is fine and gives no row. Raises ValueError naming file and line where a word is no integer.
    """
    kinds = [(FILE, pa.int32()), (ROW, pa.int64()), ("user", pa.int64()), ("item", pa.int64())]
    schema = pa.schema(kinds + ([(SPLIT, pa.string())] if files[0].split else []))
    pieces = (piece for number, file in enumerate(files) for piece in _adjacency(file, number, schema))
    rows = database.store_arrow("raw_events", pa.RecordBatchReader.from_batches(schema, pieces))
    return SourceTable(rows=rows, names=_names(files))


def _adjacency(file: InputFile, number: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """One batch for every `ADJACENCY_PAIRS` pairs, cut between lines."""
    lines: list[Ids] = []
    first = held = 0
    for line in _adjacency_lines(file.path):
        lines.append(line)
        held += len(line) - 1
        if held >= ADJACENCY_PAIRS:
            yield _pairs_batch(lines, file, (number, first), schema)
            lines, first, held = [], first + held, 0
    yield _pairs_batch(lines, file, (number, first), schema)


def _adjacency_lines(path: Path) -> Iterator[Ids]:
    """User and items of every line that is not blank."""
    try:
        with opened(path, "utf-8") as lines:
            words = ((number, line.split()) for number, line in enumerate(lines, 1))
            yield from (_integers(some, path, number) for number, some in words if some)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text ({error})") from error


def _integers(words: Sequence[str], path: Path, line: int) -> Ids:
    try:
        return np.array(words, dtype=np.int64)
    except (ValueError, OverflowError):
        wrong = next((word for word in words if not _is_integer(word)), "a number over 64 bits")
        raise ValueError(f"{path}, line {line}: {wrong!r} is no integer; a line is `user item item ...`") from None


def _is_integer(word: str) -> bool:
    return word.removeprefix("-").isascii() and word.removeprefix("-").isdigit()


def _pairs_batch(lines: Sequence[Ids], file: InputFile, place: tuple[int, int], schema: pa.Schema) -> pa.RecordBatch:
    """The pairs of some lines; place: the number of the file, and of the pairs before these."""
    users = np.repeat(np.array([line[0] for line in lines], np.int64), [len(line) - 1 for line in lines])
    columns = [
        pa.array(np.full(len(users), place[0], np.int32)),
        pa.array(np.arange(len(users), dtype=np.int64) + place[1] + 1),
        pa.array(users),
        pa.array(np.concatenate([np.empty(0, np.int64), *(line[1:] for line in lines)])),
    ]
    split = [pa.repeat(file.split, len(users))] if file.split else []
    return pa.RecordBatch.from_arrays(columns + split, schema=schema)


def _names(files: Sequence[InputFile]) -> tuple[str, ...]:
    return tuple(file.path.name for file in files)


def missing_column(column: str, needed_by: str, role: str, table: SourceTable) -> ValueError:
    """The error of a column that is not there: what needs it, the file, the nearest name, the columns that exist."""
    near = get_close_matches(column, table.columns, n=1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    there = ", ".join(table.columns)
    return ValueError(f"{role} ({table.names[0]}): no column {column!r} for {needed_by}{hint} (it has {there})")

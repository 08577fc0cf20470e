"""The embedded database that prepares logs: Ibis expressions in, tables on disk and Arrow batches out.

A `Database` lives in one folder, keeps its tables there, holds at most a given amount of memory and spills the rest
beside them; it is thrown away when preparing ends. It knows nothing of logs, features or splits. Rows come back in the
order in which they were stored.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from features.hashes import hash64, mix64

MEMORY_LIMIT = "2GB"
BATCH_ROWS = 65_536


@ibis.udf.scalar.builtin(name="recsys_mix64")  # type: ignore[untyped-decorator]
def mix64_column(ids: int, salt: int) -> int:  # type: ignore[empty-body]
    """`vocab.mix64` inside an expression: the same numbers as in numpy and torch (int64 bit patterns)."""


@ibis.udf.scalar.builtin(name="recsys_hash64")  # type: ignore[untyped-decorator]
def hash64_column(text: str) -> int:  # type: ignore[empty-body]
    """`hash64` of texts inside an expression, null for null."""


class Database:
    """One DuckDB file with a memory limit. Errors of the database come out as one line: OSError or ValueError."""

    def __init__(self, folder: Path, memory_limit: str = MEMORY_LIMIT) -> None:
        settings = {"memory_limit": memory_limit, "temp_directory": str(folder / "spilled")}
        with clear_errors("opening the working database"):
            self._ibis = ibis.duckdb.connect(str(folder / "work.duckdb"), preserve_insertion_order=True, **settings)
            self._duckdb: duckdb.DuckDBPyConnection = self._ibis.con
            self.run("SET enable_progress_bar = false")
            self._duckdb.create_function("recsys_mix64", _mix64, ["BIGINT", "BIGINT"], "BIGINT", type="arrow")
            self._duckdb.create_function("recsys_hash64", _hash64, ["VARCHAR"], "BIGINT", type="arrow")

    @staticmethod
    @contextmanager
    def open(folder: Path, memory_limit: str = MEMORY_LIMIT) -> Iterator["Database"]:
        """A new database in an existing folder, closed on leaving; its files stay for the caller to remove."""
        database = Database(folder, memory_limit)
        try:
            yield database
        finally:
            database._ibis.disconnect()

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Execute one SQL statement."""
        with clear_errors("the working database"):
            self._duckdb.execute(statement, list(parameters))

    def table(self, name: str) -> ir.Table:
        """The expression of a stored table or view."""
        return self._ibis.table(name)

    def store(self, name: str, expression: ir.Table) -> ir.Table:
        """Evaluate an expression once, into a new table on disk."""
        self.run(f"CREATE TABLE {quoted(name)} AS {self.sql(expression)}")
        return self.table(name)

    def drop(self, *names: str) -> None:
        """Remove tables that are no longer read; their space on disk is used again."""
        for name in names:
            self.run(f"DROP TABLE IF EXISTS {quoted(name)}")

    def store_arrow(self, name: str, rows: pa.Table | pa.RecordBatchReader) -> ir.Table:
        """Copy Arrow rows, whole or streamed, into a new table on disk."""
        with clear_errors("the working database"):
            self._duckdb.register("incoming", rows)
            self._duckdb.execute(f"CREATE TABLE {quoted(name)} AS SELECT * FROM incoming")
            self._duckdb.unregister("incoming")
        return self.table(name)

    def fetch(self, expression: ir.Table) -> pa.Table:
        """The whole result in memory; for small ones."""
        with clear_errors("the working database"):
            return self._duckdb.execute(self.sql(expression)).to_arrow_table()

    def value(self, expression: ir.Scalar) -> Any:
        """A single number or text."""
        return self.fetch(expression.as_table()).column(0)[0].as_py()

    def stream(self, expression: ir.Table, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The result as record batches of at most `rows` rows, one in memory at a time."""
        with clear_errors("the working database"):
            yield from self._duckdb.cursor().execute(self.sql(expression)).to_arrow_reader(rows)

    def rejected_lines(self, path: Path) -> list[tuple[int, str]]:
        """(line, problem) of the lines that were left out when this delimited file was read."""
        problem = "string_agg(DISTINCT error_message, '; ' ORDER BY error_message)"
        lines = f"SELECT line, {problem} FROM reject_errors JOIN reject_scans USING (scan_id, file_id)"
        with clear_errors("the working database"):
            found = self._duckdb.execute(f"{lines} WHERE file_path = ? GROUP BY line ORDER BY line", [str(path)])
            return [(int(line), str(reason)) for line, reason in found.fetchall()]

    def write(self, expression: ir.Table, path: Path) -> None:
        """Write the result to a new .parquet or .csv file."""
        form = {".parquet": "FORMAT parquet, COMPRESSION zstd", ".csv": "FORMAT csv, HEADER"}[path.suffix]
        self.run(f"COPY ({self.sql(expression)}) TO {text(str(path))} ({form})")

    def sql(self, expression: ir.Expr) -> str:
        """The SQL text of an expression."""
        return str(self._ibis.compile(expression))


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """An SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


class DatabaseError(ValueError):
    """A statement that the database could not carry out, in one line."""


@contextmanager
def clear_errors(doing: str) -> Iterator[None]:
    """Turn DuckDB's errors into one line: OSError for files, disks and memory, DatabaseError for all else."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise OSError(f"{doing}: {_first_line(error)}") from error
    except duckdb.Error as error:
        raise DatabaseError(f"{doing}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _mix64(ids: pa.ChunkedArray, salt: pa.ChunkedArray) -> pa.Array:
    if not len(ids):
        return pa.array([], pa.int64())
    return pa.array(mix64(np.asarray(ids, dtype=np.int64), int(salt[0].as_py())))


def _hash64(texts: pa.ChunkedArray) -> pa.Array:
    if not len(texts):
        return pa.array([], pa.int64())
    encoded = texts.combine_chunks().dictionary_encode()
    distinct = pa.array([hash64(text) for text in encoded.dictionary.to_pylist()], pa.int64())
    return distinct.take(encoded.indices)

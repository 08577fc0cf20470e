"""The rows that a first look at a table needs: some of a CSV, TSV or Parquet file, columns typed, memory bounded.

Text columns get a type only if all values read fit it: int64 (no leading zeros, at most 18 digits), float64, timestamp,
else string.
An empty text cell is missing. This is for guessing; preparing data reads whole files elsewhere (features/sources.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from features import storage

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_MAX_GROUPS = 64
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows read of a table: its name, the typed rows, and in words which rows they are."""

    name: str
    table: pa.Table
    which: str


def read_sample(source: Path | str | pa.Table, max_rows: int) -> Sample:
    """At most max_rows rows of a file (path or URI, text files also as .gz) or of an Arrow table.

    Of a text file the first rows, of a Parquet file some of each row group (of 64 at most), of a table evenly spaced
    ones. Raises FileNotFoundError, and ValueError naming the file for an ending that is not known, a broken file, and
    one without columns or rows.
    """
    if isinstance(source, pa.Table):
        return _checked(_table_sample(source, max_rows))
    path = Path(str(source).removesuffix(".gz"))
    if path.suffix not in (*DELIMITERS, *PARQUET):
        raise ValueError(f"{source}: the ending must be one of {[*DELIMITERS, *PARQUET]}, text files also with .gz")
    try:
        read = _parquet_sample if path.suffix in PARQUET else _text_sample
        return _checked(read(source, path, max_rows))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source} cannot be read: {error}") from None


def _checked(sample: Sample) -> Sample:
    columns = sample.table.column_names
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ValueError(f"{sample.name}: columns {twice} stand twice")
    if not columns or not sample.table.num_rows:
        raise ValueError(f"{sample.name}: nothing to read, {len(columns)} columns and {sample.table.num_rows} rows")
    return sample


def _table_sample(table: pa.Table, max_rows: int) -> Sample:
    total = table.num_rows
    if total <= max_rows:
        return Sample(name="table", table=table, which=f"all {total:,} rows")
    rows = pa.array([row * total // max_rows for row in range(max_rows)])
    return Sample(name="table", table=table.take(rows), which=f"{max_rows:,} evenly spaced rows of {total:,}")


def _parquet_sample(source: Path | str, path: Path, max_rows: int) -> Sample:
    with storage.open_input(source) as stream, pq.ParquetFile(stream) as file:
        total, num_groups = file.metadata.num_rows, file.num_row_groups
        if total <= max_rows:
            return Sample(name=path.stem, table=file.read(), which=f"all {total:,} rows")
        chosen = sorted({group * num_groups // _MAX_GROUPS for group in range(_MAX_GROUPS)})
        share = -(-max_rows // len(chosen))
        batches = [next(file.iter_batches(share, row_groups=[group])) for group in chosen if _rows(file, group)]
        table = pa.Table.from_batches(batches).slice(0, max_rows)
    where = "the first ones" if num_groups == 1 else f"the first ones of {len(chosen)} row groups of {num_groups}"
    return Sample(name=path.stem, table=table, which=f"{table.num_rows:,} rows of {total:,}, {where}")


def _rows(file: pq.ParquetFile, group: int) -> int:
    return int(file.metadata.row_group(group).num_rows)


def _text_sample(source: Path | str, path: Path, max_rows: int) -> Sample:
    delimiter = DELIMITERS[path.suffix]
    with _text_reader(source, delimiter, []) as reader:
        names = reader.schema.names
    batches, num_rows = [], 0
    with _text_reader(source, delimiter, names) as reader:
        for batch in reader:
            batches.append(batch)
            num_rows += batch.num_rows
            if num_rows > max_rows:
                break
    text = pa.Table.from_batches(batches, schema=pa.schema([(name, pa.string()) for name in names]))
    whole = num_rows <= max_rows
    table = pa.table([_typed(column) for column in text.slice(0, max_rows).columns], names=names)
    return Sample(name=path.stem, table=table, which=f"{'all' if whole else 'the first'} {table.num_rows:,} rows")


@contextmanager
def _text_reader(source: Path | str, delimiter: str, names: list[str]) -> Iterator[pyarrow.csv.CSVStreamingReader]:
    with storage.open_input(source) as file:
        stream = pa.CompressedInputStream(file, "gzip") if str(source).endswith(".gz") else file
        yield pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, null_values=[""], strings_can_be_null=True
            ),
        )


def _typed(text: pa.ChunkedArray) -> pa.Array:
    """Text as the narrowest type that all of it fits."""
    values = text.combine_chunks() if text.num_chunks != 1 else text.chunk(0)
    if values.null_count == len(values):
        return values
    if _all_match(values, INTEGER):
        return values.cast(pa.int64())
    if _all_match(values, NUMBER) and not _any_match(values, r"^[-+]?(0[0-9]|[0-9]{19})"):
        return values.cast(pa.float64())
    if _all_match(values, r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T].*)?$"):
        return _times(values)
    return values


def _all_match(values: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _any_match(values: pa.Array, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def _times(values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return values

"""The working database: order, bounded batches, one-line errors, and the hash that agrees with numpy."""

from collections.abc import Iterator
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pytest

from features.database import Database, hash64_column, mix64_column, quoted, text
from features.hashes import hash64, mix64


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path) as opened:
        yield opened


def test_database_streams_rows_in_stored_order(database: Database) -> None:
    order = np.random.default_rng(0).permutation(300_000)
    stored = database.store("copy", database.store_arrow("rows", pa.table({"a": order})))
    batches = list(database.stream(stored, 1000))
    assert max(len(batch) for batch in batches) <= 1000
    assert np.array_equal(np.concatenate([batch["a"].to_numpy() for batch in batches]), order)


def test_database_stores_a_stream_of_batches(database: Database) -> None:
    schema = pa.schema([("a", pa.int64())])
    batches = (pa.record_batch([pa.array([number])], schema=schema) for number in range(3))
    stored = database.store_arrow("rows", pa.RecordBatchReader.from_batches(schema, batches))
    assert database.fetch(stored)["a"].to_pylist() == [0, 1, 2]


def test_database_mixes_as_numpy_does(database: Database) -> None:
    ids = np.array([0, 1, -1, 2**62, 7], np.int64)
    rows = database.store_arrow("rows", pa.table({"a": ids}))
    mixed = database.fetch(rows.select(b=mix64_column(rows["a"], -5)))["b"].to_numpy()
    assert np.array_equal(mixed, mix64(ids, -5))


def test_database_hashes_texts_and_leaves_nulls(database: Database) -> None:
    rows = database.store_arrow("rows", pa.table({"a": ["x", None, "y", "x"]}))
    hashed = database.fetch(rows.select(b=hash64_column(rows["a"])))["b"].to_pylist()
    assert hashed == [hash64("x"), None, hash64("y"), hash64("x")]
    assert database.fetch(rows.filter(rows["a"] == "z").select(b=hash64_column(rows["a"]))).num_rows == 0


def test_database_mixes_nothing(database: Database) -> None:
    rows = database.store_arrow("rows", pa.table({"a": pa.array([], pa.int64())}))
    assert database.fetch(rows.select(b=mix64_column(rows["a"], 1))).num_rows == 0


def test_database_drops_tables(database: Database) -> None:
    database.store_arrow("rows", pa.table({"a": [1]}))
    database.drop("rows", "never made")
    with pytest.raises(ValueError, match="rows"):
        database.run("SELECT * FROM rows")


def test_database_error_is_one_line(database: Database) -> None:
    with pytest.raises(ValueError, match=r"the working database: .*nowhere") as caught:
        database.run("SELECT * FROM nowhere")
    assert "\n" not in str(caught.value)


def test_database_error_of_a_file_is_an_oserror(database: Database, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing\.parquet"):
        database.run(f"SELECT * FROM read_parquet({text(str(tmp_path / 'missing.parquet'))})")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_database_writes_what_it_holds(database: Database, tmp_path: Path, suffix: str) -> None:
    database.write(database.store_arrow("rows", pa.table({"a": [3, 1]})), tmp_path / f"out.{suffix}")
    reader = {"parquet": "read_parquet", "csv": "read_csv"}[suffix]
    database.run(f"CREATE TABLE again AS FROM {reader}({text(str(tmp_path / f'out.{suffix}'))})")
    assert database.fetch(database.table("again"))["a"].to_pylist() == [3, 1]


def test_database_quotes_names_and_texts(database: Database) -> None:
    name, value = 'a"b', "it's"
    database.run(f"CREATE TABLE {quoted(name)} AS SELECT {text(value)} AS {quoted('x y')}")
    assert database.value(database.table(name)["x y"].max()) == value


def test_database_gives_single_values(database: Database) -> None:
    rows = database.store_arrow("rows", pa.table({"a": [1, 2]}))
    assert database.value(rows.count()) == 2
    assert database.value(rows.filter(ibis.literal(False))["a"].max()) is None

"""A sample is typed like its table, bounded in rows, and says which rows it is."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.samples import read_sample


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ("1\n-5\n", pa.int64()),
        ("1\n\n", pa.int64()),
        ("1\n2.5\n", pa.float64()),
        ("01\n02\n", pa.string()),
        ("1234567890123456789\n1\n", pa.string()),
        ("2024-01-02\n2024-01-02T03:04:05\n", pa.timestamp("us")),
        ("2024-01-02\n2024-13-02\n", pa.string()),
        ("a\n1\n", pa.string()),
    ],
)
def test_text_is_typed_when_all_of_it_fits(tmp_path: Path, cells: str, kind: pa.DataType) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + cells.replace("\n", ",k\n"))
    assert read_sample(tmp_path / "t.csv", 10).table.schema.field("x").type == kind


def test_text_with_quotes_and_line_breaks_is_one_cell(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('x,y\n"a\nb, ""c""",1\n')
    assert read_sample(tmp_path / "t.csv", 10).table.to_pylist() == [{"x": 'a\nb, "c"', "y": 1}]


def test_rows_are_bounded_and_spread_over_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(1000)}), tmp_path / "t.parquet", row_group_size=10)
    sample = read_sample(tmp_path / "t.parquet", 128)
    assert sample.table.num_rows == 128
    assert max(sample.table["x"].to_pylist()) > 900
    assert sample.which == "128 rows of 1,000, the first ones of 64 row groups of 100"


def test_tables_are_read_at_even_distances() -> None:
    sample = read_sample(pa.table({"x": range(100)}), 4)
    assert sample.table["x"].to_pylist() == [0, 25, 50, 75]
    assert read_sample(pa.table({"x": [1]}), 4).which == "all 1 rows"

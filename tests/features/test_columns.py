"""A column read as lists stays aligned while it is filtered and cut."""

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.columns import Column, as_table

ROWS = st.lists(st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=5)), min_size=1, max_size=8)


def column(values: pa.Array, first_row: int = 0) -> Column:
    return Column(what="feature 'f'", name="c", values=values, first_row=first_row)


@settings(deadline=None)
@given(rows=ROWS, max_length=st.integers(1, 4), skip=st.integers(0, 3))
def test_lists_cut_to_the_last_values_equal_a_loop(rows: list[list[int] | None], max_length: int, skip: int) -> None:
    array = pa.array([[0]] * skip + rows, pa.list_(pa.int64()))[skip:]
    lists = column(array).lists("|", scored=False).last(max_length)
    bounds = lists.offsets.tolist()
    found = [lists.ids.to_pylist()[start:end] for start, end in pairwise(bounds)]
    assert found == [(row or [])[-max_length:] for row in rows]


@settings(deadline=None)
@given(rows=ROWS)
def test_text_and_arrow_lists_with_scores_agree(rows: list[list[int] | None]) -> None:
    kind = pa.list_(pa.struct([("score", pa.float64()), ("id", pa.string())]))
    pairs = [None if row is None else [{"id": str(v), "score": v / 4} for v in row] for row in rows]
    texts = [None if row is None else "|".join(f"{v}:{v / 4}" for v in row) for row in rows]
    arrow = column(pa.array(pairs, kind)).lists("|", scored=True)
    text = column(pa.array(texts, pa.string())).lists("|", scored=True)
    assert arrow.ids.to_pylist() == text.ids.to_pylist()
    assert arrow.offsets.tolist() == text.offsets.tolist()
    assert arrow.scores is not None
    assert text.scores is not None
    assert arrow.scores.tolist() == text.scores.tolist()


@settings(deadline=None)
@given(bad=st.integers(0, 30))
def test_the_first_value_at_fault_is_found(bad: int) -> None:
    texts = ["1|2"] * bad + ["3|x|4", "y"]
    with pytest.raises(ValueError, match=f"feature 'f', row {bad + 5}: an integer id is needed, not 'x'"):
        column(pa.array(texts), first_row=5).lists("|", scored=False).integers()


def test_refusals_name_feature_row_and_value() -> None:
    with pytest.raises(ValueError, match=r"^feature 'f', row 8: no, got 4$"):
        column(pa.array([3, 4]), first_row=7).refuse(1, "no")


def test_arrow_tables_stay_as_they_are() -> None:
    table = pa.table({"a": [1]})
    assert as_table(table, ["b"]) is table

"""Ids in every form become one form, and are found as in a dict."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.raw_ids import IdIndex, arrow_ids, id_numpy, id_values, sorted_counts


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([True, None], [1, None]),
        (pd.Series([1, None, 3]), [1, None, 3]),
        (pd.Series(["a", None]), ["a", None]),
        (pd.Categorical(["b", "a", "b"]), ["b", "a", "b"]),
        (pa.chunked_array([[1], [2]]), [1, 2]),
        (pa.chunked_array([], type=pa.int32()), []),
        (np.array([1.0, np.nan]), [1, None]),
        (np.array([2**64 - 1], dtype=np.uint64), [-1]),
        ([], []),
        ([None], [None]),
    ],
)
def test_arrow_ids_in_every_form(raw: Any, expected: list[Any]) -> None:
    ids = arrow_ids(raw, "x")
    assert ids.to_pylist() == expected
    assert pa.types.is_int64(ids.type) or pa.types.is_large_string(ids.type)


@pytest.mark.parametrize("value", [0.5, 2.0**60, float("inf")])
def test_arrow_ids_refuses_numbers_that_are_no_ids(value: float) -> None:
    with pytest.raises(ValueError, match="x, place 1: ids are integers or strings, got "):
        arrow_ids([1.0, value], "x")


@settings(deadline=None)
@given(ids=st.lists(st.one_of(st.none(), st.text(max_size=2))), data=st.data())
def test_sorted_counts_equal_a_dict(ids: list[str | None], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 9), min_size=len(ids), max_size=len(ids)))
    found, totals, nulls = sorted_counts(
        arrow_ids(pa.array(ids, pa.string()), "x"), np.array(counts, dtype=np.int64), "x"
    )
    expected = {
        v: sum(c for i, c in zip(ids, counts, strict=True) if i == v) for v in sorted({i for i in ids if i is not None})
    }
    assert dict(zip(found.tolist(), totals.tolist(), strict=True)) == expected
    assert found.tolist() == list(expected)
    assert nulls == sum(c for i, c in zip(ids, counts, strict=True) if i is None)


def test_sorted_counts_refuses_bad_counts() -> None:
    for counts in ([1, 2], [-1]):
        with pytest.raises(ValueError, match="x: 1 ids need as many counts of at least 0"):
            sorted_counts(arrow_ids([1], "x"), np.array(counts), "x")


@settings(deadline=None)
@given(known=st.lists(st.integers(-5, 5), unique=True), asked=st.lists(st.one_of(st.none(), st.integers(-7, 7))))
def test_index_equals_a_dict(known: list[int], asked: list[int | None]) -> None:
    entries = np.arange(len(known))[::-1].copy()
    index = IdIndex(np.array(known, dtype=np.int64), entries, "x")
    expected = dict(zip(known, entries.tolist(), strict=True))
    assert index.find(arrow_ids(pa.array(asked, pa.int64()), "x")).tolist() == [expected.get(v, -1) for v in asked]  # type: ignore[arg-type]


def test_index_accepts_its_own_type_and_nulls() -> None:
    index = IdIndex(np.array(["a"], dtype=object), np.arange(1), "x")
    assert index.accepts(arrow_ids([None], "x"))
    assert not index.accepts(arrow_ids([1], "x"))
    with pytest.raises(ValueError, match="x holds strings, got ids of type int64"):
        index.find(arrow_ids([1], "x"))
    with pytest.raises(ValueError, match="x: id 'a' stands twice"):
        IdIndex(np.array(["a", "a"], dtype=object), np.arange(2), "x")


def test_id_values_separate_what_differs() -> None:
    forms = [["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"]]
    assert len({id_values(np.array(form, dtype=object), None) for form in forms}) == 4
    assert id_values(np.array([1]), None) != id_values(np.array(["1"], dtype=object), None)
    assert id_numpy(pa.array(["a"])).dtype == object

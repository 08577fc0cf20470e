import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.retrieval import filters
from recsys.retrieval.filters import And, Attributes, Equal, In, Not, Or, Range, evaluate, parse_predicate, to_json

TABLE = pa.table(
    {
        "category": ["shoes", None, "hats", "shoes"],
        "price": pa.array([10.0, 0.1, None, math.nan], pa.float32()),
        "year": pa.array([2001, 2002, None, 2004], pa.int16()),
        "tags": pa.array([["a", "b"], [], None, ["b", None]]),
        "sizes": pa.array([[1, 2], [3], [], [2]], pa.large_list(pa.int64())),
        "used": [True, False, None, True],
        "brand": pa.array(["x", None, "y", "x"]).dictionary_encode(),
        "seen_at": pa.array([0, 1, 2, 3], pa.timestamp("s")),
        "big": pa.array([2**64 - 1, 0, 1, 2], pa.uint64()),
    }
)


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        (Equal(attribute="category", value="shoes"), [1, 0, 0, 1]),
        (Not(of=Equal(attribute="category", value="shoes")), [0, 1, 1, 0]),
        (In(attribute="category", values=("hats", "none")), [0, 0, 1, 0]),
        (Range(attribute="category", low="i"), [1, 0, 0, 1]),
        (Equal(attribute="price", value=0.1), [0, 1, 0, 0]),
        (Range(attribute="price", low=0, high=10), [1, 1, 0, 0]),
        (Not(of=Range(attribute="price", low=5)), [0, 1, 1, 1]),
        (Equal(attribute="year", value=70000), [0, 0, 0, 0]),
        (Range(attribute="year", low=2002, high=70000), [0, 1, 0, 1]),
        (In(attribute="year", values=(2001, 2004)), [1, 0, 0, 1]),
        (Equal(attribute="tags", value="b"), [1, 0, 0, 1]),
        (In(attribute="tags", values=("a", "z")), [1, 0, 0, 0]),
        (Not(of=Equal(attribute="tags", value="b")), [0, 1, 1, 0]),
        (Range(attribute="sizes", low=3), [0, 1, 0, 0]),
        (Equal(attribute="sizes", value=2), [1, 0, 0, 1]),
        (Equal(attribute="used", value=False), [0, 1, 0, 0]),
        (Equal(attribute="brand", value="x"), [1, 0, 0, 1]),
        (Equal(attribute="big", value=2**64 - 1), [1, 0, 0, 0]),
        (And(of=(Equal(attribute="brand", value="x"), Equal(attribute="year", value=2004))), [0, 0, 0, 1]),
        (Or(of=(Equal(attribute="brand", value="y"), Equal(attribute="year", value=2004))), [0, 0, 1, 1]),
    ],
)
def test_predicate_selects_by_hand(predicate: Any, expected: list[int]) -> None:
    assert evaluate(predicate, TABLE).int().tolist() == expected
    assert evaluate(parse_predicate(to_json(predicate)), TABLE).int().tolist() == expected


@pytest.mark.parametrize(
    ("predicate", "fault"),
    [
        (Equal(attribute="categry", value="a"), "unknown attribute 'categry'; did you mean 'category'"),
        (Equal(attribute="zzz", value="a"), r"unknown attribute 'zzz' Attributes are \['big', 'brand'"),
        (Equal(attribute="category", value=3), r"filter on 'category': got 3 \(int\), the attribute is text"),
        (Equal(attribute="year", value="2001"), r"got '2001' \(str\), the attribute is a whole number"),
        (Equal(attribute="year", value=True), r"got True \(bool\), the attribute is a whole number"),
        (Equal(attribute="year", value=2001.5), r"got 2001.5 \(float\), the attribute is a whole number"),
        (Equal(attribute="year", value=2**70), "is outside int64"),
        (Equal(attribute="big", value=-1), "is outside uint64"),
        (Equal(attribute="used", value=1), r"got 1 \(int\), the attribute is true or false"),
        (Equal(attribute="price", value=math.nan), r"got nan \(float\), the attribute is a number"),
        (In(attribute="tags", values=("a", 1)), r"got 1 \(int\), the attribute is text"),
        (Range(attribute="used", low=0), "a range needs numbers or texts, the attribute is true or false"),
        (Equal(attribute="seen_at", value=1), r"type timestamp\[s\] cannot be compared"),
    ],
)
def test_wrong_attribute_or_value_is_named(predicate: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        evaluate(predicate, TABLE)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ("{", "filter is not JSON"),
        ("[" * 100_000, "filter is not JSON"),
        ([], r"filter: Input should be a valid dictionary .*, got \[\]"),
        ({}, "filter: unknown kind None; kinds are and, or, not, equal, in, range"),
        ({"kind": "like"}, "filter: unknown kind 'like'"),
        ({"kind": "not", "of": {"kind": "eq"}}, "filter.of: unknown kind 'eq'"),
        ({"kind": "and", "of": []}, "filter.of: Tuple should have at least 1 item"),
        (
            {"kind": "or", "of": [{"kind": "in", "attribute": "a", "values": []}]},
            r"filter.of\[0\].values: Tuple should",
        ),
        ({"kind": "equal", "attribute": "a"}, "filter.value: Field required"),
        ({"kind": "equal", "attribute": "a", "value": None}, "filter.value"),
        ({"kind": "equal", "attribute": "a", "value": 1, "extra": 2}, "filter.extra: unknown field"),
        ({"kind": "range", "attribute": "a"}, "range over 'a' needs low, high, or both"),
        ({"kind": "range", "attribute": "a", "low": 2, "high": 1}, "range over 'a' is empty: low 2 is above high 1"),
        ({"kind": "range", "attribute": "a", "low": "2", "high": 1}, "range over 'a' mixes text and number"),
        ({"kind": "in", "attribute": "a", "values": list(range(10_001))}, "filter.values: Tuple should have at most"),
    ],
)
def test_malformed_predicate_is_one_line(values: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as error:
        parse_predicate(values)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def nested(depth: int) -> dict[str, Any]:
    predicate: dict[str, Any] = {"kind": "equal", "attribute": "category", "value": "shoes"}
    for _ in range(depth - 1):
        predicate = {"kind": "not", "of": predicate}
    return predicate


def test_depth_and_size_are_capped() -> None:
    assert evaluate(parse_predicate(nested(filters.MAX_DEPTH)), TABLE).int().tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="nested deeper than 16"):
        parse_predicate(nested(filters.MAX_DEPTH + 1))
    with pytest.raises(ValueError, match="nested deeper than 16"):
        parse_predicate(json.dumps(nested(300)))
    wide = {"kind": "or", "of": [nested(1)] * 256}
    with pytest.raises(ValueError, match="more than 256 nodes"):
        parse_predicate(wide)
    with pytest.raises(ValueError, match="at most 1048576 are accepted"):
        parse_predicate(" " * (filters.MAX_TEXT + 1))
    tree = Or(of=(Equal(attribute="category", value="shoes"),) * 300)
    with pytest.raises(ValueError, match="more than 256 nodes"):
        evaluate(tree, TABLE)
    deep: Any = Equal(attribute="category", value="shoes")
    for _ in range(20):
        deep = Not(of=deep)
    with pytest.raises(ValueError, match="nested deeper than 16"):
        evaluate(deep, TABLE)


leaves = st.one_of(
    st.builds(Equal, attribute=st.just("n"), value=st.integers(-2, 2)),
    st.builds(In, attribute=st.just("n"), values=st.lists(st.integers(-2, 2), min_size=1, max_size=3).map(tuple)),
    st.builds(Range, attribute=st.just("n"), low=st.integers(-2, 2)),
    st.builds(Range, attribute=st.just("l"), high=st.integers(-2, 2)),
    st.builds(Equal, attribute=st.just("l"), value=st.integers(-2, 2)),
)
trees = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.builds(Not, of=parts),
        st.builds(And, of=st.lists(parts, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, of=st.lists(parts, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
numbers = st.none() | st.integers(-3, 3)
item = st.fixed_dictionaries({"n": numbers, "l": st.none() | st.lists(numbers, max_size=3)})


def holds(predicate: Any, row: dict[str, Any]) -> bool:
    """The semantics, one item at a time."""
    if isinstance(predicate, Not):
        return not holds(predicate.of, row)
    if isinstance(predicate, And):
        return all(holds(part, row) for part in predicate.of)
    if isinstance(predicate, Or):
        return any(holds(part, row) for part in predicate.of)
    value = row[predicate.attribute]
    elements = [x for x in (value if isinstance(value, list) else [value]) if x is not None]
    if isinstance(predicate, Range):
        low = -math.inf if predicate.low is None else predicate.low
        high = math.inf if predicate.high is None else predicate.high
        return any(low <= x <= high for x in elements)
    return any(x in (predicate.values if isinstance(predicate, In) else (predicate.value,)) for x in elements)


@given(trees, st.lists(item, max_size=8))
def test_bitmap_equals_a_loop_over_items(predicate: Any, rows: list[dict[str, Any]]) -> None:
    schema = pa.schema({"n": pa.int32(), "l": pa.list_(pa.int64())})
    table = pa.Table.from_pylist(rows, schema=schema)
    expected = [holds(predicate, row) for row in rows]
    assert evaluate(predicate, table).tolist() == expected
    assert evaluate(parse_predicate(json.loads(to_json(predicate))), table).tolist() == expected
    assert evaluate(predicate, pa.concat_tables([table.slice(0, 3), table.slice(3)])).tolist() == expected


def test_attributes_are_prepared_once_and_named() -> None:
    attributes = Attributes(TABLE)
    assert "seen_at" not in attributes.names
    assert attributes.num_items == 4
    assert np.array_equal(attributes.bitmap(Equal(attribute="brand", value="x")), [True, False, False, True])

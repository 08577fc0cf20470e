"""Every canonical form, from every raw type that has one, and every fault."""

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.columns import Column
from features.database import Database
from features.raw_columns import Reading, integer_pattern, read_id, read_list, read_number, read_time
from features.spec import Clip, FeatureSpec, Log1p, Standardise

DAY = 86_400_000_000
NO_TIME = "is no time (whole numbers, dates or dates with times: one of these for the whole column)"
NO_SCORE = "has a score that is no finite number"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with Database.open(tmp_path_factory.mktemp("work")) as opened:
        yield opened


@pytest.fixture
def evaluate(database: Database, tmp_path: Path) -> Any:
    """(values, {problem: rows}) of a reading of one raw column."""

    def evaluated(raw: Any, read: Any) -> tuple[list[Any], dict[str, list[int]]]:
        database.drop("raw")
        values = raw if isinstance(raw, pa.Array) else pa.array(raw)
        rows = database.store_arrow("raw", pa.table({"n": np.arange(len(values)), "c": values}))
        reading: Reading = read(rows["c"], "c")
        flags = {f"f{place}": fault.condition for place, fault in enumerate(reading.faults)}
        found = database.fetch(rows.select(n=rows["n"], value=reading.value, **flags).order_by("n"))
        problems = {
            fault.problem: np.flatnonzero(found[f"f{place}"].to_numpy()).tolist()
            for place, fault in enumerate(reading.faults)
        }
        return found["value"].to_pylist(), {problem: bad for problem, bad in problems.items() if bad}

    return evaluated


@pytest.mark.parametrize(
    ("raw", "integers", "values", "problems"),
    [
        (["1", "2", None], True, [1, 2, None], {}),
        (["a", None], False, ["a", None], {}),
        (pa.array([1, -2], pa.int16()), True, [1, -2], {}),
        (pa.array([1, 2**63 + 5], pa.uint64()), True, [1, 5 - 2**63], {}),
        ([True, False], True, [1, 0], {}),
        ([1.0, float("nan"), 2.5], True, [1, None, None], {"is no whole number, as an id must be": [2]}),
        ([7, 8], False, ["7", "8"], {}),
        (pa.nulls(2), True, [None, None], {}),
    ],
)
def test_ids_read(evaluate: Any, raw: Any, integers: bool, values: Any, problems: Any) -> None:
    found = evaluate(raw, lambda raw, name: read_id(raw, name, integers=integers, refuse_missing=False))
    assert found == (values, problems)


def test_ids_agree_with_the_encoders_reading(evaluate: Any) -> None:
    raw = pa.array([1, 2**64 - 1, 2**63, None], pa.uint64())
    values, _ = evaluate(raw, lambda raw, name: read_id(raw, name, integers=True, refuse_missing=False))
    assert values == Column.of(pa.table({"c": raw}), "c", "feature").ids().to_pylist()


def test_missing_ids_can_be_refused(evaluate: Any) -> None:
    raw = [1.0, None, float("nan")]
    _, problems = evaluate(raw, lambda raw, name: read_id(raw, name, integers=True, refuse_missing=True))
    assert problems == {"is missing": [1, 2]}


def test_a_date_is_no_id(evaluate: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'c' has type date; ids are integers or text"):
        evaluate([dt.date(2020, 1, 1)], lambda raw, name: read_id(raw, name, integers=True, refuse_missing=False))


def listed(kind: str, integers: bool, **settings: Any) -> Any:
    spec = FeatureSpec(name="f", kind=kind, table="t", **settings)
    return lambda raw, name: read_list(raw, name, spec, integers=integers)


@pytest.mark.parametrize(
    ("raw", "read", "values"),
    [
        (["a||b", "", None], listed("id_list", False), [["a", "b"], [], None]),
        (["1|2"], listed("id_list", True), [[1, 2]]),
        (["1,2,3"], listed("id_list", True, separator=",", max_length=2), [[2, 3]]),
        ([[1, None], [], None], listed("id_list", True), [[1, None], [], None]),
        ([[1, 2, 3], [4]], listed("id_list", False, max_length=2), [["2", "3"], ["4"]]),
        (["a:b:.5|c:1"], listed("id_score_list", False), [[{"id": "a:b", "score": 0.5}, {"id": "c", "score": 1.0}]]),
        (pa.array([None], pa.string()), listed("id_score_list", False), [None]),
        ([[{"id": 1, "score": 2.0}]], listed("id_score_list", True), [[{"id": 1, "score": 2.0}]]),
    ],
)  # fmt: skip
def test_lists_read(evaluate: Any, raw: Any, read: Any, values: Any) -> None:
    assert evaluate(raw, read) == (values, {})


@pytest.mark.parametrize(
    ("raw", "read", "problems"),
    [
        ([[1, None], None], listed("id_list", True, missing="refuse"), {"holds a missing id": [0], "is missing": [1]}),
        (["1:2", "1"], listed("id_score_list", True), {"is not written id:score": [1], NO_SCORE: [1]}),
        (["1:x", "1:inf"], listed("id_score_list", True), {NO_SCORE: [0, 1]}),
    ],
)  # fmt: skip
def test_lists_find_faults(evaluate: Any, raw: Any, read: Any, problems: Any) -> None:
    assert evaluate(raw, read)[1] == problems


def numbered(refuse: bool = True, *transforms: Any) -> Any:
    return lambda raw, name: read_number(raw, name, refuse_missing=refuse, transforms=transforms)


@pytest.mark.parametrize(
    ("raw", "values", "problems"),
    [
        (["1.5", "x", None], [1.5, None, None], {"is no number": [1], "is missing": [2]}),
        ([1.0, float("nan"), float("inf")], [1.0, None, float("inf")], {"is missing": [1], "is not finite": [2]}),
        (pa.array([True, False]), [1.0, 0.0], {}),
        ([3, 4], [3.0, 4.0], {}),
    ],
)
def test_numbers_read(evaluate: Any, raw: Any, values: Any, problems: Any) -> None:
    assert evaluate(raw, numbered()) == (values, problems)


def test_numbers_are_followed_to_their_log1p(evaluate: Any) -> None:
    clipped, raw = (Clip(low=0, high=9), Log1p()), [-1.0, 2.0, None]
    assert evaluate(raw, numbered(False, Log1p()))[1] == {"is below 0 where log1p is taken": [0]}
    assert evaluate(raw, numbered(False, *clipped))[1] == {}
    assert evaluate(raw, numbered(False, Standardise(), Log1p()))[1] == {}


@pytest.mark.parametrize(
    ("raw", "integers", "values", "problems"),
    [
        ([5, -1, None], True, [5, -1, None], {"is negative": [1], "is missing": [2]}),
        (["5", "6"], True, [5, 6], {}),
        (["1970-01-02", "1970-01-01 00:00:01", "x"], False, [DAY, 1_000_000, None], {NO_TIME: [2]}),
        ([dt.date(1970, 1, 2)], True, [DAY], {}),
        (pa.array([1], pa.timestamp("s", "UTC")), True, [1_000_000], {}),
        ([1.0, 1.5], True, [1, None], {NO_TIME: [1]}),
    ],
)  # fmt: skip
def test_times_read(evaluate: Any, raw: Any, integers: bool, values: Any, problems: Any) -> None:
    assert evaluate(raw, lambda raw, name: read_time(raw, name, integers=integers)) == (values, problems)


@pytest.mark.parametrize(
    ("text", "matches"), [("0", True), ("-5", True), ("12", True), ("007", False), ("+1", False), ("1.0", False),
     ("1e3", False), (" 1", False), ("", False), ("9" * 18, True), ("9" * 19, False)],
)  # fmt: skip
def test_integer_pattern_takes_canonical_integers_alone(text: str, matches: bool) -> None:
    assert bool(re.search(integer_pattern(None), text)) == matches

"""Ages against their formula, and groups whose settings would have no effect."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from features.sequences import Age, SequenceGroup
from features.values import describe

PLACE: dict[str, Any] = {"name": "age", "by": "position", "table": "ids"}
TIME: dict[str, Any] = PLACE | {"by": "time"}


def group(**values: Any) -> SequenceGroup:
    return SequenceGroup.model_validate({"name": "past", "of": {"history": "item"}, "max_length": 5} | values)


def test_age_by_time_is_the_floor_of_a_logarithm() -> None:
    seconds = [*range(70), *(2**power + step for power in range(7, 33) for step in (-2, -1, 0, 1))]
    expected = [min(31, 1 + math.floor(math.log2(1 + second))) for second in seconds]
    assert Age(**TIME, buckets=32).ids(np.array(seconds)).tolist() == expected


def test_age_by_position_counts_from_the_newest() -> None:
    assert Age(**PLACE, buckets=4).ids(np.array([5, 4, 3, 2, 1])).tolist() == [3, 3, 3, 2, 1]


@pytest.mark.parametrize(("age", "least"), [(PLACE, 1), (TIME, 0)])
def test_age_refuses_events_that_are_not_past(age: dict[str, Any], least: int) -> None:
    with pytest.raises(ValueError, match=f"got {least - 1}, accepted from {least} on"):
        Age(**age, buckets=4).ids(np.array([least + 2, least - 1]))
    assert Age(**age, buckets=4).ids(np.zeros(0, np.int64)).tolist() == []


def test_age_has_an_id_for_every_place_or_32() -> None:
    found = [group(age=age).age for age in (PLACE, TIME, PLACE | {"buckets": 3})]
    assert [age.buckets for age in found if age] == [6, 32, 3]
    assert group(age=PLACE).names == ("history", "age")


def test_group_without_age_is_written_as_before() -> None:
    assert "age" not in group().model_dump()
    assert SequenceGroup.model_validate(group(age=TIME).model_dump()) == group(age=TIME)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"age": PLACE, "ordered": False}, "'age' is for ordered histories"),
        ({"age": PLACE | {"by": "month"}}, "age.by: Input should be 'position' or 'time', got 'month'"),
        ({"age": PLACE | {"bucket": 3}}, "unknown key 'bucket', did you mean 'buckets'"),
        ({"age": PLACE | {"buckets": 1}}, "age.buckets"),
        ({"age": PLACE, "max_length": "long"}, "max_length"),
    ],
)  # fmt: skip
def test_group_settings_that_cannot_be_met_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        group(**values)
    assert reason in describe(raised.value, SequenceGroup)

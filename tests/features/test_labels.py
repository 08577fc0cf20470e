"""Labels, weights and groups follow the rules of the schema."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.hashes import hash64
from features.labels import read_group, read_labels, read_weights
from features.spec import FeatureSchema, LabelSpec

STARS = LabelSpec(name="good", column="stars", positive_from=4, dropped=(3,))


def schema_of(*labels: LabelSpec, **roles: str) -> FeatureSchema:
    return FeatureSchema(name="x", features=(), labels=labels, **roles)


@settings(deadline=None)
@given(stars=st.lists(st.integers(1, 5), min_size=1))
def test_rules_equal_a_loop(stars: list[int]) -> None:
    specs = (STARS, LabelSpec(name="odd", column="stars", positive=(1, 5)), LabelSpec(name="stars", dropped=(1,)))
    labels, keep = read_labels(schema_of(*specs), pa.table({"stars": stars}))
    assert labels["good"].tolist() == [float(s >= 4) for s in stars]
    assert labels["odd"].tolist() == [float(s in (1, 5)) for s in stars]
    assert labels["stars"].tolist() == stars
    assert keep.tolist() == [s not in (1, 3) for s in stars]


def test_rows_are_numbered_from_the_first_given() -> None:
    with pytest.raises(ValueError, match="label 'good', row 11: a value is needed, got None"):
        read_labels(schema_of(STARS), pa.table({"stars": [1, None]}), first_row=10)
    with pytest.raises(ValueError, match="probability, row 10: a probability lies in"):
        read_labels(schema_of(probability="p"), pa.table({"p": [-0.5]}), first_row=10)
    with pytest.raises(ValueError, match="weight, row 10: a weight must be at least 0"):
        read_weights(schema_of(weight="w"), pa.table({"w": [-1.0]}), first_row=10)
    with pytest.raises(ValueError, match="group, row 10: a group is needed"):
        read_group(schema_of(group="g"), pa.table({"g": [None, 1]}), first_row=10)


def test_roles_that_the_schema_does_not_name_are_absent() -> None:
    table = pa.table({"x": [1]})
    assert read_weights(schema_of(), table) is None
    assert read_group(schema_of(), table) is None
    assert read_labels(schema_of(), table)[0] == {}


def test_groups_are_integers_or_hashes() -> None:
    schema = schema_of(group="g")
    integers, texts = read_group(schema, pa.table({"g": [5, 5]})), read_group(schema, pa.table({"g": ["a", "b"]}))
    assert integers is not None
    assert texts is not None
    assert integers.tolist() == [5, 5]
    assert texts.tolist() == [hash64("a"), hash64("b")]

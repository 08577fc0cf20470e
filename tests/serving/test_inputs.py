"""From raw values to columns: who the subject is, ids of either kind, broadcasting."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from features.batch import Jagged
from recsys.components import Entities, load_ranker
from serving.errors import InvalidArgumentError
from serving.inputs import Inputs, Subject, broadcast, entity_features, positions_of
from serving.queries import SubjectQuery
from tests.serving.shop import NEW_USER, Shop, shop_schema


@pytest.fixture(scope="module")
def entities(shop: Shop) -> Entities:
    """Of the ranker."""
    return load_ranker(shop.bundle("dcn")).entities


@pytest.fixture(scope="module")
def inputs(shop: Shop, entities: Entities) -> Inputs:
    """Of a model that reads everything."""
    return Inputs(entities, shop.schema.inputs)


def test_subject_has_positions_of_what_is_known(inputs: Inputs) -> None:
    subject = inputs.subject(SubjectQuery(user=3, history=[1, 777, 90, 1]), max_history=4)
    assert subject.history is not None
    assert (subject.user, subject.history.tolist(), subject.unknown_history_ids) == (3, [1, 40, 1], 1)
    assert inputs.subject(SubjectQuery(user=NEW_USER), max_history=4).user == -1
    assert inputs.subject(SubjectQuery(), max_history=4).history is None


def test_positions_of_nothing_are_none(entities: Entities) -> None:
    assert entities.items is not None
    assert positions_of(entities.items, [], "items").tolist() == []
    assert positions_of(entities.items, pa.nulls(2), "items").tolist() == [-1, -1]
    with pytest.raises(InvalidArgumentError, match="items: got 'a'"):
        positions_of(entities.items, ["a"], "items")


def test_features_of_a_side_have_its_id() -> None:
    schema = shop_schema()
    assert entity_features(schema, "user") == ["age", "gender", "user_id"]
    assert entity_features(schema, "item") == ["category", "item_id", "price"]


def test_sequences_of_a_request_stay_aligned(inputs: Inputs, entities: Entities) -> None:
    subject = inputs.subject(SubjectQuery(history=[4, 0, 7]), max_history=9)
    columns = inputs.sequences(np.array([-1, -1]), subject)
    assert sorted(columns) == ["history", "history_category", "history_hour"]
    for column in columns.values():
        assert isinstance(column, Jagged)
        assert column.lengths.tolist() == [3, 3]
    assert entities.items is not None
    category = columns["history_category"]
    assert isinstance(category, Jagged)
    assert torch.equal(category.values[:3], entities.items.features.ids("category")[[4, 0, 7]])


def test_stored_sequences_are_those_of_training(shop: Shop, inputs: Inputs) -> None:
    stored = inputs.sequences(np.array([5, 2]), Subject(user=5))
    expected = shop.view.user_batch(torch.tensor([5, 2]))
    for name, column in stored.items():
        assert isinstance(column, Jagged)
        assert torch.equal(column.values, expected.jagged(name).values)
        assert torch.equal(column.offsets, expected.jagged(name).offsets)


def test_broadcast_repeats_columns_of_one_row() -> None:
    columns: dict[str, Tensor | Jagged] = {
        "a": torch.tensor([7]),
        "b": torch.tensor([1, 2]),
        "c": Jagged.from_lists([[5, 6]]),
    }
    repeated = broadcast(columns, 2)
    a, b, c = repeated["a"], repeated["b"], repeated["c"]
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    assert isinstance(c, Jagged)
    assert (a.tolist(), b.tolist(), c.values.tolist(), c.lengths.tolist()) == ([7, 7], [1, 2], [5, 6, 5, 6], [2, 2])

"""Jagged columns and batches behave as Python lists of rows do."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch import Batch, Jagged, concat, num_rows, offsets_of

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=4), min_size=1, max_size=6)


def rows_of(column: Jagged) -> list[list[int]]:
    bounds = column.offsets.tolist()
    values = column.values.tolist()
    return [values[start:end] for start, end in pairwise(bounds)]


def weighted(rows: list[list[int]]) -> Jagged:
    column = Jagged.from_lists(rows)
    return Jagged(values=column.values, offsets=column.offsets, weights=column.values.float() / 2)


def batch_of(rows: list[list[int]]) -> Batch:
    num = torch.arange(len(rows))
    return Batch(
        features={"id": num, "past": weighted(rows)}, labels={"y": num.float()}, weights=num.float() + 1, row_ids=num
    )


@settings(deadline=None)
@given(rows=ROWS)
def test_jagged_from_lists_round_trips(rows: list[list[int]]) -> None:
    column = Jagged.from_lists(rows)
    assert rows_of(column) == rows
    assert column.num_rows == num_rows(column) == len(rows)
    assert column.lengths.tolist() == [len(row) for row in rows]
    assert column.row_of_value.tolist() == [place for place, row in enumerate(rows) for _ in row]


@settings(deadline=None)
@given(rows=ROWS, data=st.data())
def test_jagged_select_equals_lists(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    selected = weighted(rows).select(torch.tensor(chosen, dtype=torch.int64))
    assert rows_of(selected) == [rows[row] for row in chosen]
    assert selected.weights is not None
    assert torch.equal(selected.weights * 2, selected.values.float())


@settings(deadline=None)
@given(first=ROWS, second=ROWS)
def test_batch_concat_equals_lists(first: list[list[int]], second: list[list[int]]) -> None:
    both = concat([batch_of(first), batch_of(second)])
    assert rows_of(both.jagged("past")) == first + second
    assert both.ids("id").tolist() == [*range(len(first)), *range(len(second))]
    assert both.weights is not None
    assert len(both) == len(first) + len(second) == len(both.weights)


@settings(deadline=None)
@given(rows=ROWS, data=st.data())
def test_batch_select_keeps_columns_aligned(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.permutations(range(len(rows))))
    batch = batch_of(rows).select(torch.tensor(chosen))
    assert batch.ids("id").tolist() == batch.labels["y"].tolist() == chosen
    assert rows_of(batch.jagged("past")) == [rows[row] for row in chosen]
    assert batch.row_ids is not None
    assert batch.row_ids.tolist() == chosen


def test_batch_halves_concatenate_to_the_whole() -> None:
    whole = batch_of([[1], [], [2, 3], [4]])
    parts = [whole.select(torch.tensor(rows)) for rows in ([0, 1], [2, 3])]
    again = concat(parts)
    assert rows_of(again.jagged("past")) == [[1], [], [2, 3], [4]]
    assert again.labels["y"].tolist() == whole.labels["y"].tolist()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([1, 3]), "must start at 0, offset of row 0 is 1"),
        (torch.tensor([0, 2, 1, 3]), "row 1 ends at offset 1, before its start 2"),
        (torch.tensor([0, 2]), "end at 2 but there are 3 values"),
        (torch.tensor([0, 3], dtype=torch.int32), "must be int64"),
        (torch.zeros(0, dtype=torch.int64), "must be int64"),
    ],
)
def test_jagged_malformed_offsets_are_refused(offsets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Jagged(values=torch.arange(3), offsets=offsets)


def test_jagged_weights_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one per value is 2"):
        Jagged(values=torch.arange(2), offsets=offsets_of(torch.tensor([2])), weights=torch.ones(3))


def test_batch_columns_of_other_lengths_are_named() -> None:
    with pytest.raises(ValueError, match="'label y': 2"):
        Batch(features={"id": torch.arange(3)}, labels={"y": torch.ones(2)})


def test_batch_reads_columns_by_kind() -> None:
    batch = batch_of([[1], [2, 3]])
    with pytest.raises(ValueError, match=r"no feature 'x'; it has \['id', 'past'\]"):
        batch.ids("x")
    with pytest.raises(ValueError, match="'past' is a list per row"):
        batch.ids("past")
    with pytest.raises(ValueError, match="'id' is one value per row"):
        batch.jagged("id")


def test_batch_row_weights_default_to_one() -> None:
    assert batch_of([[1], [2]]).row_weights().tolist() == [1.0, 2.0]
    assert Batch(features={"past": Jagged.from_lists([[1], []])}).row_weights().tolist() == [1.0, 1.0]
    assert Batch(features={}).row_weights().tolist() == []


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one"),
        ([Batch(features={"a": torch.ones(1)}), Batch(features={"b": torch.ones(1)})], "differ in columns"),
        ([Batch(features={"a": torch.ones(1)}), Batch(features={"a": Jagged.from_lists([[1]])})], "a list per row"),
        ([Batch(features={"a": weighted([[1]])}), Batch(features={"a": Jagged.from_lists([[1]])})], "has weights"),
    ],
)
def test_concat_of_unlike_batches_is_refused(batches: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concat(batches)


def test_batch_moves_every_column() -> None:
    moved = batch_of([[1], [2]]).to("meta")
    devices = {c.values.device.type if isinstance(c, Jagged) else c.device.type for c in moved.columns().values()}
    assert devices == {"meta"}

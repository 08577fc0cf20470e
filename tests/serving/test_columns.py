"""Ids and columns: every message round trips, and what does not fit together is refused by name."""

import numpy as np
import pyarrow as pa
import pytest

from serving.columns import column_message, column_of, id_message, id_of, ids_message, ids_of
from serving.errors import InvalidArgumentError
from serving.queries import RawId
from serving.v1 import retrieval_pb2 as pb


@pytest.mark.parametrize("raw", [0, 7, -1, -(2**63), 2**63 - 1, "", "u 7", "ä"])
def test_id_round_trips(raw: RawId) -> None:
    assert id_of(pb.Id.FromString(id_message(raw).SerializeToString())) == raw


def test_id_absent_is_none() -> None:
    assert id_of(pb.Id()) is None


def test_ids_round_trip_as_int64_or_texts() -> None:
    numbers = ids_of(ids_message(np.array([3, -1, 2**63 - 1])), "items")
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [3, -1, 2**63 - 1]
    assert ids_of(ids_message(["b", "a"]), "items").tolist() == ["b", "a"]
    assert ids_of(pb.Ids(), "items").tolist() == []


@pytest.mark.parametrize("raw", [[1.5], [True], [None], [1, "a"]])
def test_ids_of_other_types_are_refused(raw: list[int]) -> None:
    with pytest.raises(TypeError):
        ids_message(raw)


def test_ids_of_both_kinds_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="excluded: holds both"):
        ids_of(pb.Ids(numbers=[1], texts=["a"]), "excluded")


COLUMNS = [
    pa.array([1, None, 3]),
    pa.array([1.5, None]),
    pa.array(["a", None, ""]),
    pa.array([[1, 2], [], None], type=pa.list_(pa.int64())),
    pa.array([["a"], []], type=pa.list_(pa.string())),
    pa.array([[{"id": 3, "score": 0.5}], []], type=pa.list_(pa.struct([("id", pa.int64()), ("score", pa.float32())]))),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
def test_column_round_trips(column: pa.Array) -> None:
    assert column_of(column_message(column), "x").to_pylist() == column.to_pylist()


def test_column_of_python_values_keeps_their_kind() -> None:
    assert column_of(column_message([True, False]), "x").to_pylist() == [1, 0]
    assert column_of(column_message([None, None]), "x").type == pa.null()
    assert column_of(column_message(np.array([0.5], np.float32)), "x").to_pylist() == [0.5]


def test_column_of_other_types_is_refused() -> None:
    with pytest.raises(TypeError, match="a column must hold"):
        column_message(pa.array([b"x"]))


TEXTS = pb.Texts(values=["a", "b"])
REFUSED = {
    "x: holds no values": pb.Column(),
    "x.lengths: got 1": pb.Column(texts=TEXTS, lengths=pb.Lengths(values=[1])),
    "x.missing_rows: got 2": pb.Column(texts=TEXTS, missing_rows=[2]),
    "x.scores: got 1": pb.Column(texts=TEXTS, scores=[0.5], lengths=pb.Lengths(values=[2])),
    "x.lengths: got none": pb.Column(texts=TEXTS, scores=[0.5, 1.0]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_column_that_does_not_fit_is_refused(message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message.replace(".", r"\.")):
        column_of(REFUSED[message], "x")

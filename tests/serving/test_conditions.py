"""Filters on the wire: every kind of node round trips, and faults say where they are."""

import pytest

from recsys.retrieval.filters import And, Equal, In, Not, Or, Range
from serving.conditions import filter_message, filter_of
from serving.errors import InvalidArgumentError
from serving.queries import Filter
from serving.v1 import retrieval_pb2 as pb

LEAVES: list[Filter] = [
    Equal(attribute="a", value=1),
    Equal(attribute="a", value=True),
    Equal(attribute="a", value=1.5),
    In(attribute="a", values=("x", "y")),
    Range(attribute="a", low=0),
    Range(attribute="a", low="a", high="b"),
]
TREE = And(of=(Or(of=tuple(LEAVES)), Not(of=Equal(attribute="b", value="z"))))


@pytest.mark.parametrize("predicate", [*LEAVES, TREE], ids=str)
def test_filter_round_trips(predicate: Filter) -> None:
    message = pb.Filter.FromString(filter_message(predicate).SerializeToString())
    back = filter_of(message)
    assert back == predicate
    assert repr(back) == repr(predicate)  # 1 and True and 1.0 are equal, and not the same


def test_filter_from_json_is_the_same() -> None:
    text = '{"kind": "equal", "attribute": "a", "value": 1}'
    assert filter_message(text) == filter_message(LEAVES[0])


REFUSED = {
    "a node is empty": pb.Filter(),
    "of: ": pb.Filter(conjunction=pb.FilterList()),
    "value": pb.Filter(equal=pb.Equal(attribute="a")),
    "needs low, high, or both": pb.Filter(range=pb.Range(attribute="a")),
    "values": pb.Filter(membership=pb.Membership(attribute="a")),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_filter_with_a_fault_is_refused(fault: str) -> None:
    with pytest.raises(InvalidArgumentError, match=fault):
        filter_of(REFUSED[fault])


def test_filter_that_is_too_deep_is_refused() -> None:
    message = pb.Filter(equal=pb.Equal(attribute="a", value=pb.Value(integer=1)))
    for _ in range(20):
        message = pb.Filter(negation=message)
    with pytest.raises(InvalidArgumentError, match="nested deeper"):
        filter_of(message)

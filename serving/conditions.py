"""Item filters between the wire and memory: `Filter` messages to predicate trees, and back.

What a filter means, and how large it may be, is said in `recsys.retrieval.filters`.
"""

from collections.abc import Mapping
from typing import Any

from recsys.retrieval.filters import And, Equal, In, Not, Or, Range, parse_predicate
from serving.errors import InvalidArgumentError
from serving.queries import Filter
from serving.v1 import retrieval_pb2 as pb


def filter_of(message: pb.Filter) -> Filter:
    """The predicate tree; InvalidArgumentError says where in the tree something is wrong."""
    try:
        return parse_predicate(_values_of(message))
    except ValueError as error:
        raise InvalidArgumentError("filter", str(error)) from None


def _values_of(message: pb.Filter) -> dict[str, Any]:
    """The tree as plain objects; the parser of protobuf has already refused one that is too deep to recurse over."""
    kind = message.WhichOneof("node")
    if kind is None:
        raise ValueError("a node is empty, accepted: conjunction, disjunction, negation, equal, membership, range")
    if kind in ("conjunction", "disjunction"):
        parts = getattr(message, kind).filters
        return {"kind": "and" if kind == "conjunction" else "or", "of": [_values_of(part) for part in parts]}
    if kind == "negation":
        return {"kind": "not", "of": _values_of(message.negation)}
    if kind == "equal":
        return {"kind": "equal", "attribute": message.equal.attribute, "value": _value_of(message.equal.value)}
    if kind == "membership":
        values = [_value_of(value) for value in message.membership.values]
        return {"kind": "in", "attribute": message.membership.attribute, "values": values}
    return {"kind": "range", "attribute": message.range.attribute} | _bounds_of(message.range)


def _bounds_of(message: pb.Range) -> dict[str, Any]:
    return {end: _value_of(getattr(message, end)) for end in ("low", "high") if message.HasField(end)}


def _value_of(message: pb.Value) -> int | float | str | bool | None:
    kind = message.WhichOneof("value")
    return None if kind is None else getattr(message, kind)


def filter_message(predicate: Filter | Mapping[str, Any] | str) -> pb.Filter:
    """The inverse of `filter_of`; also takes the JSON form of a predicate, as text or objects."""
    tree = predicate if isinstance(predicate, And | Or | Not | Equal | In | Range) else parse_predicate(predicate)
    if isinstance(tree, And | Or):
        parts = pb.FilterList(filters=[filter_message(part) for part in tree.of])
        return pb.Filter(conjunction=parts) if isinstance(tree, And) else pb.Filter(disjunction=parts)
    if isinstance(tree, Not):
        return pb.Filter(negation=filter_message(tree.of))
    if isinstance(tree, Equal):
        return pb.Filter(equal=pb.Equal(attribute=tree.attribute, value=_value_message(tree.value)))
    if isinstance(tree, In):
        values = [_value_message(value) for value in tree.values]
        return pb.Filter(membership=pb.Membership(attribute=tree.attribute, values=values))
    ends = {end: _value_message(value) for end, value in (("low", tree.low), ("high", tree.high)) if value is not None}
    return pb.Filter(range=pb.Range(attribute=tree.attribute, **ends))


def _value_message(value: bool | int | float | str) -> pb.Value:
    if isinstance(value, bool):
        return pb.Value(flag=value)
    if isinstance(value, int):
        return pb.Value(integer=value)
    return pb.Value(number=value) if isinstance(value, float) else pb.Value(text=value)

"""Which items are allowed: a typed tree of predicates over item attributes, and the bitmap that it selects.

    {"kind": "and", "of": [{"kind": "equal", "attribute": "category", "value": "shoes"},
                           {"kind": "not", "of": {"kind": "range", "attribute": "price", "high": 9.5}}]}

Not a query language: no joins, no expressions, no text to parse.

Semantics are two-valued. A comparison is true or false, never unknown: a null (or NaN) attribute makes it false, so
`not` of it is true. "Not shoes" therefore keeps items without a category; to leave those out too, ask for the
categories that are wanted. On a list attribute a comparison is true when it is true of any element: `equal` and `in`
mean "contains". Both ends of a range are included.

Shapes: n items, in the order of the item table (positions).
"""

import json
import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from torch import Tensor

MAX_DEPTH = 16
MAX_NODES = 256
MAX_VALUES = 10_000
MAX_TEXT = 1 << 20  # bytes of a predicate's JSON

Value = StrictBool | StrictInt | StrictFloat | StrictStr


class _Node(BaseModel):
    """A frozen node that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Equal(_Node):
    """The attribute equals the value; a list attribute contains it."""

    kind: Literal["equal"] = "equal"
    attribute: str
    value: Value


class In(_Node):
    """The attribute equals one of the values; a list attribute contains one of them."""

    kind: Literal["in"] = "in"
    attribute: str
    values: tuple[Value, ...] = Field(min_length=1, max_length=MAX_VALUES)


class Range(_Node):
    """low <= attribute <= high; one end may be left open. Texts compare by their UTF-8 bytes."""

    kind: Literal["range"] = "range"
    attribute: str
    low: StrictInt | StrictFloat | StrictStr | None = None
    high: StrictInt | StrictFloat | StrictStr | None = None

    @model_validator(mode="after")
    def _has_ends_in_order(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError(f"range over {self.attribute!r} needs low, high, or both")
        if isinstance(self.low, str) != isinstance(self.high, str) and None not in (self.low, self.high):
            raise ValueError(f"range over {self.attribute!r} mixes text and number: {self.low!r}, {self.high!r}")
        if self.low is not None and self.high is not None and self.low > self.high:  # type: ignore[operator]
            raise ValueError(f"range over {self.attribute!r} is empty: low {self.low!r} is above high {self.high!r}")
        return self


class And(_Node):
    """Every part is true."""

    kind: Literal["and"] = "and"
    of: tuple["Predicate", ...] = Field(min_length=1)


class Or(_Node):
    """At least one part is true."""

    kind: Literal["or"] = "or"
    of: tuple["Predicate", ...] = Field(min_length=1)


class Not(_Node):
    """The part is false."""

    kind: Literal["not"] = "not"
    of: "Predicate"


Predicate = Annotated[And | Or | Not | Equal | In | Range, Field(discriminator="kind")]
KINDS = ("and", "or", "not", "equal", "in", "range")


class _Filter(_Node):
    root: Predicate


for _model in (And, Or, Not, _Filter):
    _model.model_rebuild()


def parse_predicate(values: Any) -> And | Or | Not | Equal | In | Range:
    """A predicate from its JSON text, or from the objects of it.

    Raises ValueError with one line: where in the tree, what came, what is accepted; also for a tree that is too deep or
    too large (`MAX_DEPTH`, `MAX_NODES`, `MAX_VALUES`, `MAX_TEXT`).
    """
    values = _from_text(values) if isinstance(values, str | bytes) else values
    _check_size(values)
    try:
        return _Filter.model_validate({"root": values}).root
    except ValidationError as error:
        raise ValueError(f"filter{_described(error)}") from None


def to_json(predicate: BaseModel) -> str:
    """The inverse of `parse_predicate`, canonical: sorted keys, no spaces."""
    return json.dumps(predicate.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def evaluate(predicate: And | Or | Not | Equal | In | Range, table: pa.Table) -> Tensor:
    """The bitmap, bool [n], of one predicate over a table; `Attributes` when there are many predicates."""
    return Attributes(table).bitmap(predicate)


class Attributes:
    """The item attributes that filters may name: one row per item, in the order of positions.

    Columns of text, whole numbers, floating point, booleans, lists of these, and dictionaries of them can be compared.
    """

    def __init__(self, table: pa.Table):
        self.num_items = table.num_rows
        self._columns = {name: _Column(name, table.column(name)) for name in table.column_names}

    @property
    def names(self) -> list[str]:
        """The attributes that can be compared, sorted."""
        return sorted(name for name, column in self._columns.items() if column.accepted)

    def bitmap(self, predicate: And | Or | Not | Equal | In | Range) -> Tensor:
        """Which items the predicate selects, bool [n].

        Raises ValueError naming an unknown attribute (and the nearest known one) or a value of the wrong type.
        """
        if sum(1 for _ in _walk(predicate)) > MAX_NODES:
            raise ValueError(f"filter has more than {MAX_NODES} nodes")
        return torch.from_numpy(self._evaluate(predicate, depth=1))

    def _evaluate(self, predicate: And | Or | Not | Equal | In | Range, depth: int) -> np.ndarray[Any, Any]:
        if depth > MAX_DEPTH:
            raise ValueError(f"filter is nested deeper than {MAX_DEPTH}")
        if isinstance(predicate, Not):
            return ~self._evaluate(predicate.of, depth + 1)
        if isinstance(predicate, And | Or):
            parts = [self._evaluate(part, depth + 1) for part in predicate.of]
            combine = np.logical_and if isinstance(predicate, And) else np.logical_or
            return np.asarray(combine.reduce(parts))
        return self._column(predicate.attribute).matches(predicate)

    def _column(self, name: str) -> "_Column":
        if name in self._columns:
            return self._columns[name]
        near = get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"filter names an unknown attribute {name!r}{hint} Attributes are {self.names}")


class _Column:
    """One attribute: its values flat, and for a list attribute the item that each value belongs to."""

    def __init__(self, name: str, column: pa.ChunkedArray):
        self.name = name
        self.num_items = len(column)
        values = column.combine_chunks()
        self.item_of_value: np.ndarray[Any, Any] | None = None
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            self.item_of_value = pc.list_parent_indices(values).to_numpy()
            values = pc.list_flatten(values)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        self.accepted = _accepted(values.type)
        self.values = values.cast(pa.int64()) if _is_narrow_integer(values.type) else values

    def matches(self, leaf: Equal | In | Range) -> np.ndarray[Any, Any]:
        """Bool [n]."""
        found = pc.fill_null(self._compare(leaf), False).to_numpy(zero_copy_only=False)
        if self.item_of_value is None:
            return np.asarray(found)
        selected = np.zeros(self.num_items, dtype=bool)
        selected[self.item_of_value[found]] = True
        return selected

    def _compare(self, leaf: Equal | In | Range) -> pa.Array:
        if isinstance(leaf, Equal):
            return pc.equal(self.values, self._scalar(leaf.value))
        if isinstance(leaf, In):
            accepted = pa.array([self._scalar(value).as_py() for value in leaf.values], type=self.values.type)
            return pc.is_in(self.values, value_set=accepted)
        if pa.types.is_boolean(self.values.type):
            raise ValueError(f"filter on {self.name!r}: a range needs numbers or texts, the attribute is true or false")
        above = None if leaf.low is None else pc.greater_equal(self.values, self._scalar(leaf.low))
        below = None if leaf.high is None else pc.less_equal(self.values, self._scalar(leaf.high))
        return pc.and_(above, below) if above is not None and below is not None else above if below is None else below

    def _scalar(self, value: bool | int | float | str) -> pa.Scalar:
        """The value in the column's own type, so that 0.1 finds the 0.1 of a float32 column."""
        accepts = {"text": str, "a whole number": int, "a number": int | float, "true or false": bool}
        wanted = accepts.get(self.accepted)
        if wanted is None:
            raise ValueError(f"filter on {self.name!r}: attributes of type {self.values.type} cannot be compared")
        wrong = not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)
        if wrong or (isinstance(value, float) and math.isnan(value)):
            came = f"{value!r} ({type(value).__name__})"
            raise ValueError(f"filter on {self.name!r}: got {came}, the attribute is {self.accepted}")
        try:
            return pa.scalar(value, type=self.values.type)
        except (pa.ArrowInvalid, OverflowError):
            raise ValueError(f"filter on {self.name!r}: {value!r} is outside {self.values.type}") from None


def _accepted(kind: pa.DataType) -> str:
    """What values a column of this type compares with, "" for none."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "true or false"
    if pa.types.is_integer(kind):
        return "a whole number"
    return "a number" if pa.types.is_floating(kind) else ""


def _is_narrow_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) and kind != pa.uint64())


def _walk(predicate: And | Or | Not | Equal | In | Range) -> Iterator[object]:
    """Every node, without recursion."""
    pending: list[Any] = [predicate]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, Not):
            pending.append(node.of)
        elif isinstance(node, And | Or):
            pending.extend(node.of)


def _from_text(text: str | bytes) -> Any:
    if len(text) > MAX_TEXT:
        raise ValueError(f"filter has {len(text)} bytes, at most {MAX_TEXT} are accepted")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"filter is not JSON: {error}") from None


def _check_size(values: Any) -> None:
    """Refuse raw objects that are too deep or too many, before anything recurses over them."""
    pending, nodes = [(values, 1)], 0
    while pending:
        value, depth = pending.pop()
        if not isinstance(value, dict):
            continue
        nodes += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"filter is nested deeper than {MAX_DEPTH}")
        if nodes > MAX_NODES:
            raise ValueError(f"filter has more than {MAX_NODES} nodes")
        parts = value.get("of")
        pending.extend((part, depth + 1) for part in (parts if isinstance(parts, Sequence) else [parts]))


def _described(error: ValidationError) -> str:
    """The place and fault of the first error, without the names of the union's members."""
    first = error.errors()[0]
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:] if part not in KINDS
    )
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        came = first["input"].get("kind") if isinstance(first["input"], dict) else first["input"]
        return f"{place}: unknown kind {came!r}; kinds are {', '.join(KINDS)}"
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown field"
    came = repr(first["input"])
    return f"{place}: {first['msg'].removeprefix('Value error, ')}, got {came[:80]}{'...' * (len(came) > 80)}"

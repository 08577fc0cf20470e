"""One raw column -> its canonical form and what can be wrong with it, as expressions of the working database.

Canonical forms are those that `Encoder` reads: ids are int64 or text, lists arrays of them (of structs id, score where
scored), numbers float64 (NaN counts as missing), times int64. A value that has no canonical form is a fault of its row;
a column whose type has none (a date as an id) is a ValueError that names it. Nothing here evaluates an expression.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir

from features.spec import FeatureSpec
from features.transforms import Clip, Log1p, Transform

EPOCH = "1970-01-01T00:00:00"
DECIMAL = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"  # a number that no id looks like
_INTEGER = "(0|-?[1-9][0-9]{0,17})"
_EXACT = 1 << 53
_TOP = 1 << 63


@dataclass(frozen=True)
class Fault:
    """Something that may be wrong in one column; `condition` is true in the rows that have it, and never null."""

    column: str
    condition: Any  # a boolean expression
    problem: str


@dataclass(frozen=True)
class Reading:
    """A column in canonical form, null where missing or faulty, and its possible faults."""

    value: Any  # an expression
    faults: tuple[Fault, ...] = ()


def integer_pattern(spec: FeatureSpec | None) -> str:
    """The regular expression of a text value whose ids are all integers in canonical decimals.

    Numbers with leading zeros, signs or more than 18 digits are text, so that no two texts become one id.
    """
    if spec is None or not spec.is_list:
        return f"^{_INTEGER}$"
    element = _INTEGER + (":[^:]*" if spec.kind == "id_score_list" else "")
    separator = re.escape(spec.separator)
    return f"^({separator})*({element}({separator})*)*$"


def element_type(raw: ir.Value, column: str) -> Any:
    """The type of the ids in a column: of the values, of the elements of lists, of their field `id`.

    Raises ValueError, naming the column, for a type that ids cannot have.
    """
    kind: Any = raw.type()
    kind = kind.value_type if kind.is_array() else kind
    kind = kind["id"] if kind.is_struct() and "id" in kind.names else kind
    if kind.is_string() or kind.is_numeric() or kind.is_boolean() or kind.is_null():
        return kind
    raise ValueError(f"column {column!r} has type {raw.type()}; ids are integers or text")


def read_id(raw: Any, column: str, *, integers: bool, refuse_missing: bool) -> Reading:
    """One id per row. integers: the form of all columns that share its ids."""
    element_type(raw, column)
    faults = []
    if _fractional(raw):
        faults.append(Fault(column, _sure(_present(raw) & ~_is_whole(raw)), "is no whole number, as an id must be"))
    if refuse_missing:
        faults.append(Fault(column, _sure(~_present(raw)), "is missing"))
    return Reading(_as_id(raw, integers), tuple(faults))


def read_list(raw: Any, column: str, spec: FeatureSpec, *, integers: bool) -> Reading:
    """A list of ids, or of ids with scores, per row, cut to its last `max_length`."""
    element_type(raw, column)
    faults = [Fault(column, raw.isnull(), "is missing")] if spec.missing == "refuse" else []
    pieces = raw
    if raw.type().is_string():
        pieces = raw.split(spec.separator).filter(lambda piece: piece != "")
    elif not raw.type().is_array():
        raise ValueError(f"column {column!r} has type {raw.type()}; feature {spec.name!r} needs lists, or text")
    if spec.kind == "id_score_list":
        return _read_scored(pieces, column, spec, integers, faults)
    if spec.missing == "refuse":
        faults.append(Fault(column, _some(pieces, lambda piece: piece.isnull()), "holds a missing id"))
    return Reading(_cut(pieces.map(lambda piece: _as_id(piece, integers)), spec), tuple(faults))


def _read_scored(pieces: Any, column: str, spec: FeatureSpec, integers: bool, faults: list[Fault]) -> Reading:
    if pieces.type().value_type.is_string():
        form = "^(.*):([^:]*)$"
        faults.append(Fault(column, _some(pieces, lambda piece: ~piece.re_search(form)), "is not written id:score"))
        ids = pieces.map(lambda piece: _as_id(piece.re_extract(form, 1), integers))
        scores = pieces.map(lambda piece: piece.re_extract(form, 2).try_cast("float64"))
    elif not pieces.type().value_type.is_struct():
        raise ValueError(
            f"column {column!r} has type {pieces.type()}; feature {spec.name!r} needs structs of id, score"
        )
    else:
        ids = pieces.map(lambda piece: _as_id(piece["id"], integers))
        scores = pieces.map(lambda piece: piece["score"].cast("float64"))
    bad = _some(scores, lambda score: score.isnull() | score.isnan() | score.isinf())
    faults.append(Fault(column, bad, "has a score that is no finite number"))
    if spec.missing == "refuse":
        faults.append(Fault(column, _some(ids, lambda one: one.isnull()), "holds a missing id"))
    both = ids.zip(scores).map(lambda pair: ibis.struct({"id": pair["f1"], "score": pair["f2"]}))
    return Reading(_cut(both, spec), tuple(faults))


def read_number(raw: Any, column: str, *, refuse_missing: bool, transforms: Sequence[Transform] = ()) -> Reading:
    """A number per row, finite."""
    kind = raw.type()
    if not (kind.is_string() or kind.is_numeric() or kind.is_boolean() or kind.is_null()):
        raise ValueError(f"column {column!r} has type {kind}; a number is needed")
    number = raw.try_cast("float64") if kind.is_string() else raw.cast("float64")
    value = number.isnan().ifelse(ibis.null("float64"), number)
    faults = [Fault(column, _sure(number.isinf()), "is not finite")]
    if kind.is_string():
        faults.append(Fault(column, raw.notnull() & number.isnull(), "is no number"))
    if refuse_missing:
        missing = raw.isnull() | _sure(number.isnan())
        faults.append(Fault(column, missing, "is missing"))
    faults += [
        Fault(column, _sure(reached < 0), "is below 0 where log1p is taken") for reached in _logged(value, transforms)
    ]
    return Reading(value, tuple(faults))


def _logged(value: Any, transforms: Sequence[Transform]) -> Iterator[Any]:
    """What reaches each log1p that stands before any learned transform."""
    for transform in transforms:
        if isinstance(transform, Log1p):
            yield value
        if not isinstance(transform, Log1p | Clip):
            return
        value = apply_transform(value, transform)


def apply_transform(value: Any, transform: Log1p | Clip) -> Any:
    """The transform as an expression; log1p of a number below 0 is null."""
    if isinstance(transform, Clip):
        return value.clip(lower=transform.low, upper=transform.high)
    return (value >= 0).ifelse((value + 1).ln(), ibis.null("float64"))


NO_TIME = "is no time (whole numbers, dates or dates with times: one of these for the whole column)"


def read_time(raw: Any, column: str, *, integers: bool) -> Reading:
    """A time per row, int64: integers in the unit they have, dates and times in microseconds since 1970 UTC.

    integers: whether a text column holds integers rather than dates.
    """
    kind = raw.type()
    if kind.is_string() and not integers:
        value = _microseconds(raw.try_cast("timestamp"))
    elif kind.is_date() or kind.is_timestamp():
        value = _microseconds(raw.cast("timestamp"))
    elif kind.is_string() or kind.is_numeric() or kind.is_null():
        value = _as_id(raw, integers=True)
    else:
        raise ValueError(f"column {column!r} has type {kind}; times are integers, dates, or dates with times")
    faults = [
        Fault(column, ~_present(raw), "is missing"),
        Fault(column, _present(raw) & value.isnull(), NO_TIME),
        Fault(column, _sure(value < 0), "is negative"),
    ]
    return Reading(value, tuple(Fault(column, _sure(fault.condition), fault.problem) for fault in faults))


def _microseconds(time: Any) -> Any:
    return time.delta(ibis.timestamp(EPOCH), unit="microsecond")


def _as_id(raw: Any, integers: bool) -> Any:
    """int64 or text; null where missing or fractional. uint64 keeps its bit pattern."""
    kind = raw.type()
    if kind.is_string():
        return raw.try_cast("int64") if integers else raw
    if _fractional(raw):
        number = _is_whole(raw).ifelse(raw, ibis.null(kind)).try_cast("int64")
    elif kind.is_unsigned_integer() and kind.nbytes == 8:
        top = ibis.literal(_TOP, "uint64")
        number = (raw >= top).ifelse(
            (raw - top).try_cast("int64") + ibis.literal(-_TOP, "int64"), raw.try_cast("int64")
        )
    else:
        number = raw.cast("int64")
    return number if integers else number.cast("string")


def _fractional(raw: Any) -> bool:
    return bool(raw.type().is_floating() or raw.type().is_decimal())


def _is_whole(raw: Any) -> Any:
    number = raw.cast("float64")
    return _sure((number.try_cast("int64").cast("float64") == number) & (number.abs() < _EXACT))


def _present(raw: Any) -> Any:
    """Neither null nor NaN."""
    return raw.notnull() & ~_sure(raw.isnan()) if raw.type().is_floating() else raw.notnull()


def _sure(condition: Any) -> Any:
    return condition.fill_null(False)


def _some(elements: Any, holds: Any) -> Any:
    """Whether a condition holds for some element; false for an absent or empty list."""
    return _sure(elements.map(holds).anys())


def _cut(elements: Any, spec: FeatureSpec) -> Any:
    if spec.max_length is None:
        return elements
    longer = elements.length() > spec.max_length
    return longer.ifelse(elements[elements.length() - spec.max_length :], elements)

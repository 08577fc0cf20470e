"""Raw ids and raw columns between the wire and memory: `Id`, `Ids` and `Column` messages to numpy and Arrow, and back.

Integer ids travel as unsigned 64-bit patterns, which is how the catalogue stores them too (as int64).

Shapes: N ids or flat values, B rows of a column.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from serving.errors import InvalidArgumentError
from serving.queries import RawId, RawIds
from serving.v1 import retrieval_pb2 as pb

WIDE = 1 << 64


def id_of(message: pb.Id) -> RawId | None:
    """The raw id, or None when the message holds none."""
    kind = message.WhichOneof("id")
    if kind is None:
        return None
    return message.text if kind == "text" else int(np.uint64(message.number).astype(np.int64))


def id_message(raw: RawId) -> pb.Id:
    """The inverse of `id_of`; TypeError for anything but a whole number or a text."""
    if isinstance(raw, str):
        return pb.Id(text=raw)
    return pb.Id(number=_number(raw) % WIDE)


def ids_of(message: pb.Ids, field: str) -> NDArray[Any]:
    """Raw ids [N], int64 or texts. Raises InvalidArgumentError when both kinds are there."""
    if message.numbers and message.texts:
        raise InvalidArgumentError(field, "holds both numbers and texts, accepted: the kind of the catalogue alone")
    if message.texts:
        return np.array(message.texts, dtype=object)
    return np.array(message.numbers, dtype=np.uint64).view(np.int64)


def ids_message(raw: RawIds) -> pb.Ids:
    """The inverse of `ids_of`; TypeError for anything but whole numbers or texts."""
    values: list[Any] = raw.tolist() if isinstance(raw, np.ndarray) else list(raw)
    if any(isinstance(value, str) for value in values):
        return pb.Ids(texts=values)
    return pb.Ids(numbers=[_number(value) % WIDE for value in values])


def _number(raw: Any) -> int:
    if isinstance(raw, bool | np.bool_) or not isinstance(raw, int | np.integer):
        raise TypeError(f"a raw id must be a whole number or a text, got {raw!r} ({type(raw).__name__})")
    return int(raw)


def column_of(message: pb.Column, field: str) -> pa.Array:
    """The raw column, [B]; lists as Arrow lists, lists with scores as Arrow lists of structs (id, score).

    Raises InvalidArgumentError naming the field for values, lengths, scores and missing rows that do not fit together.
    """
    flat = _flat_values(message, field)
    if message.scores:
        _check_count(f"{field}.scores", len(message.scores), len(flat), "one per value")
        scores = pa.array(np.array(message.scores, dtype=np.float32))
        flat = pa.StructArray.from_arrays([flat, scores], names=["id", "score"])
    if message.HasField("lengths"):
        return _list_column(message, field, flat)
    if message.scores:
        raise InvalidArgumentError(f"{field}.lengths", "got none, accepted: one per row where scores are given")
    missing = _missing(message, field, len(flat))
    if missing.all():
        return pa.nulls(len(flat))
    return pc.if_else(pa.array(~missing), flat, None) if missing.any() else flat


def _flat_values(message: pb.Column, field: str) -> pa.Array:
    kind = message.WhichOneof("values")
    if kind == "integers":
        return pa.array(np.array(message.integers.values, dtype=np.int64))
    if kind == "numbers":
        return pa.array(np.array(message.numbers.values, dtype=np.float64))
    if kind == "texts":
        return pa.array(list(message.texts.values), type=pa.string())
    raise InvalidArgumentError(field, "holds no values, accepted: one of integers, numbers, texts")


def _list_column(message: pb.Column, field: str, flat: pa.Array) -> pa.Array:
    lengths = np.array(message.lengths.values, dtype=np.int64)
    _check_count(f"{field}.lengths", int(lengths.sum()), len(flat), "lengths that add up to the number of values")
    missing = _missing(message, field, len(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(missing) if missing.any() else None)


def _missing(message: pb.Column, field: str, num_rows: int) -> NDArray[np.bool_]:
    """Which rows are missing, [B]."""
    missing = np.zeros(num_rows, dtype=bool)
    rows = np.array(message.missing_rows, dtype=np.int64)
    if len(rows) and rows.max() >= num_rows:
        raise InvalidArgumentError.got(f"{field}.missing_rows", int(rows.max()), f"rows below {num_rows}")
    missing[rows] = True
    return missing


def _check_count(field: str, came: int, wanted: int, accepted: str) -> None:
    if came != wanted:
        raise InvalidArgumentError.got(field, came, f"{accepted} ({wanted})")


def column_message(values: pa.Array | ArrayLike | Iterable[Any]) -> pb.Column:
    """The inverse of `column_of`, from an Arrow array or from what `pyarrow.array` takes (None = missing).

    A list with scores holds {"id": ..., "score": ...} per value. Raises TypeError for other kinds of values.
    """
    array = _as_array(values)
    missing = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist()
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return _flat_message(array, missing)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_pylist()
    flat = pc.list_flatten(array)
    scores: list[float] = []
    if pa.types.is_struct(flat.type):
        scores = flat.field("score").to_pylist()
        flat = flat.field("id")
    message = _flat_message(flat, missing)
    message.lengths.CopyFrom(pb.Lengths(values=lengths))
    message.scores.extend(scores)
    return message


def _as_array(values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values if isinstance(values, pa.Array) else pa.array(values)


def _flat_message(flat: pa.Array, missing: list[int]) -> pb.Column:
    kind = flat.type
    if pa.types.is_null(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = [text or "" for text in flat.to_pylist()]
        return pb.Column(texts=pb.Texts(values=texts), missing_rows=missing)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        integers = pc.fill_null(flat.cast(pa.int64()), 0).to_pylist()
        return pb.Column(integers=pb.Integers(values=integers), missing_rows=missing)
    if pa.types.is_floating(kind):
        numbers = pc.fill_null(flat.cast(pa.float64()), 0.0).to_pylist()
        return pb.Column(numbers=pb.Numbers(values=numbers), missing_rows=missing)
    raise TypeError(f"a column must hold whole numbers, numbers or texts, or lists of them; got {kind}")

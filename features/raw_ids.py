"""Raw ids in every form that people hold them (lists, numpy, pandas, Arrow) -> one Arrow form, and looking them up.

Ids are integers or strings, never both in one place; a null means that the id is missing. Policies for missing and
unknown ids are the caller's.

Shapes: N ids asked for, V ids known.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ids = NDArray[Any]
Refuse = Callable[[int, str], NoReturn]
_EXACT = 1 << 53


def arrow_ids(raw: Any, what: str, refuse: Refuse | None = None) -> pa.Array:
    """Raw ids [N] as an Arrow array of int64 or large_string with nulls (NaN in pandas counts as null).

    Integers of every width and booleans become int64 (uint64 keeps its bit pattern), floats int64 where they are whole
    numbers (as pandas makes of an integer column with gaps), dictionaries are decoded. An array of nulls alone is
    int64. Raises ValueError, naming `what`, for other types; for a number that is not whole `refuse(index, reason)` is
    called where given, which must raise.
    """
    array = as_array(raw, what)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_int64(kind) or pa.types.is_large_string(kind):
        return array
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    if pa.types.is_uint64(kind):
        return array.view(pa.int64())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return array.cast(pa.int64())
    if pa.types.is_floating(kind):
        return _whole_numbers(array, what, refuse)
    raise ValueError(f"{what}: ids are integers or strings, got {kind}; convert the column, or bucketise numbers")


def as_array(raw: Any, what: str) -> pa.Array:
    """Any one-dimensional data as one Arrow array. Raises ValueError, naming `what`, for mixed Python data."""
    if isinstance(raw, pa.ChunkedArray):
        return pa.concat_arrays(raw.chunks) if raw.num_chunks else pa.array([], type=raw.type)
    if isinstance(raw, pa.Array):
        return raw
    try:
        array = pa.array(raw, from_pandas=True)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"{what}: values of one column must be of one type: {error}") from None
    return as_array(array, what) if isinstance(array, pa.ChunkedArray) else array


def sorted_counts(ids: pa.Array, counts: NDArray[np.int64], what: str) -> tuple[Ids, NDArray[np.int64], int]:
    """Distinct ids ascending (strings by code point), the sum of the counts of each, and the count of nulls."""
    if counts.shape != (len(ids),) or (len(counts) and counts.min() < 0):
        raise ValueError(f"{what}: {len(ids)} ids need as many counts of at least 0, got shape {counts.shape}")
    is_null = ids.is_null().to_numpy(zero_copy_only=False)
    null_count = int(counts[is_null].sum())
    encoded = pc.drop_null(ids).dictionary_encode()
    totals = np.bincount(encoded.indices.to_numpy(), counts[~is_null], len(encoded.dictionary)).astype(np.int64)
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    return id_numpy(encoded.dictionary)[order], totals[order], null_count


def id_numpy(ids: pa.Array) -> Ids:
    """Arrow ids without nulls as int64, or as object of str."""
    values: Ids = ids.to_numpy(zero_copy_only=False)
    return values if values.dtype == np.int64 else values.astype(object)


def id_values(ids: Ids, null_index: int | None) -> bytes:
    """The bytes that stand for ids in a content hash: little-endian int64, or length and UTF-8 of each string."""
    if ids.dtype == np.int64:
        return b"int" + ids.astype("<i8").tobytes()
    texts = [b"" if place == null_index else text.encode() for place, text in enumerate(ids)]
    return b"str" + np.array([len(text) for text in texts], dtype="<i8").tobytes() + b"".join(texts)


class IdIndex:
    """Finds the entry of each id by a hash table: distinct ids [V] (no nulls) -> entries [V].

    Of strings, each distinct one among those asked for is looked up once. Raises ValueError, naming `what`, if an id
    stands twice.
    """

    def __init__(self, ids: Ids, entries: NDArray[np.int64], what: str) -> None:
        self._index = pd.Index(ids, dtype=ids.dtype)
        self._entries = np.append(entries, np.int64(-1))  # the last answers for what is not here
        self._integers = ids.dtype == np.int64
        self._what = what
        if not self._index.is_unique:
            repeated = self._index[self._index.duplicated()].tolist()
            raise ValueError(f"{what}: id {repeated[0]!r} stands twice")

    def accepts(self, ids: pa.Array) -> bool:
        """Whether ids (from `arrow_ids`) are of the type known here; nulls alone always are, and all where none is."""
        anything = ids.null_count == len(ids) or not len(self._index)
        return bool(anything or pa.types.is_int64(ids.type) == self._integers)

    def find(self, ids: pa.Array) -> NDArray[np.int64]:
        """Entries [N] int64 of ids from `arrow_ids`; -1 for unknown ones and nulls.

        Raises ValueError when integers are asked of strings or strings of integers.
        """
        if ids.null_count == len(ids) or not len(self._index):
            return np.full(len(ids), -1, dtype=np.int64)
        if not self.accepts(ids):
            known = "integers" if self._integers else "strings"
            raise ValueError(f"{self._what} holds {known}, got ids of type {ids.type}")
        return self._find_integers(ids) if self._integers else self._find_strings(ids)

    def _find_integers(self, ids: pa.Array) -> NDArray[np.int64]:
        values = (ids.fill_null(0) if ids.null_count else ids).to_numpy()
        found: NDArray[np.int64] = self._entries[self._index.get_indexer(values)]
        if ids.null_count:
            found[ids.is_null().to_numpy(zero_copy_only=False)] = -1
        return found

    def _find_strings(self, ids: pa.Array) -> NDArray[np.int64]:
        encoded = ids.dictionary_encode()
        places = self._index.get_indexer(encoded.dictionary.to_numpy(zero_copy_only=False).astype(object))
        found = np.append(self._entries[places], np.int64(-1))  # the last is for nulls
        rows: NDArray[np.int64] = found[encoded.indices.fill_null(len(places)).to_numpy()]
        return rows


def _whole_numbers(array: pa.Array, what: str, refuse: Refuse | None) -> pa.Array:
    values = array.cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), _EXACT))
    bad = pc.index(whole, False).as_py()
    if bad >= 0:
        if refuse is not None:
            refuse(bad, "ids are integers or strings")
        raise ValueError(f"{what}, place {bad}: ids are integers or strings, got {values[bad].as_py()!r}")
    return values.cast(pa.int64())

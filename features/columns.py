"""One raw column of a table, read as numbers, ids or lists, with errors that name feature, row and value.

Nothing in here knows vocabularies: what a null or an unknown id becomes is the encoder's affair.

Shapes: B rows of the table, N flat values of its lists.
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, NoReturn, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.raw_ids import arrow_ids, as_array
from features.transforms import Floats

Frame: TypeAlias = pa.Table | pd.DataFrame
_CELL = object()


@dataclass(frozen=True, kw_only=True)
class Column:
    """A raw column: Arrow values [B], what they are read for, and the number of their first row in a larger whole."""

    what: str
    name: str
    values: pa.Array
    first_row: int = 0

    @staticmethod
    def of(table: pa.Table, name: str, what: str, first_row: int = 0) -> "Column":
        """That column of a table. Raises ValueError naming what needs it and what the table has."""
        places = table.schema.get_all_field_indices(name)
        if len(places) == 1:
            values = as_array(table.column(places[0]), what)
            plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
            return Column(what=what, name=name, values=plain, first_row=first_row)
        if places:
            raise ValueError(f"{what} reads column {name!r}, which stands {len(places)} times in the table")
        near = get_close_matches(name, table.column_names, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} reads column {name!r}, which the table lacks{hint} (it has {table.column_names})")

    def refuse(self, row: int, reason: str, value: Any = _CELL) -> NoReturn:
        """Raise ValueError naming the feature, the row and the value: the cell's, or the one given of its list."""
        shown = self.values[row].as_py() if value is _CELL else value
        raise ValueError(f"{self.what}, row {self.first_row + row}: {reason}, got {shown!r}")

    def refuse_first(self, bad: NDArray[np.bool_], reason: str) -> None:
        """`refuse` the first row where `bad` [B] is true, if there is one."""
        places = np.flatnonzero(bad)
        if len(places):
            self.refuse(int(places[0]), reason)

    def numbers(self) -> tuple[Floats, NDArray[np.bool_]]:
        """float64 [B] (0 where missing) and whether each is missing: null or NaN. Infinite values are refused."""
        kind = self.values.type
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if not (numeric or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise ValueError(f"{self.what} needs numbers, column {self.name!r} holds {kind}")
        if pa.types.is_boolean(kind):
            numbers = self.values.cast(pa.int8()).cast(pa.float64())
        else:
            numbers = self.values.cast(pa.float64(), safe=False)
        values = numbers.to_numpy(zero_copy_only=False).astype(np.float64, copy=True)
        missing = np.isnan(values)
        self.refuse_first(np.isinf(values), "a number must be finite")
        values[missing] = 0.0
        return values, missing

    def ids(self) -> pa.Array:
        """Ids [B] as int64 or large_string with nulls; what cannot be an id is refused."""
        return arrow_ids(self.values, self.what, self.refuse)

    def lists(self, separator: str, scored: bool) -> "Lists":
        """Lists of ids: an Arrow list column, or text in which a separator joins them (empty pieces are skipped).

        scored: the elements are structs of the fields id and score, or texts "id:score".
        """
        kind = self.values.type
        if pa.types.is_fixed_size_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            return replace(self, values=self.values.cast(pa.large_list(kind.value_type))).lists(separator, scored)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return self._arrow_lists(scored)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return self._text_lists(separator, scored)
        if pa.types.is_null(kind):
            empty = pa.array([], type=pa.int64())
            return Lists(self, empty, np.zeros(len(self.values) + 1, np.int64), np.zeros(0) if scored else None, False)
        raise ValueError(f"{self.what} needs lists or text joined by {separator!r}, column {self.name!r} holds {kind}")

    def _arrow_lists(self, scored: bool) -> "Lists":
        flat = self.values.flatten()
        offsets = _offsets(pc.list_value_length(self.values).fill_null(0).to_numpy())
        lists = Lists(self, flat, offsets, None, False)
        if not scored:
            return replace(lists, ids=arrow_ids(flat, self.what, lists.refuse))
        names = [field.name for field in flat.type] if pa.types.is_struct(flat.type) else []
        if sorted(names) != ["id", "score"]:
            raise ValueError(
                f"{self.what} needs lists of structs of id and score, column {self.name!r} holds {flat.type}"
            )
        fields = dict(zip(names, flat.flatten(), strict=True))
        lists = replace(lists, ids=arrow_ids(fields["id"], self.what, lists.refuse))
        return lists.with_scores(fields["score"])

    def _text_lists(self, separator: str, scored: bool) -> "Lists":
        pieces = pc.split_pattern(self.values.cast(pa.large_string()), separator)
        offsets = _offsets(pc.list_value_length(pieces).fill_null(0).to_numpy())
        flat = pieces.flatten().cast(pa.large_string())
        filled = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
        lists = Lists(self, flat, offsets, None, True).filter(filled)
        if not scored:
            return lists
        parts = pc.split_pattern(lists.ids, ":", max_splits=1, reverse=True)
        single = np.flatnonzero(pc.list_value_length(parts).to_numpy() != 2)
        if len(single):
            lists.refuse(int(single[0]), "an id and its score are written id:score")
        halves = parts.flatten()
        ids, scores = halves[::2] if len(halves) else halves, halves[1::2] if len(halves) else halves
        return replace(lists, ids=ids.cast(pa.large_string())).with_scores(scores)


@dataclass(frozen=True)
class Lists:
    """The lists of a column, flat: ids [N] as Arrow, offsets [B + 1], scores float64 [N] or None.

    textual: the ids were cut out of texts, so they may be integers written out.
    """

    column: Column
    ids: pa.Array
    offsets: NDArray[np.int64]
    scores: Floats | None
    textual: bool

    def refuse(self, index: int, reason: str) -> NoReturn:
        """Raise ValueError naming the feature, the row of flat value `index`, and that value."""
        row = int(np.searchsorted(self.offsets, index, side="right")) - 1
        self.column.refuse(row, reason, self.ids[index].as_py())

    def integers(self) -> "Lists":
        """The same lists with textual ids read as integers; a text that is none is refused."""
        return replace(self, ids=self._parsed(self.ids, pa.int64(), "an integer id is needed"), textual=False)

    def with_scores(self, scores: pa.Array) -> "Lists":
        """With scores [N], numbers or texts; a missing or infinite one is refused."""
        parsed = self._parsed(scores, pa.float64(), "a score must be a number")
        values = parsed.to_numpy(zero_copy_only=False).astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            self.refuse(int(bad[0]), f"a score must be a finite number, not {scores[int(bad[0])].as_py()!r}; of id")
        return replace(self, scores=values)

    def filter(self, keep: NDArray[np.bool_]) -> "Lists":
        """Without the flat values where `keep` [N] is false."""
        if keep.all():
            return self
        kept = np.concatenate([[0], np.cumsum(keep)])
        scores = None if self.scores is None else self.scores[keep]
        return replace(self, ids=self.ids.filter(pa.array(keep)), offsets=kept[self.offsets], scores=scores)

    def last(self, max_length: int) -> "Lists":
        """With at most the last max_length values of each row."""
        lengths = np.diff(self.offsets)
        left = np.repeat(self.offsets[1:], lengths) - np.arange(len(self.ids))
        return self.filter(left <= max_length)

    def _parsed(self, values: pa.Array, kind: pa.DataType, reason: str) -> pa.Array:
        """Cast; where that fails, find the first value at fault by halving, and refuse it."""
        if not _fails(values, kind):
            return values.cast(kind)
        low, high = 0, len(values)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _fails(values[low:middle], kind) else (middle, high)
        return self.refuse(low, f"{reason}, not {values[low].as_py()!r}; of id")


def as_table(frame: Frame, columns: list[str]) -> pa.Table:
    """The named columns that a pandas frame has, as Arrow; an Arrow table as it is.

    Raises ValueError naming a column whose values are of several types.
    """
    if isinstance(frame, pa.Table):
        return frame
    present = [name for name in dict.fromkeys(columns) if name in frame.columns]
    return pa.table({name: as_array(frame[name], f"column {name!r}") for name in present})


def _fails(values: pa.Array, kind: pa.DataType) -> bool:
    try:
        values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return True
    return False


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

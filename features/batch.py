"""What every model receives: `Jagged` (a ragged column) and `Batch` (named columns of one step).

A batch names its features; nothing in here knows tables, vocabularies or files.

Shapes: B rows of a batch, N flat values of a ragged column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Jagged:
    """A ragged column: row i holds values[offsets[i]:offsets[i + 1]].

    Shapes: values [N] or [N, D]; offsets [B + 1] int64; weights [N] or None.
    Raises ValueError naming the offset when offsets do not start at 0, fall, or do not end at N.
    Example: values (7, 8, 9), offsets (0, 2, 2, 3) are the rows (7, 8), () and (9).
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if torch.compiler.is_exporting():  # sizes are symbols, which a check would make constants
            return
        check_offsets(self.offsets, len(self.values))
        if self.weights is not None and self.weights.shape != self.values.shape[:1]:
            raise ValueError(f"weights have shape {tuple(self.weights.shape)}, one per value is {len(self.values)}")

    @staticmethod
    def from_lists(rows: Sequence[Sequence[int]]) -> "Jagged":
        """A ragged column of int64 ids from Python lists."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        flat = [value for row in rows for value in row]
        return Jagged(values=torch.tensor(flat, dtype=torch.int64), offsets=offsets_of(lengths))

    @property
    def num_rows(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    @property
    def lengths(self) -> Tensor:
        """Values per row, [B] int64."""
        return self.offsets.diff()

    @property
    def row_of_value(self) -> Tensor:
        """The row that each value belongs to, [N] int64."""
        return owners_of(self.offsets, self.values.shape[0])

    def with_values(self, values: Tensor) -> "Jagged":
        """The same rows over other values, for instance the vectors [N, D] of these ids."""
        return replace(self, values=values)

    def select(self, rows: Tensor) -> "Jagged":
        """The named rows, in the order given (repeats allowed)."""
        lengths = self.lengths[rows]
        offsets = offsets_of(lengths)
        starts = (self.offsets[:-1][rows] - offsets[:-1]).repeat_interleave(lengths)
        positions = starts + torch.arange(int(offsets[-1]), device=starts.device)
        weights = None if self.weights is None else self.weights[positions]
        return Jagged(values=self.values[positions], offsets=offsets, weights=weights)

    def to(self, device: torch.device | str) -> "Jagged":
        """A copy on the device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Jagged(values=self.values.to(device), offsets=self.offsets.to(device), weights=weights)


def owners_of(offsets: Tensor, num_values: int) -> Tensor:
    """Offsets [B + 1] of N values -> the row that each value belongs to, [N] int64."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff(), output_size=num_values)


def offsets_of(lengths: Tensor) -> Tensor:
    """Lengths [B] -> offsets [B + 1]."""
    zero = torch.zeros(1, dtype=torch.int64, device=lengths.device)
    return torch.cat([zero, lengths.to(torch.int64).cumsum(0)])


def check_offsets(offsets: Tensor, num_values: int, name: str = "jagged column") -> None:
    """Raise ValueError, naming column, row and offset, unless offsets describe `num_values` values.

    On an accelerator only type and shape are checked: reading the values back would stall every step.
    """
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) == 0:
        raise ValueError(f"{name}: offsets must be int64 [B + 1], got {offsets.dtype} {tuple(offsets.shape)}")
    if offsets.device.type != "cpu":
        return
    if int(offsets[0]) != 0:
        raise ValueError(f"{name}: offsets must start at 0, offset of row 0 is {int(offsets[0])}")
    falls = (offsets.diff() < 0).nonzero()
    if len(falls):
        row = int(falls[0])
        start, end = int(offsets[row]), int(offsets[row + 1])
        raise ValueError(f"{name}: row {row} ends at offset {end}, before its start {start}")
    if int(offsets[-1]) != num_values:
        raise ValueError(f"{name}: offsets end at {int(offsets[-1])} but there are {num_values} values")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one step, by feature name.

    features: `id` -> int64 [B]; `dense` -> float32 [B] or [B, F]; `id_list`, `id_score_list`, sequences -> Jagged.
    labels: name -> float32 [B]. weights: float32 [B] or None (all one). group: int64 [B] or None, the rows that
    GAUC and ranking metrics treat together. cluster: int64 [B] or None, whose row it is, known to the vocabulary or
    not: the rows that are drawn together when an interval is estimated. row_ids: int64 [B] or None, the rows' numbers
    in the whole epoch's order (global, the same for any number of ranks), by which dropout and negatives are keyed.
    Raises ValueError naming the column whose row count differs.
    """

    features: Mapping[str, Tensor | Jagged]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    group: Tensor | None = None
    cluster: Tensor | None = None
    row_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if torch.compiler.is_exporting():
            return
        counts = {name: num_rows(column) for name, column in self.columns().items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"columns of one batch differ in rows: {counts}")

    def columns(self) -> dict[str, Tensor | Jagged]:
        """Every column under a readable name, features first."""
        named: dict[str, Tensor | Jagged] = dict(self.features)
        named |= {f"label {name}": label for name, label in self.labels.items()}
        return named | {name: column for name, column in self._optional().items() if column is not None}

    @property
    def num_rows(self) -> int:
        """B; a symbol while a program is exported, where `len` would make it a constant."""
        return next((num_rows(column) for column in self.columns().values()), 0)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, feature: str) -> Tensor | Jagged:
        if feature not in self.features:
            raise ValueError(f"the batch has no feature {feature!r}; it has {sorted(self.features)}")
        return self.features[feature]

    def ids(self, feature: str) -> Tensor:
        """The column of an `id` or `dense` feature; a ragged one is refused."""
        column = self[feature]
        if isinstance(column, Jagged):
            raise ValueError(f"feature {feature!r} is a list per row, not one value per row")
        return column

    def jagged(self, feature: str) -> Jagged:
        """The column of a list or sequence feature; one value per row is refused."""
        column = self[feature]
        if not isinstance(column, Jagged):
            raise ValueError(f"feature {feature!r} is one value per row, not a list")
        return column

    def select(self, rows: Tensor) -> "Batch":
        """The named rows of every column."""
        return self._map(lambda column: column.select(rows) if isinstance(column, Jagged) else column[rows])

    def to(self, device: torch.device | str) -> "Batch":
        """Every column on the device."""
        return self._map(lambda column: column.to(device))

    def row_weights(self) -> Tensor:
        """Sample weights [B], ones where none were given."""
        if self.weights is not None:
            return self.weights
        first = next(iter(self.columns().values()), torch.zeros(0))
        device = first.values.device if isinstance(first, Jagged) else first.device
        return torch.ones(len(self), device=device)

    def _map(self, move: Callable[[Any], Any]) -> "Batch":
        return Batch(
            features={name: move(column) for name, column in self.features.items()},
            labels={name: move(label) for name, label in self.labels.items()},
            **{name: None if column is None else move(column) for name, column in self._optional().items()},
        )

    def _optional(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in ("weights", "group", "cluster", "row_ids")}


def num_rows(column: Tensor | Jagged) -> int:
    """B of either kind of column."""
    return column.num_rows if isinstance(column, Jagged) else column.shape[0]


def concat(batches: Sequence[Batch]) -> Batch:
    """Rows of several batches with the same columns, one below the other; at least one batch is needed."""
    if not batches:
        raise ValueError("no batches to concatenate: at least one is needed")
    names = [sorted(batch.columns()) for batch in batches]
    if any(name != names[0] for name in names):
        raise ValueError(f"batches to concatenate differ in columns: {names}")
    first = batches[0]
    return Batch(
        features={name: _concat([batch[name] for batch in batches]) for name in first.features},
        labels={name: torch.cat([batch.labels[name] for batch in batches]) for name in first.labels},
        weights=_concat_optional([batch.weights for batch in batches]),
        group=_concat_optional([batch.group for batch in batches]),
        cluster=_concat_optional([batch.cluster for batch in batches]),
        row_ids=_concat_optional([batch.row_ids for batch in batches]),
    )


def _concat_optional(columns: Sequence[Tensor | None]) -> Tensor | None:
    present = [column for column in columns if column is not None]
    return torch.cat(present) if present else None


def _concat(columns: Sequence[Tensor | Jagged]) -> Tensor | Jagged:
    jagged = [column for column in columns if isinstance(column, Jagged)]
    if 0 < len(jagged) < len(columns):
        raise ValueError("batches to concatenate differ: one column is a list per row in some, one value in others")
    if len({column.weights is None for column in jagged}) > 1:
        raise ValueError("batches to concatenate differ: a list column has weights in some and none in others")
    if not jagged:
        return torch.cat([column for column in columns if isinstance(column, Tensor)])
    weights = _concat_optional([column.weights for column in jagged])
    lengths = torch.cat([column.lengths for column in jagged])
    return Jagged(values=torch.cat([column.values for column in jagged]), offsets=offsets_of(lengths), weights=weights)

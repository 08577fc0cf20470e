"""`Loader`: prepared examples (Parquet) -> the batches of one rank, in an order that is a function of (seed, epoch).

The order of an epoch: the row groups of the files are permuted, gathered into blocks of at most `Limits.window` rows
(a larger row group is a block of its own), and the rows of each block are permuted. Global batch b is rows
b * batch_size and on of that order, whatever the number of ranks; rank r of W takes rows r::W of it, and a rank without
rows takes the batch's first row with weight 0. Nothing is decoded before the block in which `start` lies.

Every rank decodes every block, so that the order is the same for any number of ranks; memory is bounded by two blocks
(one in use, the next being decoded). A dataset of at most `Limits.resident` rows is decoded once and kept; the order is
the same.

Columns of an example file: `user`, `item` (positions in the entity tables; -1 unknown), `position` (in the user's
history), `time`, `label:<name>`, `weight`, `group`, `probability` (given as a label of that name), and event features
by their names: int64 rows, float32 numbers, lists of int64; `<name>:weights` holds the weights of an id_score_list.

Shapes: B rows of a batch.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Batch, Jagged, concat
from features.entities import EntityTable
from features.histories import Histories
from features.spec import FeatureSchema

Array = NDArray[Any]
T = TypeVar("T")
_ROLES = ("user", "item", "position", "time", "weight", "group", "probability")
_ROW_GROUPS, _ROWS = 0, 1  # what a permutation is of; keeps the generators of one epoch apart


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Rows that are shuffled together and held while streaming; rows up to which all are kept; batches made ahead."""

    window: int = 1_000_000
    resident: int = 2_000_000
    prefetch: int = 4


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Where examples come from: files in order, and what their rows are joined with.

    ends: [U] where each user's visible history ends, for histories that are sets (`Histories.ends`); without it all of
    it is visible. An ordered history is cut at the example's position already.
    """

    files: Sequence[Path]
    schema: FeatureSchema
    users: EntityTable | None = None
    items: EntityTable | None = None
    histories: Histories | None = None
    ends: Array | None = None
    limits: Limits = Limits()


@dataclass(frozen=True)
class _RowGroup:
    file: Path
    index: int
    start: int  # its first row among all rows, in file order
    num_rows: int


@dataclass(frozen=True)
class _Block:
    number: int
    groups: tuple[_RowGroup, ...]
    start: int  # its first row in the epoch's order
    stop: int


class Loader:
    """One rank's batches of an epoch.

    batch_size is global: the rows of one step over all ranks. Raises ValueError naming the argument that is out of
    range, the file that cannot be read, or the column that holds nulls.
    """

    def __init__(
        self,
        source: RowSource,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, accepted is at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}, accepted is at least 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, accepted is 0..{world_size - 1} of {world_size}")
        self.source, self.batch_size = source, batch_size
        self._seed, self._shuffle, self._rank, self._world_size = seed, shuffle, rank, world_size
        self._groups = _row_groups(source.files)
        self.num_rows = sum(group.num_rows for group in self._groups)

    @property
    def num_batches(self) -> int:
        """Global batches of an epoch; the last may be short."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The rank's rows of the global batches `start` and on, each with the number of the next batch.

        They are made ahead by a thread, whose errors are raised here; closing the iterator stops it.
        """
        if epoch < 0 or not 0 <= start <= self.num_batches:
            raise ValueError(f"epoch {epoch}, start {start}: accepted are epoch >= 0, start 0..{self.num_batches}")
        return _made_ahead(self._batches(epoch, start), self.source.limits.prefetch)

    def _batches(self, epoch: int, start: int) -> Generator[tuple[Batch, int], None, None]:
        parts: list[Batch] = []
        for block, columns, order in _made_ahead(self._decoded(epoch, start * self.batch_size), 1):
            first, past = block.start // self.batch_size, -(-block.stop // self.batch_size)
            for index in range(max(start, first), past):
                mine = self._own_rows(index)
                inside = mine[(mine >= block.start) & (mine < block.stop)]
                if len(inside):
                    parts.append(columns.select(order[torch.from_numpy(inside - block.start)]))
                if block.stop >= min((index + 1) * self.batch_size, self.num_rows):
                    yield self._assembled(parts[0] if len(parts) == 1 else concat(parts), index, mine), index + 1
                    parts = []

    def _own_rows(self, index: int) -> Array:
        """The rank's rows of a global batch, as row numbers of the epoch; the batch's first where it has none."""
        first = index * self.batch_size
        past = min(first + self.batch_size, self.num_rows)
        return np.arange(first + self._rank, past, self._world_size) if self._has_rows(index) else np.array([first])

    def _has_rows(self, index: int) -> bool:
        return index * self.batch_size + self._rank < min((index + 1) * self.batch_size, self.num_rows)

    def _blocks(self, epoch: int) -> Iterator[_Block]:
        """The row groups of the epoch in blocks, with the rows of the epoch that each covers."""
        order = np.arange(len(self._groups))
        if self._shuffle:
            order = np.random.default_rng((self._seed, epoch, _ROW_GROUPS)).permutation(order)
        start = 0
        for number, numbers in enumerate(self._within_window(order)):
            groups = tuple(self._groups[group] for group in sorted(numbers))
            stop = start + sum(group.num_rows for group in groups)
            yield _Block(number, groups, start, stop)
            start = stop

    def _within_window(self, order: Array) -> Iterator[list[int]]:
        block: list[int] = []
        rows = 0
        for group in order.tolist():
            size = self._groups[group].num_rows
            if block and (rows + size > self.source.limits.window or not self._shuffle):
                yield block
                block, rows = [], 0
            block.append(group)
            rows += size
        if block:
            yield block

    def _decoded(self, epoch: int, first_row: int) -> Generator[tuple[_Block, Batch, Tensor], None, None]:
        """The blocks from `first_row` on: columns, and for each row of the block the row of the columns that it is."""
        for block in self._blocks(epoch):
            if block.stop <= first_row:
                continue
            order = np.arange(block.stop - block.start)
            if self._shuffle:
                order = np.random.default_rng((self._seed, epoch, _ROWS, block.number)).permutation(order)
            if self.num_rows > self.source.limits.resident:
                yield block, _decode(block.groups), torch.from_numpy(order)
            else:
                rows = [np.arange(group.start, group.start + group.num_rows) for group in block.groups]
                yield block, self._resident, torch.from_numpy(np.concatenate(rows)[order])

    @cached_property
    def _resident(self) -> Batch:
        return _decode(self._groups)

    def _assembled(self, columns: Batch, index: int, mine: Array) -> Batch:
        """The batch: event features, features of users and items by position, sequences by user and position."""
        source, raw = self.source, columns.features
        features = {name: column for name, column in raw.items() if _is_feature(name)}
        if source.users is not None:
            features |= source.users.gather(columns.ids("user")).features
        if source.items is not None:
            features |= source.items.gather(columns.ids("item")).features
        if source.histories is not None and source.items is not None:
            user, position, times = columns.ids("user"), columns.ids("position"), _optional(raw, "time")
            for group in source.schema.sequences:
                features |= source.histories.cut(group, user, position, source.items, source.ends, times)
        weights = _optional(raw, "weight")
        return Batch(
            features=features,
            labels=_labels(raw),
            weights=weights if self._has_rows(index) else torch.zeros(1),
            group=_optional(raw, "group"),
            cluster=_cluster(raw, torch.from_numpy(mine)),
            row_ids=torch.from_numpy(mine),
        )


def _is_feature(name: str) -> bool:
    return name not in _ROLES and not name.startswith("label:")


def _labels(raw: Mapping[str, Tensor | Jagged]) -> dict[str, Tensor]:
    named = {name.removeprefix("label:"): name for name in raw if name.startswith("label:") or name == "probability"}
    return {label: column for label, name in named.items() if isinstance(column := raw[name], Tensor)}


def _cluster(raw: Mapping[str, Tensor | Jagged], row_ids: Tensor) -> Tensor | None:
    """The position of each row's user, [B]; a row without one stands alone, under a negative number of its own."""
    users = _optional(raw, "user")
    return None if users is None else torch.where(users < 0, -1 - row_ids, users)


def _optional(raw: Mapping[str, Tensor | Jagged], name: str) -> Tensor | None:
    column = raw.get(name)
    return column if isinstance(column, Tensor) else None


def _made_ahead(made: Generator[T, None, None], ahead: int) -> Generator[T, None, None]:
    """The same things, up to `ahead` of them made by a thread in advance; closing it stops thread and maker."""
    with closing(made), ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as thread:
        waiting = deque(thread.submit(next, made, None) for _ in range(max(ahead, 1)))
        try:
            while (thing := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, made, None))
                yield thing
        finally:
            for future in waiting:
                future.cancel()


def _row_groups(files: Sequence[Path]) -> list[_RowGroup]:
    groups: list[_RowGroup] = []
    start = 0
    for file in files:
        with _naming(file):
            metadata = pq.read_metadata(file)
        for index in range(metadata.num_row_groups):
            num_rows = metadata.row_group(index).num_rows
            groups.append(_RowGroup(file, index, start, num_rows))
            start += num_rows
    return groups


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Say which file cannot be read."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def _decode(groups: Sequence[_RowGroup]) -> Batch:
    """The rows of row groups, which stand in file order, as columns."""
    tables = []
    for file in dict.fromkeys(group.file for group in groups):
        numbers = [group.index for group in groups if group.file == file]
        with _naming(file):
            tables.append(pq.ParquetFile(file).read_row_groups(numbers, use_threads=False))
    table = pa.concat_tables(tables)
    weighted = {name.removesuffix(":weights") for name in table.column_names if name.endswith(":weights")}
    names = [name for name in table.column_names if not name.endswith(":weights")]
    return Batch(features={name: _column(table, name, name in weighted) for name in names})


def _column(table: pa.Table, name: str, weighted: bool) -> Tensor | Jagged:
    column = table[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"examples: column {name!r} holds {column.null_count} nulls; prepared columns have none")
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _tensor(column)
    weights = _tensor(table[f"{name}:weights"].combine_chunks().flatten()) if weighted else None
    offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    return Jagged(values=_tensor(column.flatten()), offsets=torch.from_numpy(offsets - offsets[0]), weights=weights)


def _tensor(column: Any) -> Tensor:
    """Own memory: Arrow's is read-only, which torch does not accept silently."""
    return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False)))

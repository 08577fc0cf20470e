"""The weight of positive and of negative rows at each key, in rising order, for any number of rows in bounded memory.

Metrics that look at the order of the scores need no rows, only how much of each class stands at each score. A chunk of
rows is sorted and its equal keys are added up (`Block`). Several chunks are an external merge sort (`merged`): each
sorted block is written to one scratch file as a run, with every STRIDE-th of its keys kept in memory; these cut the
range of keys into stretches of which no one holds more than about `rows_at_once` entries over all runs; a stretch is
read from every run, added up, and given on. Ties across runs are added up exactly, whatever their number.

Memory: 24 bytes times `rows_at_once` times a small factor, and 8 / STRIDE bytes a row. Disk: 24 bytes for each distinct
key of a run, in a file without a name, which is gone when the merge ends, also by a kill.
Not here: what a key means (`score_keys`, `group_keys` say it for scores), and metrics (`ctr.py`).

Shapes: N rows, T distinct keys, K runs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from torch import Tensor

ROWS_AT_ONCE = 1 << 20
STRIDE = 1 << 12
BYTES = 8  # of each number in a run
_LOW = 0xFFFFFFFF  # a score's part of a key
_MAGNITUDE = 0x7FFFFFFF


@dataclass(frozen=True)
class Block:
    """keys [T] int64, rising and distinct; the weight of positive and of negative rows at each, [T] float64."""

    keys: Tensor
    positives: Tensor
    negatives: Tensor

    @staticmethod
    def of(keys: Tensor, positives: Tensor, negatives: Tensor) -> "Block":
        """Rows [N] in any order."""
        keys, order = keys.sort()
        found, place = keys.unique_consecutive(return_inverse=True)
        sums = [place.bincount(weights=weight[order], minlength=len(found)) for weight in (positives, negatives)]
        return Block(found, *sums)

    def __len__(self) -> int:
        return len(self.keys)


def merged(blocks: Iterable[Block], rows_at_once: int = ROWS_AT_ONCE, scratch: Path | None = None) -> Iterator[Block]:
    """Blocks of any keys -> blocks that follow each other: all keys of one stand below those of the next.

    scratch: the folder of the scratch file (default: the system's for temporary files).
    """
    with TemporaryFile(dir=scratch) as file:
        runs = [_Run.written(file, block) for block in blocks if len(block)]
        file.flush()
        starts = [0] * len(runs)
        for bound in [*_bounds(runs, rows_at_once), None]:
            ends = [run.count if bound is None else run.position(bound) for run in runs]
            stretch = [run.part(*place) for run, *place in zip(runs, starts, ends, strict=True)]
            if any(map(len, stretch)):
                columns = zip(*((part.keys, part.positives, part.negatives) for part in stretch), strict=True)
                yield Block.of(*(torch.cat(column) for column in columns))
            starts = ends


def _bounds(runs: "list[_Run]", rows_at_once: int) -> list[int]:
    """Keys that cut the runs into stretches: with m samples in one, it holds at most (m + K) * STRIDE entries."""
    if not runs:
        return []
    samples = torch.cat([run.samples for run in runs]).sort().values
    step = max(1, rows_at_once // STRIDE - len(runs))
    bounds: list[int] = samples[step::step].unique_consecutive().tolist()
    return bounds


@dataclass(frozen=True)
class _Run:
    """A sorted block in a file, from byte `start`: its keys, then both weights. samples: every STRIDE-th key."""

    file: IO[bytes]
    start: int
    count: int
    samples: Tensor

    @staticmethod
    def written(file: IO[bytes], block: Block) -> "_Run":
        start = file.tell()
        for column in (block.keys, block.positives, block.negatives):
            file.write(column.numpy().data)
        return _Run(file, start, len(block), block.keys[::STRIDE].clone())

    def position(self, key: int) -> int:
        """How many entries stand below the key."""
        stride = int(torch.searchsorted(self.samples, key))
        low, high = max(0, stride - 1) * STRIDE, min(stride * STRIDE, self.count)
        return low + int(torch.searchsorted(self._read(0, low, high), key))

    def part(self, low: int, high: int) -> Block:
        """Entries low..high - 1."""
        return Block(*(self._read(column, low, high) for column in range(3)))

    def _read(self, column: int, low: int, high: int) -> Tensor:
        self.file.seek(self.start + BYTES * (column * self.count + low))
        kind = np.float64 if column else np.int64
        return torch.from_numpy(np.fromfile(self.file, dtype=kind, count=high - low))


# --- keys of scores ---


def score_keys(scores: Tensor) -> Tensor:
    """float32 scores [N] -> int64 in [0, 2^32) that rise as they do; equal where they are equal (-0 is 0)."""
    bits = (scores + 0.0).view(torch.int32).long()
    return (bits ^ ((bits >> 31) & _MAGNITUDE)) - torch.iinfo(torch.int32).min


def group_keys(scores: Tensor, group: Tensor) -> Tensor:
    """Keys that rise by group number (0..2^31 - 1), then by score."""
    return (group << 32) + score_keys(scores)


def scores_of(keys: Tensor) -> Tensor:
    """The float32 scores of keys."""
    ordered = (keys & _LOW) + torch.iinfo(torch.int32).min
    return (ordered ^ ((ordered >> 31) & _MAGNITUDE)).int().view(torch.float32)


def groups_of(keys: Tensor) -> Tensor:
    """The group numbers of keys, [N]."""
    return keys >> 32

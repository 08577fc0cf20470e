"""Columns that grow a batch at a time: in memory while they are short, in files that are mapped when they are long.

What is evaluated may have more rows than memory. The files have no names, so that nothing is left by a kill; the
mapped tensors keep them. Their pages belong to the system's cache, which gives them back when memory is short.
Not here: what the columns mean (`evaluate.py`).

Shapes: N rows in all.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from torch import Tensor

ROWS_IN_MEMORY = 1 << 20


class GrowingColumns:
    """Named columns [N], appended to by `add`, then read once by `finished`.

    rows_in_memory: how many rows are kept before they go to files. scratch: the folder of these (default: the system's
    for temporary files). Raises OSError as the system does when the disk is full.
    """

    def __init__(self, rows_in_memory: int = ROWS_IN_MEMORY, scratch: Path | None = None) -> None:
        self._limit, self._scratch = rows_in_memory, scratch
        self._parts: dict[str, list[Tensor]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._kinds: dict[str, Tensor] = {}
        self._pending = 0
        self.num_rows = 0

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Rows [n] of every column; each time the same columns."""
        for name, column in rows.items():
            self._parts.setdefault(name, []).append(column)
            self._kinds[name] = column[:0]
        count = len(next(iter(rows.values()), ()))
        self.num_rows += count
        self._pending += count
        if self._pending > self._limit:
            self._spill()

    def _spill(self) -> None:
        for name, parts in self._parts.items():
            if name not in self._files:
                self._files[name] = TemporaryFile(dir=self._scratch)  # noqa: SIM115  # the mapped tensors close it
            for part in parts:
                self._files[name].write(part.contiguous().numpy().data)
        self._parts, self._pending = {}, 0

    def finished(self) -> dict[str, Tensor]:
        """The columns [N], tensors of memory or of mapped files."""
        if not self._files:
            return {name: torch.cat(parts) for name, parts in self._parts.items()}
        self._spill()
        return {name: self._mapped(name, file) for name, file in self._files.items()}

    def _mapped(self, name: str, file: IO[bytes]) -> Tensor:
        file.flush()
        kind = self._kinds[name].numpy().dtype
        return torch.from_numpy(np.memmap(file, dtype=kind, mode="r+", shape=(self.num_rows,)))

import gc
import os
from pathlib import Path

import torch

from recsys.evaluation.row_files import GrowingColumns


def grown(rows_in_memory: int, scratch: Path | None = None) -> dict[str, torch.Tensor]:
    columns = GrowingColumns(rows_in_memory, scratch)
    for start in (0, 5, 5, 12):
        rows = torch.arange(start, start + 7 if start else 5)
        columns.add({"id": rows * 2**40, "score": rows / 3, "chosen": rows > 3})
    assert columns.num_rows == 26
    return columns.finished()


def test_columns_in_files_are_those_in_memory(tmp_path: Path) -> None:
    in_memory = grown(1000)
    for limit in (0, 6, 20):
        in_files = grown(limit, tmp_path)
        assert in_files.keys() == in_memory.keys()
        for name, column in in_files.items():
            assert column.dtype == in_memory[name].dtype
            assert torch.equal(column, in_memory[name])
    assert list(tmp_path.iterdir()) == []  # they have no names


def test_files_are_closed_with_the_columns(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    columns = grown(3, tmp_path)
    del columns
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_rows_are_no_columns() -> None:
    assert GrowingColumns().finished() == {}
    empty = GrowingColumns()
    empty.add({"id": torch.zeros(0)})
    assert empty.finished()["id"].shape == (0,)

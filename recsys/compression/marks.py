"""`Marks`: which cells of a grid [n, g] are marked, and the how-manieth each is, in about a byte for every marked cell.

Kept values lie one after the other, in the order of their cells; this says where a row's values lie among them. Cells
stand in blocks of max(1, 256 // g) whole rows, and of each block its first place is kept, so that within a block a
byte names a cell. Two forms, the smaller is taken:

    list   the byte of every marked cell; a row is found by bisection within its block, in nine steps
    bits   a bit for every cell; a row is found by counting the bits before it in its block

Memory: 4 (blocks + 1), and a byte for each marked cell (list) or 256 / 8 = 32 for each block (bits); g = 16: 16 rows a
block, so .25 bytes a row and a byte a mark, or 2.25 bytes a row.

Shapes: n rows of g cells, N rows asked for, b blocks, m marked cells.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

Form = Literal["list", "bits"]
CELLS = 256


class Marks(nn.Module):
    """A set of cells. Made by `of` from a mask, or by `from_settings` to be loaded."""

    starts: Tensor
    cells: Tensor
    ones: Tensor

    def __init__(self, num_rows: int, width: int, count: int, form: Form) -> None:
        super().__init__()
        if width > CELLS or count >= 1 << 31:
            raise ValueError(f"marks are for at most {CELLS} columns and 2^31 - 1 marks, got {width} and {count}")
        self.num_rows, self.width, self.count, self.form = num_rows, width, count, form
        self.block = CELLS // width  # rows
        blocks = -(-num_rows // self.block)
        shape = (count,) if form == "list" else (blocks, _block_bytes(width))
        self.register_buffer("starts", torch.zeros(blocks + 1, dtype=torch.int32))  # [b + 1]
        self.register_buffer("cells", torch.zeros(shape, dtype=torch.uint8))  # [m] or [b, 32]
        ones = [byte.bit_count() for byte in range(256)]
        self.register_buffer("ones", torch.tensor(ones, dtype=torch.uint8), persistent=False)

    @classmethod
    def of(cls, mask: Tensor) -> Self:
        """Those of a mask [n, g], in the smaller form."""
        (num_rows, width), count = mask.shape, int(mask.sum())
        found = cls(num_rows, width, count, _form(num_rows, width, count)).to(mask.device)
        blocks = len(found.starts) - 1
        padded = mask.new_zeros(blocks * found.block, width)
        padded[:num_rows] = mask
        grid = padded.view(blocks, -1)  # [b, cells]
        found.starts[1:] = grid.sum(1).cumsum(0)
        found.cells.copy_(grid.nonzero()[:, 1] if found.form == "list" else _packed(grid))
        return found

    @staticmethod
    def num_bytes(num_rows: int, width: int, count: int) -> int:
        """Of so many marks in so large a grid."""
        blocks = -(-num_rows // (CELLS // width))
        return 4 * (blocks + 1) + min(count, blocks * _block_bytes(width))

    def find(self, rows: Tensor) -> Tensor:
        """Rows [N] -> for each cell 1 + the number of marked cells before it, 0 where it is not marked; [N, g]."""
        block, first = rows // self.block, rows % self.block * self.width  # [N], [N]
        return self._find_in_list(block, first) if self.form == "list" else self._find_in_bits(block, first)

    def _find_in_list(self, block: Tensor, first: Tensor) -> Tensor:
        width, end = self.width, self.starts[block + 1].long().unsqueeze(1)  # [N, 1]
        places = self._bisect(block, first).unsqueeze(1) + torch.arange(width, device=first.device)  # [N, g]
        columns = self._cell(places) - first.unsqueeze(1)
        inside = (places < end) & (columns < width)
        found = places.new_zeros(len(first), width + 1)
        return found.scatter_(1, torch.where(inside, columns, width), places + 1)[:, :width].contiguous()

    def _bisect(self, block: Tensor, first: Tensor) -> Tensor:
        """The place of the first marked cell of a block that is not before `first`; [N]."""
        low, high = self.starts[block].long(), self.starts[block + 1].long()
        for _ in range(CELLS.bit_length()):
            middle = (low + high) // 2
            before = (self._cell(middle) < first) & (low < high)
            low, high = torch.where(before, middle + 1, low), torch.where(before, high, middle)
        return low

    def _cell(self, places: Tensor) -> Tensor:
        if not self.count:
            return torch.full_like(places, CELLS)
        return self.cells[places.clamp(max=self.count - 1)].long()

    def _find_in_bits(self, block: Tensor, first: Tensor) -> Tensor:
        held = self.cells[block]  # [N, 32]
        bytes_before = torch.arange(held.shape[1], device=first.device)
        bits_before = (first.unsqueeze(1) - 8 * bytes_before).clamp(0, 8)  # of each byte
        below = held.long() & ((1 << bits_before) - 1)
        before = self.starts[block] + self.ones[below].sum(1)  # [N]
        columns = first.unsqueeze(1) + torch.arange(self.width, device=first.device)  # [N, g]
        marked = held.gather(1, columns >> 3).long() >> (columns & 7) & 1
        return marked * (before.unsqueeze(1) + marked.cumsum(1))

    def settings(self) -> dict[str, Any]:
        """The sizes; the marks themselves are buffers."""
        return {"num_rows": self.num_rows, "width": self.width, "count": self.count, "form": self.form}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Marks of these sizes, to be loaded."""
        return cls(**settings)


def _form(num_rows: int, width: int, count: int) -> Form:
    blocks = -(-num_rows // (CELLS // width))
    return "list" if count <= blocks * _block_bytes(width) else "bits"


def _block_bytes(width: int) -> int:
    return -(-(CELLS // width * width) // 8)


def _packed(grid: Tensor) -> Tensor:
    """Bits [b, cells] -> bytes [b, ceil(cells / 8)], the first cell the lowest bit."""
    padded = torch.nn.functional.pad(grid, (0, -grid.shape[1] % 8)).view(len(grid), -1, 8)
    return (padded << torch.arange(8, device=grid.device)).sum(2).to(torch.uint8)

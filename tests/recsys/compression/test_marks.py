"""Marks say the rank of every marked cell, and nothing of the others, in the bytes that they state."""

import pytest
import torch
from torch import Tensor

from recsys.compression.marks import Marks


def mask_of(rows: int, width: int, density: float, seed: int = 0) -> Tensor:
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < density


def ranks(mask: Tensor) -> Tensor:
    """One after the other."""
    found = torch.zeros(mask.shape, dtype=torch.int64)
    for rank, (row, column) in enumerate(mask.nonzero().tolist(), 1):
        found[row, column] = rank
    return found


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (300, 1), (37, 6), (64, 16), (5, 256), (600, 3)])
def test_marks_find_equals_a_naive_loop(rows: int, width: int, density: float) -> None:
    mask = mask_of(rows, width, density)
    asked = torch.randint(rows, (50,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(Marks.of(mask).find(asked), ranks(mask)[asked])


@pytest.mark.parametrize(("density", "form"), [(0.05, "list"), (0.5, "bits")])
def test_marks_take_the_smaller_form_and_the_bytes_they_state(density: float, form: str) -> None:
    mask = mask_of(2000, 16, density)
    found = Marks.of(mask)
    assert found.form == form
    assert sum(tensor.nbytes for tensor in found.state_dict().values()) == Marks.num_bytes(2000, 16, int(mask.sum()))


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_marks_come_back_from_settings_and_state(density: float) -> None:
    found = Marks.of(mask_of(100, 5, density))
    again = Marks.from_settings(found.settings())
    again.load_state_dict(found.state_dict(), assign=True)
    assert torch.equal(again.find(torch.arange(100)), found.find(torch.arange(100)))


def test_marks_of_no_rows_asked_are_empty() -> None:
    for density in (0.0, 0.1, 0.9):
        assert Marks.of(mask_of(10, 4, density)).find(torch.empty(0, dtype=torch.int64)).shape == (0, 4)


def test_marks_refuse_more_columns_than_a_byte_can_name() -> None:
    with pytest.raises(ValueError, match="at most 256 columns and 2\\^31 - 1 marks, got 257"):
        Marks(1, 257, 0, "list")

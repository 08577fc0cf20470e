"""Packed rows: what they cost, how far off they are, and that lookups read them as they stand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.embedding.precision import PRECISIONS, Precision, dequantised, pack, read_rows, row_bytes, unpack

WIDTHS = (1, 2, 3, 10, 16, 33)


def values(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", WIDTHS)
def test_packed_rows_take_the_stated_bytes(precision: Precision, width: int) -> None:
    assert pack(values(7, width), precision).nbytes == 7 * row_bytes(width, precision)


@pytest.mark.parametrize(("precision", "levels"), [("int8", 255), ("int4", 15)])
@pytest.mark.parametrize("width", WIDTHS)
def test_packed_values_are_off_by_half_a_step(precision: Precision, levels: int, width: int) -> None:
    exact = values(50, width)
    low, high = exact.aminmax(dim=1, keepdim=True)
    rounding = 2e-3 * exact.abs().amax(1, keepdim=True)  # of scale and offset, float16 in 4 bits
    assert (
        (unpack(pack(exact, precision), precision, width) - exact).abs() <= (high - low) / levels / 2 + rounding
    ).all()


def test_float16_is_torchs_own() -> None:
    exact = values(5, 3)
    assert torch.equal(unpack(pack(exact, "float16"), "float16", 3), exact.half().float())


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.integers(0, 9), max_size=12), precision=st.sampled_from(PRECISIONS), width=st.sampled_from(WIDTHS)
)
def test_lookup_of_packed_rows_equals_indexing(rows: list[int], precision: Precision, width: int) -> None:
    packed = pack(values(10, width), precision)
    asked = torch.tensor(rows, dtype=torch.int64).view(-1, 1)
    found = read_rows(packed, asked, precision, width)
    assert torch.equal(found, unpack(packed, precision, width)[asked.flatten()].view(-1, 1, width))


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e6])
def test_values_that_do_not_fit_are_refused(precision: Precision, wrong: float) -> None:
    exact = values(4, 4)
    exact[2, 1] = wrong
    if wrong == 1e6 and precision == "int8":
        assert torch.isfinite(unpack(pack(exact, precision), precision, 4)).all()
        return
    with pytest.raises(ValueError, match=f"cannot be packed to {precision}"):
        pack(exact, precision)


def test_gradients_pass_through_float_rows() -> None:
    weights = values(4, 3).requires_grad_()
    read_rows(weights, torch.tensor([1, 1]), "int4", 3).sum().backward()
    assert weights.grad is not None
    assert weights.grad.sum(1).tolist() == [0.0, 6.0, 0.0, 0.0]


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("width", WIDTHS)
def test_plain_torch_reads_the_format_as_the_kernel_does(precision: Precision, width: int) -> None:
    packed = pack(values(9, width), precision)
    torch.testing.assert_close(dequantised(packed, precision, width), unpack(packed, precision, width))

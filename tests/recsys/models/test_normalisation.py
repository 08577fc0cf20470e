"""The layers against torch's own and naive formulas; what two ranks do stands in test_normalisation_two_ranks.py."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from recsys.models.normalisation import BatchNorm, Dice, RowDropout


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_torchs_in_one_process(affine: bool) -> None:
    ours, theirs = BatchNorm(4, affine=affine).double(), nn.BatchNorm1d(4, affine=affine).double()
    for step in range(3):
        x = normal(9, 4, seed=step).requires_grad_()
        found, expected = ours(x), theirs(x)
        assert_close(found, expected)
        mine, reference = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (found, expected))
        assert_close(mine, reference)
    assert_close(ours.running_mean, theirs.running_mean)
    assert_close(ours.running_var, theirs.running_var)
    assert_close(ours.eval()(x), theirs.eval()(x))


def test_batch_norm_leaves_rows_of_weight_zero_out() -> None:
    x, weights = normal(9, 4), torch.tensor([1.0, 0, 1, 2, 1, 0, 1, 1, 1])
    some, without = BatchNorm(4).double(), BatchNorm(4).double()
    assert_close(some(x, weights)[weights > 0], without(x[weights > 0]))
    assert_close(some.running_var, without.running_var)


def test_batch_norm_of_one_row_is_its_bias_and_of_none_is_nothing() -> None:
    layer = BatchNorm(4)
    assert_close(layer(torch.ones(1, 4) * 7), torch.zeros(1, 4))
    assert bool(layer.running_var.isfinite().all())
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    assert layer(torch.zeros(0, 4)).shape == (0, 4)
    assert_close(layer(torch.full((2, 4), 5.0), torch.zeros(2)).isfinite().all(), torch.tensor(True))
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_dice_is_its_formula() -> None:
    layer, s = Dice(4).double(), normal(9, 4)
    layer.alpha.data = torch.tensor([0.0, 0.3, -0.2, 2.0], dtype=torch.float64)
    p = torch.sigmoid((s - s.mean(0)) / (s.var(0, correction=0) + 1e-8).sqrt())
    assert_close(layer(s), p * s + (1 - p) * layer.alpha * s)


def test_dice_gradients_are_right() -> None:
    layer = Dice(3).double()
    layer.alpha.data += 0.3
    assert torch.autograd.gradcheck(layer, normal(6, 3).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x: layer(x, torch.tensor([1.0, 0, 1, 1, 1, 0])), normal(6, 3).requires_grad_()
    )


def test_dice_with_alpha_one_is_the_identity() -> None:
    layer, s = Dice(4), normal(9, 4).float()
    nn.init.ones_(layer.alpha)
    assert_close(layer(s), s)


@pytest.mark.parametrize("layer", [BatchNorm(4), Dice(4)], ids=["BatchNorm", "Dice"])
def test_eval_does_not_depend_on_the_batch(layer: nn.Module) -> None:
    x = normal(9, 4).float()
    layer(x)
    layer.eval()
    alone = torch.cat([layer(row[None]) for row in x])
    assert_close(layer(x), alone)


def test_row_dropout_is_a_function_of_step_layer_and_row() -> None:
    layer, x, rows = RowDropout(0.4, "head.0"), torch.ones(50, 20), torch.arange(50)
    torch.manual_seed(3)
    whole = layer(x, rows)
    halves = torch.cat([layer(x[::2], rows[::2]), layer(x[1::2], rows[1::2])])
    assert torch.equal(halves, torch.cat([whole[::2], whole[1::2]]))
    assert not torch.equal(RowDropout(0.4, "head.1")(x, rows), whole)
    torch.manual_seed(4)
    assert not torch.equal(layer(x, rows), whole)


def test_row_dropout_keeps_the_mean_and_draws_at_its_rate() -> None:
    layer = RowDropout(0.25, "head")
    dropped = layer(torch.ones(1000, 40))
    assert_close(dropped.unique(), torch.tensor([0, 4 / 3]))
    assert abs(float((dropped == 0).float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 40000) ** 0.5
    assert torch.equal(layer.eval()(torch.ones(3, 40)), torch.ones(3, 40))
    with pytest.raises(ValueError, match=r"dropout 'head': the rate must be in \[0, 1\), got 1"):
        RowDropout(1, "head")

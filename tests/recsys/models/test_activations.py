import torch
from torch import nn
from torch.testing import assert_close

from recsys.models.activations import ACTIVATIONS, PReLU, activated
from recsys.models.normalisation import Dice


def test_prelu_is_torchs() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    ours, theirs = PReLU(4).double(), nn.PReLU(4).double()
    ours.weight.data = theirs.weight.data = torch.tensor([0.0, 0.25, -0.5, 2.0], dtype=torch.float64)
    assert_close(ours(x), theirs(x))
    mine, expected = (torch.autograd.grad(layer(x).sin().sum(), [x, layer.weight]) for layer in (ours, theirs))
    assert_close(mine, expected)


def test_every_activation_keeps_the_shape() -> None:
    x = torch.randn(5, 3)
    assert {activated(make(3), x, None).shape for make in ACTIVATIONS.values()} == {x.shape}


def test_weights_reach_dice() -> None:
    x, weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 1, 1, 0, 0])
    assert_close(activated(Dice(3), x, weights)[:3], Dice(3)(x[:3]))

"""The activations of hidden layers by name, and PReLU as fast as the others.

Shapes: N rows (or values of ragged rows), C channels.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.models.normalisation import Dice

Activation = Literal["relu", "silu", "sigmoid", "prelu", "dice"]


class PReLU(nn.PReLU):
    """max(0, x) + a min(0, x), a slope for each channel (He et al. 2015); [N, C] -> [N, C].

    torch's own layer, but for how it is computed: torch's backward on CPU takes two to three times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As x + (1 - a) max(0, -x)."""
        return torch.addcmul(x, (-x).relu(), 1 - self.weight)


ACTIVATIONS: dict[Activation, Callable[[int], nn.Module]] = {
    "relu": lambda num_channels: nn.ReLU(),
    "silu": lambda num_channels: nn.SiLU(),
    "sigmoid": lambda num_channels: nn.Sigmoid(),
    "prelu": PReLU,
    "dice": Dice,
}


def activated(activation: nn.Module, x: Tensor, weights: Tensor | None) -> Tensor:
    """The activation of x [N, C]; weights [N] or None: rows of weight 0 are left out of Dice's moments."""
    found: Tensor = activation(x, weights) if isinstance(activation, Dice) else activation(x)
    return found

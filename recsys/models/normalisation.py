"""`BatchNorm` and `Dice` over the global batch, whatever the number of ranks, and dropout keyed by the row.

torch's own layers depend on how rows lie: `nn.BatchNorm1d` takes the moments of one rank's rows (its synchronised form
needs a GPU) and counts the row of weight 0 with which a rank without rows takes part; `nn.Dropout` draws from a
generator of the rank. These three are the same function at 1 and N ranks.

Shapes: N rows (or values of ragged rows) of this rank, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from features.hashes import hash64, mix64
from recsys import distributed


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, per channel (Ioffe and Szegedy 2015); [N, C] -> [N, C].

    In training mean and (biased) var are those of all ranks' rows, and the gradient goes through them; rows of weight 0
    are normalised but not counted. In eval they are running moments, r += momentum (new - r) with the unbiased var, so
    that a score does not depend on the batch. One row alone is its own mean: y = bias.
    affine: whether there are `weight` (1 at first) and `bias` (0).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Of x [N, C], normalised [N, C]; weights [N], None = all rows count."""
        x = x.to(self.running_mean.dtype)  # autocast hands over bfloat16; moments are sums
        if self.training:
            counted = x.new_ones(len(x)) if weights is None else (weights > 0).to(x.dtype)
            with torch.autocast(x.device.type, enabled=False):
                z, mean, var, count = _Normalise.apply(x, counted, self.eps)  # type: ignore[no-untyped-call]
            self._note(mean, var, count)
        else:
            z = (x - self.running_mean) * (self.running_var + self.eps).rsqrt()
        return z if self.weight is None or self.bias is None else torch.addcmul(self.bias, z, self.weight)

    @torch.no_grad()
    def _note(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Nothing is noted of a batch without rows."""
        share = self.momentum * (count > 0)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * count / (count - 1).clamp(min=1), share)


class _Normalise(torch.autograd.Function):
    """z = (x - mean) / sqrt(var + eps), and the moments; backward by hand, as it reads far less memory than autograd's.

    With g the gradient at z, c which rows count and n = sum(c), all sums over the rows of all ranks:
    the gradient at x is (g - c (sum(g) + z sum(g z)) / n) / sqrt(var + eps).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of x [N, C]: z [N, C], mean [C], biased var [C], in two passes; count [], the rows that count."""
        sums = distributed.all_reduce_sum(torch.cat([counted @ x, counted.sum().unsqueeze(0)]))
        count = sums[-1]
        divisor = count.clamp(min=1)
        mean = sums[:-1] / divisor
        z = x - mean
        var = distributed.all_reduce_sum(counted @ z.square()) / divisor
        scale = (var + eps).rsqrt()
        z *= scale
        ctx.save_for_backward(z, scale, counted, divisor)
        ctx.mark_non_differentiable(mean, var, count)
        return z, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, scale, counted, divisor = ctx.saved_tensors
        g = grads[0]
        total, along = distributed.all_reduce_sum(torch.stack([g.sum(0), (g * z).sum(0)])).div(divisor)
        through_moments = torch.addcmul(total, z, along) * counted.unsqueeze(1)
        return (g - through_moments).mul_(scale), None, None


class Dice(nn.Module):
    """The data-adaptive activation of DIN (Zhou et al. 2018): PReLU whose kink is smooth and stands at the data's mean.

        p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps)),  y = p(s) s + (1 - p(s)) alpha s;  [N, C] -> [N, C]

    Moments as in `BatchNorm` without weight and bias. alpha, one per channel, is learned and starts at 0; where it is 1
    this is the identity. The authors' public code normalises nothing (moments 0 and 1, never updated); this does.
    """

    def __init__(self, num_channels: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.norm = BatchNorm(num_channels, eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(num_channels))

    def forward(self, s: Tensor, weights: Tensor | None = None) -> Tensor:
        """Of s [N, C], activated [N, C]; weights [N]: which rows count in the moments, None = all."""
        p = self.norm(s, weights).sigmoid()
        return s * torch.addcmul(self.alpha, p, 1 - self.alpha)


class RowDropout(nn.Module):
    """Dropout whose mask is a function of (step, layer, row, channel): the same at 1 and N ranks and after resuming.

    rate: the share of elements set to 0; the others are divided by 1 - rate. name: what tells this layer from others.
    The step is torch's initial seed, which the trainer sets anew before each; in eval this is the identity.
    Raises ValueError for a rate outside [0, 1).
    """

    def __init__(self, rate: float, name: str) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout {name!r}: the rate must be in [0, 1), got {rate}")
        self.rate = rate
        self.name = name

    def forward(self, x: Tensor, row_ids: Tensor | None = None) -> Tensor:
        """Of x [N, C], some elements 0; row_ids [N]: those of the `Batch`, None = the rows' places in it."""
        if not self.training or self.rate == 0:
            return x
        rows = torch.arange(len(x), device=x.device) if row_ids is None else row_ids
        elements = rows.unsqueeze(1) * x.shape[1] + torch.arange(x.shape[1], device=x.device)
        drawn = mix64(elements, salt=hash64(self.name, salt=f"dropout#{torch.initial_seed()}"))
        uniform = (drawn & ((1 << 24) - 1)).to(x.dtype) / (1 << 24)
        return x * ((uniform >= self.rate) / (1 - self.rate))

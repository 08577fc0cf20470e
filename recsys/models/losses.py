"""Losses of a positive against negatives, each as a pure function from scores to one loss per row.

Not here: where scores, negatives and masks come from (`retrieval_loss.py`), weighting and averaging (the trainer).

Shapes: B rows, n negatives per row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def bpr(positive: Tensor, negatives: Tensor, masked: Tensor) -> Tensor:
    """Bayesian personalised ranking: the mean of -log sigmoid(s+ - s-) over a row's negatives.

    positive [B], negatives [B, n]; masked [B, n] is True where an entry is no negative of the row. -> [B]
    A row without negatives has loss 0. Rendle et al. 2009, with one negative per row when n = 1.
    """
    losses = F.softplus(negatives - positive[:, None]).masked_fill(masked, 0.0)  # [B, n]
    return losses.sum(1) / (~masked).sum(1).clamp(min=1)


def sampled_softmax(positive: Tensor, negatives: Tensor, masked: Tensor) -> Tensor:
    """Cross-entropy of the positive among itself and a row's negatives: -log(e^s+ / (e^s+ + sum of e^s-)).

    positive [B], negatives [B, n]; masked [B, n] is True where an entry is no negative of the row. -> [B]
    A row without negatives has loss 0. Where items differ in q, the expected count of an item among the negatives,
    subtract log q from both scores beforehand (Bengio and Senecal 2008; in-batch, Yi et al. 2019).
    """
    log_sum: Tensor = _MaskedLogSumExp.apply(negatives, masked)  # type: ignore[no-untyped-call]
    return F.softplus(log_sum - positive)


class _MaskedLogSumExp(torch.autograd.Function):
    """log of the sum of e^x over the entries of a row that are not masked, [B, n] -> [B]; a row of none gives -1e38.

    torch's logsumexp does the same in 11 passes over [B, n], two of them exp; this takes 7 with one exp, because the
    softmax of the forward pass is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, masked: Tensor) -> Tensor:
        weights = x.masked_fill(masked, -torch.inf)
        highest = weights.amax(1, keepdim=True).clamp(min=-1e38)
        sums = weights.sub_(highest).exp_().sum(1, keepdim=True)
        ctx.save_for_backward(weights, sums)
        return (highest + sums.clamp(min=1e-38).log())[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weights, sums = ctx.saved_tensors
        return weights * (gradients[0][:, None] / sums.clamp(min=1e-38)), None

"""Losses of a positive against negatives, each as a pure function from scores to one loss per row.

Not here: where scores, negatives and masks come from (`retrieval_loss.py`), weighting and averaging (the trainer).

Shapes: B rows, n negatives per row.
"""

import torch
from torch import Tensor, nn


def bpr(positive: Tensor, negatives: Tensor, masked: Tensor) -> Tensor:
    """Bayesian personalised ranking: the mean of -log sigmoid(s+ - s-) over a row's negatives.

    positive [B], negatives [B, n]; masked [B, n] is True where an entry is no negative of the row. -> [B]
    A row without negatives has loss 0. Rendle et al. 2009, with one negative per row when n = 1.
    """
    losses = nn.functional.softplus(negatives - positive[:, None]).masked_fill(masked, 0.0)  # [B, n]
    return losses.sum(1) / (~masked).sum(1).clamp(min=1)


def sampled_softmax(positive: Tensor, negatives: Tensor, masked: Tensor) -> Tensor:
    """Cross-entropy of the positive among itself and a row's negatives: -log(e^s+ / (e^s+ + sum of e^s-)).

    positive [B], negatives [B, n]; masked [B, n] is True where an entry is no negative of the row. -> [B]
    A row without negatives has loss 0. Subtract log q (the log of an item's expected count among the negatives) from
    both scores beforehand where items differ in it: Bengio and Senecal 2008; in-batch, Yi et al. 2019.
    """
    lowest = torch.finfo(negatives.dtype).min  # finite: a row whose negatives are all masked keeps a gradient of 0
    return nn.functional.softplus(negatives.masked_fill(masked, lowest).logsumexp(1) - positive)

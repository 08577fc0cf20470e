"""A list of vectors per row -> one vector per row.

Shapes: B rows, N values of all rows, D width.
"""

from typing import Literal

import torch
from torch import Tensor

from features.batch import Jagged


def pool(vectors: Jagged, pooling: Literal["sum", "mean"]) -> Tensor:
    """The sum, or the mean, of each row's vectors [N, D], times their weights if there are any -> [B, D].

    The mean divides by the number of values, or by the sum of the weights; where that is 0, as for a row without
    values, the result is 0. Multiplexed features come with their chunks side by side: each chunk is pooled by itself.
    """
    rows = vectors.row_of_value
    values = vectors.values if vectors.weights is None else vectors.values * vectors.weights.unsqueeze(1)
    total = values.new_zeros(vectors.num_rows, values.shape[1]).index_add(0, rows, values)  # [B, D]
    if pooling == "sum":
        return total
    share = _inverse_or_zero(_divisor(vectors, rows, total))
    return total * share.unsqueeze(1)


def _divisor(vectors: Jagged, rows: Tensor, like: Tensor) -> Tensor:
    if vectors.weights is None:
        return vectors.lengths.to(like.dtype)
    return like.new_zeros(vectors.num_rows).index_add(0, rows, vectors.weights.to(like.dtype))


def _inverse_or_zero(divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, torch.zeros_like(divisor), divisor.reciprocal())

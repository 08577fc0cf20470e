"""Operations on ragged rows: the values of all rows one below the other, and offsets that say whose they are.

No row is padded, so a step costs what its histories hold, not what the longest of them would. Everything is plain torch
(`index_select`, `index_add`: each the gradient of the other), the same code on CPU and GPU.

Shapes: B rows, N values of all rows, D width, K results a row. offsets [B + 1] int64: row i owns the values
offsets[i] .. offsets[i + 1] - 1. owners [N] int64: the row of each value.
"""

import torch
from torch import Tensor

from features.batch import owners_of

__all__ = [
    "chosen", "last_k", "owners_of", "segment_softmax", "segment_sum", "spread", "top_k", "weighted_sum",
]  # fmt: skip


def spread(rows: Tensor, owners: Tensor) -> Tensor:
    """One vector a row [B, D] -> a copy of it for each value of the row, [N, D]."""
    return rows.index_select(0, owners)


def segment_sum(values: Tensor, owners: Tensor, num_rows: int) -> Tensor:
    """The sum of each row's values [N, ...] -> [B, ...]; 0 for a row without values."""
    return values.new_zeros(num_rows, *values.shape[1:]).index_add(0, owners, values)


def weighted_sum(weights: Tensor, values: Tensor, owners: Tensor, num_rows: int) -> Tensor:
    """sum_j w_j v_j over each row's values, of weights [N] and values [N, D] -> [B, D]; 0 for a row without values."""
    return segment_sum(weights.unsqueeze(1) * values, owners, num_rows)


def segment_softmax(scores: Tensor, owners: Tensor, num_rows: int) -> Tensor:
    """exp(s_j) / sum over the row's values of exp(s), of scores [N] -> [N]; any finite scores, rows may be empty.

    Scores of less than float32 are widened to it: a sum of bfloat16 ones stops at 256.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    highest = scores.new_full((num_rows,), -torch.inf).scatter_reduce(0, owners, scores.detach(), "amax")
    raised = (scores - highest.index_select(0, owners)).exp()  # the highest is a constant that cancels
    return raised / segment_sum(raised, owners, num_rows).index_select(0, owners)


def chosen(mask: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The values where mask [N] is true -> their indices, rising, and the offsets [B + 1] of what each row keeps."""
    before = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.to(torch.int64).cumsum(0)])
    return mask.nonzero().squeeze(1), before[offsets]


def last_k(mask: Tensor, offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `chosen`, of each row the last k at most."""
    _check_k(k)
    owners = owners_of(offsets, mask.shape[0])
    return chosen(mask & (_to_end(mask, offsets, owners) <= k), offsets)


def top_k(scores: Tensor, offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores [N] of each row, all where there are fewer -> their indices, rising, and offsets [B + 1].

    Values keep their order; of equal scores the later ones are taken, so the result does not depend on other rows. Only
    the scores are laid out as a matrix, [B, longest row]. Scores must not be NaN. There is no gradient.
    """
    _check_k(k)
    scores, owners = scores.detach(), owners_of(offsets, scores.shape[0])
    exporting = torch.compiler.is_exporting()  # the matrix has a width that a program cannot know
    return chosen((_sorted_mask if exporting else _laid_out_mask)(scores, offsets, owners, k), offsets)


def _laid_out_mask(scores: Tensor, offsets: Tensor, owners: Tensor, k: int) -> Tensor:
    """Which are among the top k, [N], by the k-th highest score of each row."""
    scores = scores.clamp(min=torch.finfo(scores.dtype).min)  # -inf is padding alone
    lengths = offsets.diff()
    longest = max(int(lengths.max()) if len(lengths) else 0, k)
    padded = scores.new_full((len(lengths), longest), -torch.inf)
    padded[owners, torch.arange(len(scores), device=scores.device) - offsets[owners]] = scores
    lowest = padded.topk(k, dim=1).values[:, -1]  # [B]
    floor = lowest[owners]
    above, equal = scores > floor, scores == floor
    room = k - segment_sum(above.to(torch.int64), owners, len(lengths))  # [B]
    return above | (equal & (_to_end(equal, offsets, owners) <= room[owners]))


def _sorted_mask(scores: Tensor, offsets: Tensor, owners: Tensor, k: int) -> Tensor:
    """The same by two stable sorts of all values, which is slower."""
    latest_first = torch.arange(scores.shape[0], device=scores.device).flip(0)
    by_score = latest_first[scores[latest_first].argsort(descending=True, stable=True)]
    order = by_score[owners[by_score].argsort(stable=True)]
    place = torch.arange(scores.shape[0], device=scores.device) - offsets[owners]  # in the row
    return torch.zeros_like(owners, dtype=torch.bool).scatter(0, order, place < k)


def _to_end(mask: Tensor, offsets: Tensor, owners: Tensor) -> Tensor:
    """How many values are true from each one to the end of its row, itself included, [N]."""
    counted = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.to(torch.int64).cumsum(0)])  # [N + 1]
    return counted[offsets[1:]][owners] - counted[:-1]


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k, the values to keep of each row, must be at least 1, got {k}")

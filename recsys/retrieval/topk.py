"""The k best columns of each row, ties to the lowest column: the one order in which this platform ranks.

`torch.topk` leaves open which of several equal scores it returns and in what order, so two runs, or an offline list and
a served one, could differ. Here the answer is a function of the scores alone. Not an index: see `index.py`.

Shapes: Q rows, n columns, K results, T rows whose k-th score is tied.
"""

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [Q, n] -> (scores [Q, K], columns [Q, K] int64), best first, equal scores by rising column.

    K = min(k, n). Columns that score -inf stand last, also by rising column.
    Raises ValueError when k < 1, and when a row holds NaN, naming the row.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, scores.shape[1])
    if k == 0:
        return scores, torch.zeros_like(scores, dtype=torch.int64)
    best, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)  # [Q, K + 1]
    _refuse_nan(best[:, 0])
    columns = columns[:, :k]
    if best.shape[1] > k:
        tied = (best[:, k - 1] == best[:, k]).nonzero()[:, 0]  # [T]
        if len(tied):
            columns = columns.index_copy(0, tied, _lowest_columns(scores[tied], best[tied, k - 1], k))
    return _in_order(scores, columns)


def _refuse_nan(best: Tensor) -> None:
    """`topk` holds NaN for the largest score, so a look at the first result of each row suffices."""
    rows = best.isnan().nonzero()
    if len(rows):
        raise ValueError(f"scores of row {int(rows[0])} contain NaN; scores must be numbers or -inf")


def _lowest_columns(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """The set of the k best columns of rows [T, n] whose k-th score is `threshold` [T]; equal ones by lowest column."""
    above = scores > threshold[:, None]
    row, column = (scores == threshold[:, None]).nonzero().unbind(1)  # by row, then by column
    ties = row.bincount(minlength=len(scores))
    rank = torch.arange(len(row), device=row.device) - (ties.cumsum(0) - ties)[row]
    kept = rank < (k - above.sum(1))[row]
    above[row[kept], column[kept]] = True
    return above.nonzero()[:, 1].view(len(scores), k)


def _in_order(scores: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen columns [Q, K], best first, equal scores by rising column."""
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)

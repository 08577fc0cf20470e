"""Search over one history for many targets: the K events that score highest, for each candidate of a request.

    scores = keys @ queries.T + added          # [L, C], a slice of the candidates at a time
    best   = the K highest of each column      # exact, by blocks of events

The history is read once for all candidates, where a batch of rows would hold it C times. Of equal scores the later
event is taken, as `ragged.top_k` does, which is the search of a training step.

Shapes: C candidates, L events of the one history, D width of attention vectors, K events kept.
"""

import numpy as np
import torch
from torch import Tensor

SCORES_AT_ONCE = 1 << 20  # 4 MiB of float32, so that a slice is still in the cache when its best are picked
BLOCK = 16


@torch.no_grad()
def search_shared(queries: Tensor, keys: Tensor, k: int, added: Tensor | None = None) -> Tensor:
    """The k events of highest <q_c, k_j> + added_j for each query, [C, min(k, L)], rising.

    queries [C, D], keys [L, D], added [L] or None, float32. No gradient. Memory: 2^20 scores, or those of one
    candidate. Raises ValueError for k < 1. Scores must not be NaN. Products are summed in another order than row by
    row, so two scores that differ by rounding alone may change places.
    """
    if k < 1:
        raise ValueError(f"k, the events to keep of a history, must be at least 1, got {k}")
    num_events, added = len(keys), keys.new_zeros(1) if added is None else added
    if num_events <= k:
        return torch.arange(num_events, device=keys.device).expand(len(queries), num_events)
    slices = queries.split(max(1, SCORES_AT_ONCE // num_events))
    return torch.cat([_best(torch.addmm(added.unsqueeze(1), keys, part.t()), k) for part in slices]).sort(dim=1).values


def _best(scores: Tensor, k: int) -> Tensor:
    """The k highest of each column of scores [L, C], L >= k, as rows [C, k] in any order.

    They lie in the k blocks whose own highest scores are highest, which are found in the same way; so most of the L
    scores are compared with their neighbours alone.
    """
    num_events, num_candidates = scores.shape
    if num_events < 2 * BLOCK * k:
        return _picked(scores.t(), torch.arange(num_events, device=scores.device), k)
    whole = num_events - num_events % BLOCK
    blocks = _best(scores[:whole].view(-1, BLOCK, num_candidates).amax(1), k)  # [C, k]
    inside = torch.arange(BLOCK, device=scores.device)
    rest = torch.arange(whole, num_events, device=scores.device).expand(num_candidates, -1)
    events = torch.cat([(blocks.unsqueeze(2) * BLOCK + inside).flatten(1), rest], dim=1)  # [C, 16 k + rest]
    return _picked(scores.t().gather(1, events), events, k)


def _picked(scores: Tensor, events: Tensor, k: int) -> Tensor:
    """Of events [n] or [C, n] with scores [C, n] the k highest of each row, [C, k]; of equal ones the later.

    Score and event make one integer: the bits of a float, those of a negative one turned round, rise as floats do.
    """
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: -0.0 and 0.0 are equal
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (rising.to(torch.int64) << 32) | events
    if keys.device.type == "cpu":  # numpy selects integers by vector instructions: a quarter of torch's time
        found = torch.from_numpy(np.partition(keys.numpy(), -k, axis=1)[:, -k:])
    else:
        found = keys.topk(k, dim=1, sorted=False).values
    return found & 0xFFFFFFFF

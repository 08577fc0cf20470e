"""What several tables keep under one budget: the largest of all their scores, wherever these are.

One threshold for all tables, rather than the same share of each: a table whose every row matters keeps all of them.
Memory, for a moment: about 24 bytes a score.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recsys.embedding.budget import solve
from recsys.embedding.table import Reader


def counts_within(
    scores: Mapping[str, Tensor], size: Callable[[str, int], int], most: int, what: str
) -> dict[str, int]:  # fmt: skip
    """How many of each table's scores are among the K largest of all, for the largest K that `most` bytes pay for.

    scores: table -> [*] of any shape; ties go to the table of the lower name, then to the lower place.
    size(table, count): bytes of a table that keeps so many; it rises with the count. Where all cost no more, all stay.
    Raises ValueError that begins with `what` and says the bytes of keeping nothing, when even they are too many.
    """
    names = sorted(scores)
    numbers = [torch.full_like(scores[name], number, dtype=torch.int32) for number, name in enumerate(names)]
    whose = torch.cat([number.flatten() for number in numbers])
    ranked = whose[torch.cat([scores[name].flatten() for name in names]).argsort(descending=True, stable=True)]

    def counts(kept: int) -> dict[str, int]:
        return dict(zip(names, torch.bincount(ranked[:kept], minlength=len(names)).tolist(), strict=True))

    def total(kept: int) -> int:
        return sum(size(name, count) for name, count in counts(kept).items())

    found = counts(solve(total, most, range(len(ranked) + 1), what))
    whole = {name: scores[name].numel() for name in names}
    return {name: whole[name] if size(name, whole[name]) == size(name, n) else n for name, n in found.items()}


def largest(scores: Tensor, count: int) -> Tensor:
    """A mask of the shape of `scores`, true at its so many largest."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(count, sorted=False).indices] = True
    return mask.view(scores.shape)


def frequency(reader: Reader, shape: Sequence[int]) -> Tensor:
    """Scores before there is anything to judge by: how often each id was seen in train, for every entry of its row.

    shape: [n] or [n, D]. Where counts are not known, the earlier an id, the higher its score.
    """
    counts = torch.arange(shape[0], 0, -1) if reader.counts is None else reader.counts
    return counts.view(-1, *[1] * (len(shape) - 1)).expand(*shape)

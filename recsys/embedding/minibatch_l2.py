"""`MiniBatchL2`, the regularisation of DIN (Zhou et al. 2018, section 5.1): only rows that a step reads pay for it.

    w_j <- w_j - lr (gradient of the loss + strength / n_j * w_j)    for every id j in the batch of all ranks, once

n_j: how often id j occurs in the train split, so that a frequent id pays little a step and much in an epoch. What is
penalised is the vector of an id; in a dense table this is a row, in a compressed one what its rows combine to.

It is a term of the loss, whose gradient reaches the rows with that of the step, in one update by whatever optimizer the
tables have, fused or sharded: sum over the lookups of id j of strength / (2 n_j c_j) |v_j|^2, with c_j their number in
the batch of all ranks. Tables of ids that nobody counted (hashed ones, ages) are left alone.

Shapes: N ids that a table is asked for in a step, U distinct ones, D width.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from recsys import distributed


class MiniBatchL2:
    """The penalty of one collection. strength: lambda. counts: table -> n [num_embeddings], an unseen id counts 1.

    Raises ValueError when there is nothing to weigh.
    """

    def __init__(self, strength: float, counts: Mapping[str, Tensor]) -> None:
        if strength <= 0:
            raise ValueError(f"mba_l2 must be above 0, got {strength}")
        if not counts:
            raise ValueError("mba_l2 has no effect: no table's ids were counted when the data were prepared")
        self._weights = {table: strength / (2 * counted.clamp(min=1)) for table, counted in counts.items()}
        self._lookups: dict[str, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def of(strength: float, counts_of: Callable[[str], Tensor | None], tables: Mapping[str, str]) -> "MiniBatchL2":
        """With the counts of an encoder, by feature. tables: feature -> the key of the table that it reads."""
        features = {table: feature for feature, table in tables.items()}
        counts = {table: counts_of(feature) for table, feature in features.items()}
        return MiniBatchL2(strength, {table: counted for table, counted in counts.items() if counted is not None})

    def note(self, table: str, ids: Tensor, vectors: Tensor) -> None:
        """That a step looks up ids [N] of a table and finds vectors [N, D]; of the last step's lookup nothing stays."""
        if table in self._weights:
            self._lookups[table] = (ids, vectors)

    def penalty(self, scale: float) -> Tensor | None:
        """Share of this rank in the term for what was noted, times `scale`; None for nothing. Called by all ranks."""
        lookups, self._lookups = self._lookups, {}
        terms = [self._weight_of(table, ids) @ vectors.square().sum(1) for table, (ids, vectors) in lookups.items()]
        return torch.stack(terms).sum() * scale if terms else None

    def _weight_of(self, table: str, ids: Tensor) -> Tensor:
        """Strength / (2 n c) of each id [N]."""
        distinct, places, times = ids.unique(return_inverse=True, return_counts=True)  # [U], [N], [U]
        weights = self._weights[table] = self._weights[table].to(ids.device)
        return (weights[distinct] / _summed_over_ranks(distinct, times))[places]


def _summed_over_ranks(distinct: Tensor, times: Tensor) -> Tensor:
    """Distinct ids [U], rising, and how often this rank has each -> how often all ranks have it, [U]."""
    everywhere, places = distributed.gather_ragged(distinct).unique(return_inverse=True)
    total = torch.zeros_like(everywhere).index_add(0, places, distributed.gather_ragged(times))
    return total[torch.searchsorted(everywhere, distinct)]

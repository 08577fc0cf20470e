"""Popularity: every user gets the items with the most interactions. The baseline below which nothing is worth serving.

Shapes: B histories, n items.
"""

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from features.values import Value
from recsys.models.interface import ClosedForm


class Popularity(ClosedForm):
    """score(i) = the number of users who have item i in the training rows. Memory: 4 bytes an item."""

    class Config(Value):
        """Popularity has no settings."""

    def solve(self, interactions: csr_matrix) -> dict[str, Tensor]:
        """{"counts": [n]}."""
        return {"counts": torch.as_tensor(interactions.sum(axis=0), dtype=torch.float32).flatten()}

    def history_scores(self, histories: csr_matrix) -> Tensor:
        """The counts, the same for every history, [B, n]."""
        return self.tensors()["counts"].repeat(histories.shape[0], 1)

"""Target attention: what of a row's history matters for the row's target. Layers over ragged histories, for any model.

    attention = TargetAttention(32, form="paper")
    interest = attention(query, keys, offsets)      # [B, 32], [N, 32], [B + 1] -> [B, 32]

They know no schema and no table, and read ragged rows as they are (ragged.py): nothing is padded, and an empty history
gives zeros. Learned scores: `ActivationUnit`, which `TargetAttention` sums up (Zhou et al. 2018, "Deep Interest
Network"). Scores by inner product: `DotAttention` (Chang et al. 2023, "TWIN"; Feng et al. 2025, "DARE").

Shapes: B rows, N events of all histories, D width of queries and keys, V of values, H first hidden width.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.models.activations import ACTIVATIONS, Activation, activated
from recsys.models.ragged import owners_of, segment_softmax, spread, weighted_sum

Form = Literal["paper", "public"]
EVENTS_AT_ONCE = 1 << 16  # of all targets of one history together


class ActivationUnit(nn.Module):
    """DIN's score of an event for a target: a = MLP([q, k, q - k, q * k]), not normalised.

    query [B, D], keys [N, D], offsets [B + 1] -> [N]. Parameters: 4 D H + ... of the MLP.
    The first layer is computed as (W_q + W_d) q + (W_k - W_d) k + W_p (q * k), the same number without the [N, 4 D]
    inputs: its first term is one product a row, so half the multiplications of the concatenation remain.
    hidden: widths of the MLP, at least one. activation: of its hidden layers; "dice" has moments over all events.
    """

    def __init__(self, width: int, hidden: Sequence[int] = (80, 40), activation: Activation = "prelu") -> None:
        super().__init__()
        if not hidden:
            raise ValueError("an activation unit needs at least one hidden layer, got hidden = ()")
        widths = (4 * width, *hidden)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, hidden, strict=False))
        self.activations = nn.ModuleList(ACTIVATIONS[activation](channels) for channels in hidden)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, query: Tensor, keys: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scores [N]. weights [B] or None: rows of weight 0 are scored but left out of Dice's moments."""
        owners = owners_of(offsets, keys.shape[0])
        per_event = None if weights is None else spread(weights, owners)
        by_row, of_keys, of_product = self._first(query)
        x = torch.addmm(spread(by_row, owners), keys, of_keys.t())  # [N, H]
        return self._scores(torch.addmm(x, spread(query, owners) * keys, of_product.t()), per_event)

    def of_one_history(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores [C, L] of the events [L, D] of one history for each target [C, D]; Dice as in evaluation.

        W_p (q * k) is (W_p diag(q)) k, so a target's first layer is one product with one matrix of its own.
        """
        by_row, of_keys, of_product = self._first(query)
        layers = of_keys + of_product * query.unsqueeze(1)  # [C, H, D]
        x = torch.baddbmm(by_row.unsqueeze(1), keys.expand(len(query), -1, -1), layers.transpose(1, 2))  # [C, L, H]
        return self._scores(x.flatten(0, 1), None).view(len(query), len(keys))

    def _first(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the first layer makes of the query, [B, H], and its weights for k and for q * k, [H, D] each."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        of_query, of_key, of_difference, of_product = first.weight.chunk(4, dim=1)  # [H, D] each
        return F.linear(query, of_query + of_difference, first.bias), of_key - of_difference, of_product

    def _scores(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """From the first layer's output [N, H] on."""
        x = activated(self.activations[0], x, weights)
        for layer, activation in zip(self.layers[1:], self.activations[1:], strict=True):
            x = activated(activation, layer(x), weights)
        scores: Tensor = self.last(x)
        return scores.squeeze(1)


class TargetAttention(nn.Module):
    """DIN's interest of a row: the events' values, weighted by the `ActivationUnit`.

        form "paper"   sum_j a_j v_j                          no softmax: sum_j a_j keeps how strong the interest is
        form "public"  sum_j softmax_j(a_j / sqrt(D)) v_j     the authors' published code

    query [B, D], keys [N, D], offsets [B + 1] -> [B, D], or [B, V] of other values. An empty history gives 0.
    Memory: the [N, H] of the unit's layers, kept for backward.
    """

    def __init__(
        self, width: int, hidden: Sequence[int] = (80, 40), activation: Activation = "prelu", form: Form = "paper"
    ) -> None:
        super().__init__()
        self.unit = ActivationUnit(width, hidden, activation)
        self.form = form
        self.scale = 1 / sqrt(width)

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        offsets: Tensor,
        values: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Interests [B, V]. values [N, V]: what is summed, None = the keys. weights [B]: see `ActivationUnit`."""
        owners = owners_of(offsets, keys.shape[0])
        scores = self.unit(query, keys, offsets, weights)  # [N]
        if self.form == "public":
            scores = segment_softmax(scores * self.scale, owners, query.shape[0])
        return weighted_sum(scores, keys if values is None else values, owners, query.shape[0])

    def of_one_history(self, query: Tensor, keys: Tensor) -> Tensor:
        """Interests [C, D] of targets [C, D] in the events [L, D] of one history; a slice of the targets at a time."""
        slices = query.split(max(1, EVENTS_AT_ONCE // max(1, len(keys))))
        scores = torch.cat([self.unit.of_one_history(part, keys) for part in slices])  # [C, L]
        return ((scores * self.scale).softmax(1) if self.form == "public" else scores) @ keys


class DotAttention(nn.Module):
    """Scaled dot-product attention of one query a row, over the row's own events.

        s_j = sum over parts of <q_part, k_part> / sqrt(width of the part);  softmax_j(s_j), then sum_j w_j v_j

    query [B, D], keys [N, D], values [N, V], offsets [B + 1] -> [B, V]. No parameters. An empty history gives 0.
    widths: of the parts, D together; (D,) is the usual attention. Parts that are scaled apart weigh alike whatever
    their widths, as the semantic and the temporal part of DARE do.
    """

    scale: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"the parts of a dot product have a width of at least 1, got widths = {tuple(widths)}")
        columns = [1 / sqrt(width) for width in widths for _ in range(width)]
        self.register_buffer("scale", torch.tensor(columns), persistent=False)  # [D]

    def scores(self, query: Tensor, keys: Tensor, offsets: Tensor) -> Tensor:
        """s_j of each event, [N]: what a search over a long history ranks by (`ragged.top_k`)."""
        return (spread(self.scaled(query), owners_of(offsets, keys.shape[0])) * keys).sum(1)

    def scaled(self, query: Tensor) -> Tensor:
        """Queries [B, D] whose plain inner products with keys are the scores."""
        return query * self.scale

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        """Representations [B, V]."""
        owners = owners_of(offsets, keys.shape[0])
        weights = segment_softmax(self.scores(query, keys, offsets), owners, query.shape[0])
        return weighted_sum(weights, values, owners, query.shape[0])

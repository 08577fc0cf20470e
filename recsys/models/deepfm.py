"""DeepFM: a factorisation machine and a deep network over the same vectors (Guo et al. 2017, "DeepFM").

Shapes: B rows, F fields (id features and dense features), K width of a field's vector, W = F * K.
"""

import torch
from torch import Tensor, nn

from features.batch import Batch
from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.interface import Ranker
from recsys.models.layers import MLP, Regular, check_pooled, dense_column, looked_up
from recsys.models.options import DeepOptions


class DeepFM(Ranker):
    """logit = b + sum_i w_i + sum_{i<j} <v_i, v_j> + mlp([v_1, ..., v_F]).

    A row of an id holds both v (its first K columns) and w (its last): embedding_dim is K + 1. The paper draws two
    tables; that w and v lie side by side is how parameter servers keep them, needs one lookup instead of two, and
    changes the model in nothing. An optimizer that averages over a row (row-wise Adagrad) gives both one step size.
    A list contributes the sum or mean of its ids' rows, as its pooling says; a dense number x contributes x v and x w,
    with one learned v and w per feature.

        [tables.ids]
        method = "dense"
        embedding_dim = 17    # vectors of 16, and the weight

    Raises ValueError for several labels (the products give one number; "mmoe" or "shared_bottom" take several), and for
    id features of different widths, or of width 1.
    """

    class Config(DeepOptions):
        """Settings of the deep part; hidden = () leaves the factorisation machine."""

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        check_pooled(self.inputs)
        if len(self.labels) > 1:
            raise ValueError(
                f"deepfm predicts one label, got {list(self.labels)}; 'mmoe' and 'shared_bottom' take several"
            )
        self.id_inputs = [spec.name for spec in self.inputs if spec.is_id]
        self.dense_inputs = [spec.name for spec in self.inputs if not spec.is_id]
        width = self._row_width()
        self.dense_rows = nn.Parameter(torch.empty(len(self.dense_inputs), width))
        nn.init.normal_(self.dense_rows, std=0.01)
        self.bias = nn.Parameter(torch.zeros(1))
        regular = Regular(batch_norm=config.batch_norm, dropout=config.dropout)
        self.deep = MLP(len(self.inputs) * (width - 1), config.hidden, activation=config.activation, regular=regular)
        self.head = nn.Linear(self.deep.width_out, 1, bias=False) if config.hidden else None

    def _row_width(self) -> int:
        """K + 1, the same for all id features."""
        widths = {name: self.collection.embedding_dim(name) for name in self.id_inputs}
        if len(set(widths.values())) != 1 or min(widths.values()) < 2:
            raise ValueError(f"deepfm multiplies vectors of one embedding_dim of at least 2 (K + 1), got {widths}")
        return next(iter(widths.values()))

    def logits(self, batch: Batch) -> Tensor:
        """[B]."""
        rows = self._rows(batch)  # [B, F, K + 1]
        vectors, weights = rows[:, :, :-1], rows[:, :, -1]
        logits: Tensor = self.bias + weights.sum(1) + pairwise_products(vectors)
        if self.head is None:
            return logits
        deep: Tensor = self.head(self.deep(vectors.flatten(1), batch))  # [B, 1]
        return logits + deep.squeeze(1)

    def _rows(self, batch: Batch) -> Tensor:
        found = self.vectors(batch)
        ids = torch.stack([looked_up(found, name) for name in self.id_inputs], dim=1)
        if not self.dense_inputs:
            return ids
        numbers = torch.cat([dense_column(batch, name) for name in self.dense_inputs], dim=1)  # [B, dense]
        return torch.cat([ids, numbers.unsqueeze(2) * self.dense_rows], dim=1)


def pairwise_products(vectors: Tensor) -> Tensor:
    """The sum over pairs i < j of <v_i, v_j>, [B, F, K] -> [B], in F K instead of F^2 K products (Rendle 2010).

    It is half of |sum_i v_i|^2 - sum_i |v_i|^2. Example: vectors (1), (2), (3) give 1*2 + 1*3 + 2*3 = 11.
    """
    return 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)

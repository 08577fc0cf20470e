"""Logistic regression on one-hot ids: the linear baseline of every click model.

Shapes: B rows, T labels.
"""

import torch
from torch import Tensor, nn

from features.batch import Batch
from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.interface import Ranker
from recsys.models.layers import check_pooled, dense_column, input_columns
from recsys.models.options import RankerOptions


class LogisticRegression(Ranker):
    """logit = bias + one weight per id + one weight per dense feature.

    The weight of an id is its row in a table of width 1 (T with several labels), so ids are trained as embeddings are:
    in the collection, on any backend. A list adds the sum or the mean of its ids' weights, as its pooling says.
    """

    class Config(RankerOptions):
        """Logistic regression adds no settings."""

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        check_pooled(self.inputs)
        self.id_inputs = [spec for spec in self.inputs if spec.is_id]
        self.dense_inputs = [spec.name for spec in self.inputs if not spec.is_id]
        for spec in self.id_inputs:
            width = collection.embedding_dim(spec.name)
            if width != len(self.labels):
                raise ValueError(
                    f"logistic regression reads one number per id and label: table {spec.table!r} of feature "
                    f"{spec.name!r} needs embedding_dim {len(self.labels)}, got {width}"
                )
        self.bias = nn.Parameter(torch.zeros(len(self.labels)))
        self.weights = nn.Parameter(torch.zeros(len(self.dense_inputs), len(self.labels)))

    def logits(self, batch: Batch) -> Tensor:
        """[B], or [B, T] with several labels."""
        logits = self.bias.expand(len(batch), -1)  # [B, T]
        for weights in input_columns(self.vectors(batch), batch, self.id_inputs):
            logits = logits + weights
        if self.dense_inputs:
            logits = logits + torch.cat([dense_column(batch, name) for name in self.dense_inputs], dim=1) @ self.weights
        return logits.squeeze(1)

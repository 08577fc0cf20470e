"""DCN-V2: explicit feature crosses beside, or below, a deep network (Wang et al. 2021, "DCN V2").

Shapes: B rows, W width of all inputs together, T labels.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from features.batch import Batch
from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.interface import Ranker
from recsys.models.layers import MLP, CrossNetwork, Regular, check_pooled, input_columns, input_width
from recsys.models.options import DeepOptions


class DCN(Ranker):
    """Logits from a cross network and an MLP over x_0, all inputs side by side: vectors, pooled lists, dense numbers.

    parallel: logits = w [cross(x_0), mlp(x_0)] + b. stacked: logits = w mlp(cross(x_0)) + b.
    The low-rank and mixture-of-experts cross layers of the paper are not here. BatchNorm and dropout are off at first:
    each cost half a point of AUC or more on ML-1M.
    """

    class Config(DeepOptions):
        """Settings of both parts.

        cross_layers: their number; 0 leaves the MLP: stacked a "DNN", in parallel one beside a linear term. hidden:
        widths of the MLP; () leaves the crosses. structure: how the two are joined, see the class. activation,
        batch_norm, dropout: of the MLP; the paper's activation is "relu".
        """

        cross_layers: int = Field(default=2, ge=0)
        structure: Literal["parallel", "stacked"] = "parallel"

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        check_pooled(self.inputs)
        width = input_width(collection, self.inputs)
        self.parallel = config.structure == "parallel" and bool(config.hidden)
        self.cross = CrossNetwork(width, config.cross_layers)
        regular = Regular(batch_norm=config.batch_norm, dropout=config.dropout)
        self.deep = MLP(width, config.hidden, activation=config.activation, regular=regular)
        self.head = nn.Linear(self.deep.width_out + (width if self.parallel else 0), len(self.labels))

    def logits(self, batch: Batch) -> Tensor:
        """[B], or [B, T] with several labels."""
        x0 = torch.cat(input_columns(self.vectors(batch), batch, self.inputs), dim=1)  # [B, W]
        crossed = self.cross(x0)
        deep = self.deep(x0 if self.parallel else crossed, batch)
        last = torch.cat([crossed, deep], dim=1) if self.parallel else deep
        logits: Tensor = self.head(last)
        return logits.squeeze(1)

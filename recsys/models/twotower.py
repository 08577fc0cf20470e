"""The two-tower model: user features and history against item id and attributes.

Shapes: B users, n items, W width of a side's inputs, D width of the vectors.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from features.batch import Batch
from features.encoder import Encoder
from features.spec import FeatureSpec
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.interface import Retriever, Vectors
from recsys.models.layers import MLP, check_pooled, input_columns, input_width
from recsys.models.options import RetrieverOptions


class TwoTower(Retriever):
    """score(u, i) = <f(user inputs), g(item inputs)>, of unit vectors with similarity "cosine".

    User side: the user's features and pooled histories, with the id if `features` names it or names nothing; a history
    reads the item table that the item side reads. f and g are MLPs over the inputs side by side, or the plain sum of
    the inputs' vectors, which adds no parameters. Covington et al. 2016 (mean-pooled history), Yi et al. 2019 (loss).
    New users are served when the inputs hold no user id: features = ["item", "history"].
    """

    class Config(RetrieverOptions):
        """Other defaults than a retriever's: loss "in_batch", no drawn negatives beside it.

        tower: "mlp", or "sum" of inputs of one width. layers: widths of the MLPs, of which the last is D (tower "mlp"
        only; None = (128, 64)).
        """

        loss: Literal["sampled_softmax", "bpr", "in_batch"] = "in_batch"
        num_negatives: int = Field(default=0, ge=0)
        tower: Literal["mlp", "sum"] = "mlp"
        layers: tuple[int, ...] | None = Field(default=None, min_length=1)

        @model_validator(mode="after")
        def _layers_have_effect(self) -> Self:
            if self.tower == "sum" and self.layers is not None:
                raise ValueError("layers have no effect on tower 'sum'; remove them or use tower 'mlp'")
            return self

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        sides = (self.user_inputs, self.item_inputs)
        check_pooled(self.user_inputs + self.item_inputs)
        self.tower = config.tower
        if config.tower == "sum":
            _check_equal_widths(collection, self.user_inputs + self.item_inputs)
            self.user_tower, self.item_tower = MLP(0, ()), MLP(0, ())
        else:
            widths = config.layers or (128, 64)
            self.user_tower, self.item_tower = (
                MLP(input_width(collection, side), widths, last_linear=True) for side in sides
            )

    def encode_users(self, vectors: Vectors, batch: Batch) -> Tensor:
        """[B, 1, D]."""
        encoded: Tensor = self.user_tower(self._merged(vectors, batch, self.user_inputs))
        return encoded[:, None]

    def encode_items(self, vectors: Vectors, batch: Batch) -> Tensor:
        """[n, D]."""
        encoded: Tensor = self.item_tower(self._merged(vectors, batch, self.item_inputs))
        return encoded

    def _merged(self, vectors: Vectors, batch: Batch, inputs: Sequence[FeatureSpec]) -> Tensor:
        columns = input_columns(vectors, batch, inputs)
        return torch.cat(columns, dim=1) if self.tower == "mlp" else torch.stack(columns).sum(0)  # [., W] or [., D]


def _check_equal_widths(collection: EmbeddingCollection, inputs: Sequence[FeatureSpec]) -> None:
    widths = {spec.name: collection.embedding_dim(spec.name) if spec.is_id else 1 for spec in inputs}
    if len(set(widths.values())) > 1 or not all(spec.is_id for spec in inputs):
        raise ValueError(f"tower 'sum' adds vectors of one width, the inputs have {widths}; use tower 'mlp'")

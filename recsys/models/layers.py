"""The layers that models are made of, and how a batch's inputs become one matrix.

Parameters start as torch's own initialisation gives them, from torch's global generator: build a model under a seed
(`torch.random.fork_rng()` and `torch.manual_seed`), as the trainer's caller does.

Shapes: B rows, W input width, H widths of hidden layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from features.batch import Batch, Jagged
from features.spec import FeatureSpec
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.activations import ACTIVATIONS, Activation, activated
from recsys.models.normalisation import BatchNorm, RowDropout


@dataclass(frozen=True, kw_only=True)
class Regular:
    """What follows each hidden layer: BatchNorm before its activation, dropout of this rate after it.

    name: what tells the masks of these layers from those of others in the model.
    """

    batch_norm: bool = False
    dropout: float = 0.0
    name: str = "mlp"

    def before_activation(self, width: int) -> list[nn.Module]:
        """The BatchNorm, if there is one."""
        return [BatchNorm(width)] if self.batch_norm else []

    def after_activation(self, layer: int) -> list[nn.Module]:
        """The dropout of a layer, if there is one."""
        return [RowDropout(self.dropout, f"{self.name}.{layer}")] if self.dropout else []


class MLP(nn.Sequential):
    """Fully connected layers of the given widths, each with an activation; `last_linear`: but for the last.

    [B, W] -> [B, last width]; no widths: the identity.
    activation: at the kink of "relu" a rounding decides whether a row counts in a gradient, so that after some hundred
    steps the same training summed in another order (in a GPU, over ranks) is another one; with "silu" it stays equal.
    regular: BatchNorm and dropout of every layer that has an activation; none of either without it.
    """

    def __init__(
        self,
        width: int,
        widths: Sequence[int],
        last_linear: bool = False,
        activation: Activation = "relu",
        regular: Regular = Regular(),  # frozen
    ) -> None:
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((width, *widths), widths, strict=False)):
            layers.append(nn.Linear(before, after))
            if not (last_linear and number == len(widths) - 1):
                layers += [
                    *regular.before_activation(after),
                    ACTIVATIONS[activation](after),
                    *regular.after_activation(number),
                ]
        super().__init__(*layers)
        self.width_out = (width, *widths)[-1]

    def forward(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        """Of x [B, W]; batch: whose rows they are, for the masks of dropout and the rows that count in BatchNorm."""
        for layer in self:
            if isinstance(layer, RowDropout):
                x = layer(x, None if batch is None else batch.row_ids)
            elif isinstance(layer, BatchNorm):
                x = layer(x, None if batch is None else batch.weights)
            else:
                x = activated(layer, x, None if batch is None else batch.weights)
        return x


class CrossNetwork(nn.Module):
    """Cross layers x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, with the full matrix W_l of DCN-V2 (Wang et al. 2021).

    [B, W] -> [B, W]; layer l adds the products of up to l + 2 inputs. Parameters: num_layers * W * (W + 1).
    Example: W = 1, W_0 = 2, b_0 = 0 maps 3 to 3 * 6 + 3 = 21.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, x0: Tensor) -> Tensor:
        """All layers."""
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))  # [B, W]
        return x


def check_pooled(inputs: Sequence[FeatureSpec]) -> None:
    """Raise ValueError for an input that is a list of vectors per row instead of one vector."""
    for spec in inputs:
        if spec.pooling == "none":
            raise ValueError(
                f"feature {spec.name!r} has pooling 'none'; this model reads pooled lists ('sum' or 'mean')"
            )


def input_width(collection: EmbeddingCollection, inputs: Sequence[FeatureSpec]) -> int:
    """W: the embedding_dim of each table-backed input, and 1 of each dense one."""
    return sum(collection.embedding_dim(spec.name) if spec.is_id else 1 for spec in inputs)


def input_columns(vectors: Mapping[str, Tensor | Jagged], batch: Batch, inputs: Sequence[FeatureSpec]) -> list[Tensor]:
    """Each input as a matrix [B, its width]: the looked-up vectors, or the dense column, in the order of `inputs`."""
    return [looked_up(vectors, spec.name) if spec.is_id else dense_column(batch, spec.name) for spec in inputs]


def dense_column(batch: Batch, feature: str) -> Tensor:
    """A dense feature as [B, 1]."""
    column = batch.ids(feature)
    if column.dim() != 1:
        raise ValueError(
            f"dense feature {feature!r} has shape {tuple(column.shape)}, this model takes one number a row"
        )
    return column[:, None]


def looked_up(vectors: Mapping[str, Tensor | Jagged], feature: str) -> Tensor:
    """The vectors [B, D] of a feature that has one vector a row."""
    found = vectors[feature]
    if not isinstance(found, Tensor):
        raise ValueError(f"feature {feature!r} has a list of vectors per row, not one")
    return found

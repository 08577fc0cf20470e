"""The settings that all rankers, or all retrievers, have; a model's own `Config` adds to them.

What a loss setting means exactly is in `losses.py` and `retrieval_loss.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from features.values import Value
from recsys.models.activations import Activation


class ModelOptions(Value):
    """Settings of every model with tables. features: the inputs to use, () for all that the model can use."""

    features: tuple[str, ...] = ()


class RankerOptions(ModelOptions):
    """Settings of every ranker.

    labels: what to predict, one logit each; () for the schema's first label, or all of them in a model for several.
    label_weights: by label, the factor of its loss beside the others' (those not named: 1).
    positive_weight: the factor of the loss where the label is 1, for all labels or by label. Scores stay calibrated:
        see `Ranker.row_losses`.
    """

    labels: tuple[str, ...] = ()
    label_weights: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    positive_weight: Annotated[float, Field(gt=0)] | Mapping[str, Annotated[float, Field(gt=0)]] = 1.0


class DeepOptions(RankerOptions):
    """Settings of rankers with an MLP.

    hidden: its widths; () for none, where the model has other parts. activation: after each layer, see `layers.MLP`.
    batch_norm: normalise each layer before its activation. dropout: the share of each layer's outputs that are dropped.
    """

    hidden: tuple[int, ...] = (256, 128)
    activation: Literal["relu", "silu"] = "relu"
    batch_norm: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _layers_to_act_on(self) -> Self:
        for key in ("activation", "batch_norm", "dropout"):
            if not self.hidden and getattr(self, key) != DeepOptions.model_fields[key].default:
                raise ValueError(f"{key} has no effect without hidden layers; remove it or give hidden")
        return self


class SequenceOptions(RankerOptions):
    """Settings of the head of rankers that read histories.

    hidden: widths of its layers; () for a linear one. activation: after each; "prelu" and "dice" are the papers',
    "sigmoid" that of DIN's public code; after some hundred steps, two ranks equal one process only where it is smooth,
    which "prelu" and "relu" are not. batch_norm: normalise its input. dropout: after each hidden layer.
    """

    hidden: tuple[int, ...] = (80, 40)
    activation: Activation = "prelu"
    batch_norm: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _layers_to_drop_from(self) -> Self:
        if self.dropout and not self.hidden:
            raise ValueError("dropout has no effect without hidden layers; remove it or give hidden")
        return self


class RetrieverOptions(ModelOptions):
    """Settings of every retriever: how vectors are compared, and the loss.

    similarity: "cosine" scales user and item vectors to length 1. temperature: scores are divided by it, in the loss.
    loss: "sampled_softmax" against `num_negatives` items of the catalogue, drawn uniformly and shared by the rows of a
        step; "bpr" against the same; "in_batch" against the items of the other rows and `num_negatives` more.
    log_q: in_batch only: correct scores by the log of each item's chance to be a negative (None = yes).
    mask_known: an item that the row's user has elsewhere in the training rows is no negative of that row.
    """

    similarity: Literal["dot", "cosine"] = "cosine"
    temperature: float = Field(default=0.1, gt=0)
    loss: Literal["sampled_softmax", "bpr", "in_batch"] = "sampled_softmax"
    num_negatives: int = Field(default=1024, ge=0)
    log_q: bool | None = None
    mask_known: bool = False

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        if self.log_q is not None and self.loss != "in_batch":
            raise ValueError(f"log_q has no effect on loss {self.loss!r}; remove it or use loss 'in_batch'")
        if self.loss != "in_batch" and self.num_negatives == 0:
            raise ValueError(f"loss {self.loss!r} needs num_negatives of at least 1, got 0")
        return self

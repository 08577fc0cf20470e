"""The settings that all rankers, or all retrievers, have; a model's own `Config` adds to them.

What a loss setting means exactly is in `losses.py` and `retrieval_loss.py`.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from features.values import Value


class ModelOptions(Value):
    """Settings of every model with tables. features: the inputs to use, () for all that the model can use."""

    features: tuple[str, ...] = ()


class RankerOptions(ModelOptions):
    """Settings of every ranker. labels: what to predict, one logit each; () for the schema's first label."""

    labels: tuple[str, ...] = ()


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

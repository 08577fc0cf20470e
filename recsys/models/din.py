"""Deep Interest Network: which past events count depends on the target (Zhou et al. 2018, "Deep Interest Network").

Shapes: B rows, D width of a target, K events kept by a search.
"""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from features.batch import Batch
from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.attention import Form, TargetAttention
from recsys.models.interface import Ranker
from recsys.models.options import SequenceOptions
from recsys.models.sequence_inputs import hard_search
from recsys.models.sum_pooling import BaseModel


class DIN(BaseModel):
    """`BaseModel` with `TargetAttention` in the place of the sum, one for each sequence group.

    The paper's mini-batch-aware regularisation is a setting of training (`training.mba_l2`), for any model with tables.

        [model]
        name = "din"
        form = "paper"
        activation = "dice"
    """

    class Config(SequenceOptions):
        """Settings of the attention, beside those of the head, whose activation it shares.

        form: "paper" sums a_j v_j, "public" is the published code's softmax, see `TargetAttention`. attention_hidden:
            widths of the activation unit.
        search, search_k: attend only to the search_k most recent events that have the target's id of this feature (a
            category), before anything is looked up: SIM's hard search, for histories too long to attend to.
        """

        form: Form = "paper"
        attention_hidden: tuple[int, ...] = Field(default=(80, 40), min_length=1)
        search: str = ""
        search_k: int | None = Field(default=None, ge=1)

        @model_validator(mode="after")
        def _search_is_whole(self) -> Self:
            if bool(self.search) != (self.search_k is not None):
                raise ValueError(f"search and search_k need each other, got {self.search!r} and {self.search_k}")
            return self

    config: Config

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        self.searched = {name: group for name, group in self.groups.items() if config.search in group.pairs}
        if config.search and not self.searched:
            targets = sorted({target for group in self.groups.values() for target in group.pairs})
            raise ValueError(f"search = {config.search!r} is repeated by no sequence; those that are: {targets}")

    def interest(self, width: int) -> nn.Module:
        """Target attention."""
        return TargetAttention(width, self.config.attention_hidden, self.config.activation, self.config.form)

    def candidate_logits(self, rows: Batch, history: Batch, keys: Mapping[str, Tensor] | None = None) -> Tensor:
        """As of `BaseModel`; after a search each candidate has a history of its own."""
        if self.searched:
            return Ranker.candidate_logits(self, rows, history, keys)
        return super().candidate_logits(rows, history, keys)

    def read(self, batch: Batch) -> Batch:
        """The columns that are looked up: of histories with a search, what it found."""
        read = super().read(batch)
        for group in self.searched.values():
            assert self.config.search_k is not None
            read = hard_search(read, group, self.config.search, self.config.search_k)
        return read

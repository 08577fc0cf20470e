"""The network of DIN without its attention: a history is the sum of its events ("BaseModel" in Zhou et al. 2018).

The baseline that an attention model must beat on the same inputs, and what `DIN` builds on.

Shapes: B rows, N events of all histories, D width of a target, W width of the head's input, T labels.
"""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from features.batch import Batch, Jagged
from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.pooling import pool
from recsys.models.attention import TargetAttention
from recsys.models.interface import Ranker
from recsys.models.layers import MLP, Regular, check_pooled, input_columns, input_width
from recsys.models.normalisation import BatchNorm
from recsys.models.options import SequenceOptions
from recsys.models.retrieval_loss import part
from recsys.models.sequence_inputs import AlignedSequences, alignments, other_inputs, sequences_of


class BaseModel(Ranker):
    """logits = MLP(BatchNorm(x)), x = [others, then u_g, u_g * q_g for each sequence group g].

    q_g is the target as the group's events are described (`AlignedSequences`), u_g the sum or mean of their vectors;
    others are all inputs that are no sequences: the target's own features, the user's, pooled lists, dense numbers.
    DIN's public code has a linear layer and a BatchNorm more on u, and a bias per item; none of them is here. Each row
    is scored by itself, and one BatchNorm sees positives and negatives together. (In the paper's own runs the positive
    and the negative of a pair went through two, whose moments gave the label away: .88 AUC instead of .87 on Amazon.)
    """

    class Config(SequenceOptions):
        """pooling: of the events."""

        pooling: Literal["sum", "mean"] = "sum"

        @model_validator(mode="after")
        def _activation_has_effect(self) -> Self:
            if not self.hidden and "activation" in self.model_fields_set:
                raise ValueError("activation has no effect without hidden layers; remove it or give hidden")
            return self

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: SequenceOptions) -> None:
        super().__init__(encoder, collection, config)
        self.groups = alignments(self.schema, self.inputs)
        self.others = other_inputs(self.inputs, self.groups)
        if not self.others:
            raise ValueError(
                "model.features has sequences alone; a row needs something of its target or user beside them"
            )
        check_pooled(self.others)
        aligned = [AlignedSequences(group, collection.embedding_dim) for group in self.groups.values()]
        self.aligned = nn.ModuleList(aligned)
        self.interests = nn.ModuleList(self.interest(one.width) for one in aligned)
        width = input_width(collection, self.others) + 2 * sum(one.width for one in aligned)
        self.norm = BatchNorm(width) if config.batch_norm else None
        regular = Regular(dropout=config.dropout, name="head")
        self.deep = MLP(width, config.hidden, activation=config.activation, regular=regular)
        self.head = nn.Linear(self.deep.width_out, len(self.labels))

    def interest(self, width: int) -> nn.Module:
        """The layer that makes one vector of a group's events."""
        assert isinstance(self.config, BaseModel.Config)
        return Pooled(self.config.pooling)

    def read(self, batch: Batch) -> Batch:
        """The columns that are looked up."""
        return part(batch, self.inputs)

    def logits(self, batch: Batch) -> Tensor:
        """[B], or [B, T] with several labels."""
        read = self.read(batch)
        sequences = [name for group in self.groups.values() for name in sequences_of(group)]
        vectors = self.collection(read, unpooled=sequences)
        columns = input_columns(vectors, read, self.others)
        for aligned, interest in zip(self.aligned, self.interests, strict=True):
            assert isinstance(aligned, AlignedSequences)
            query, keys = aligned.query(vectors, columns[0].shape[0]), aligned.keys(vectors)
            found = interest(query, keys.values, keys.offsets, weights=batch.weights)
            columns += [found, found * query]
        return self._logits_of(columns, batch)

    def candidate_logits(self, rows: Batch, history: Batch, keys: Mapping[str, Tensor] | None = None) -> Tensor:
        """The history is looked up once, and stands once in the memory."""
        read = part(rows, self.others)
        sequences = {name: history[name] for group in self.groups.values() for name in sequences_of(group)}
        of_rows, of_events = self.collection(read, Batch(features=sequences), unpooled=sequences)
        columns = input_columns(of_rows, read, self.others)
        for aligned, interest in zip(self.aligned, self.interests, strict=True):
            assert isinstance(aligned, AlignedSequences)
            assert isinstance(interest, Pooled | TargetAttention)
            query = aligned.query(of_rows, len(rows))
            found = interest.of_one_history(query, aligned.keys(of_events).values)
            columns += [found, found * query]
        return self._logits_of(columns, rows)

    def _logits_of(self, columns: list[Tensor], batch: Batch) -> Tensor:
        x = torch.cat(columns, dim=1)  # [B, W]
        if self.norm is not None:
            x = self.norm(x, batch.weights)
        logits: Tensor = self.head(self.deep(x, batch))
        return logits.squeeze(1)


class Pooled(nn.Module):
    """The sum or the mean of each row's events, called as target attention is: query [B, D], keys [N, D] -> [B, D]."""

    def __init__(self, pooling: Literal["sum", "mean"]) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, query: Tensor, keys: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Whatever the query; 0 for a row without events."""
        return pool(Jagged(values=keys, offsets=offsets), self.pooling)

    def of_one_history(self, query: Tensor, keys: Tensor) -> Tensor:
        """The same [C, D] for each of the targets [C, D], of the events [L, D] of one history."""
        offsets = torch.tensor([0, len(keys)], device=keys.device)
        return pool(Jagged(values=keys, offsets=offsets), self.pooling).expand(len(query), -1)

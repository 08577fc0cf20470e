"""The two ways by which a vector reaches a logit in a model with target attention: its weights, and what is weighted.

`paths_of` reads a batch twice into tensors of their own, one that only scores of attention are made of, one for
everything else, so that their gradients can be told apart; the logits are those of the model. It knows DIN, TWIN, DARE
and what is derived from them.

Shapes: B rows, N events of all histories, D width of a vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from features.batch import Batch, Jagged
from recsys.models.attention import TargetAttention
from recsys.models.din import DIN
from recsys.models.layers import input_columns
from recsys.models.ragged import owners_of, segment_softmax
from recsys.models.sequence_inputs import AlignedSequences, events_found, sequences_of
from recsys.models.twin import SearchedAttention

Vectors = Mapping[str, Tensor | Jagged]
Attentive = DIN | SearchedAttention


@dataclass(frozen=True, kw_only=True)
class Paths:
    """A batch as the model reads it. logits [B] or [B, T].

    attention, representation: feature of the data -> its vectors, leaves of autograd, as scores and as all else read
    them; features that attention does not read are in the latter alone.
    names: feature of the data -> the collection's feature that attention reads for it.
    """

    logits: Tensor
    attention: Mapping[str, Tensor]
    representation: Mapping[str, Tensor]
    names: Mapping[str, str]


def attentive(model: object, name: str) -> Attentive:
    """The model, if it has target attention of ours; ValueError with its name if not."""
    if not isinstance(model, DIN | SearchedAttention):
        raise ValueError(f"model {name!r} has no target attention; din, twin and dare have")
    return model


def paths_of(model: Attentive, batch: Batch) -> Paths:
    """The batch read by both paths, in the mode (train or eval) that the model is in."""
    names = {name: _attention_name(model, name) for name in attended_features(model)}
    with torch.no_grad():
        vectors = _looked_up(model, batch)
    own = {name: _leaf(vectors[name]) for name in (spec.name for spec in model.inputs) if name in vectors}
    apart = {name: _leaf(vectors[copied]) for name, copied in names.items()}
    attended = {**own, **{names[name]: vector for name, vector in apart.items()}}
    logits = _logits(model, batch, own, attended)
    return Paths(
        logits=logits,
        attention={name: _values(vector) for name, vector in apart.items()},
        representation={name: _values(vector) for name, vector in own.items()},
        names=names,
    )


@torch.no_grad()
def weights_of(model: Attentive, batch: Batch, group: int) -> Tensor:
    """The weight [N] by which each event of a sequence group counts in the row's interest; 0 where a search left it."""
    vectors = _looked_up(model, batch)
    if isinstance(model, SearchedAttention):
        return model.weights(group, vectors, len(batch))
    aligned, attention = _din_parts(model, group)
    keys = aligned.keys(vectors)
    scores: Tensor = attention.unit(aligned.query(vectors, len(batch)), keys.values, keys.offsets)
    if attention.form == "public":
        scores = segment_softmax(scores * attention.scale, owners_of(keys.offsets, len(scores)), len(batch))
    return _among_all(model, batch, group, scores)


def as_read(model: Attentive, batch: Batch) -> Batch:
    """The columns whose vectors `paths_of` gives: of DIN with a search, the events that it found."""
    return model.read(batch) if isinstance(model, DIN) else batch


def _among_all(model: DIN, batch: Batch, group: int, weights: Tensor) -> Tensor:
    """Weights of the events that were read -> [N], of all."""
    name, alignment = list(model.groups.items())[group]
    if name not in model.searched:
        return weights
    assert model.config.search_k is not None
    kept, _ = events_found(batch, alignment, model.config.search, model.config.search_k)
    every = weights.new_zeros(len(batch.jagged(sequences_of(alignment)[0]).values))
    return every.index_copy(0, kept, weights)


def attended_features(model: Attentive) -> list[str]:
    """The features of the data that attention reads: targets and their sequences, and what stands alone."""
    found = [name for group in model.groups.values() for name in (*group.pairs, *sequences_of(group))]
    return list(dict.fromkeys(found))


def _attention_name(model: Attentive, name: str) -> str:
    return model.attention_name(name) if isinstance(model, SearchedAttention) else name


def _looked_up(model: Attentive, batch: Batch) -> Vectors:
    if isinstance(model, SearchedAttention):
        return model.look_up(batch, model.inputs)
    sequences = [name for group in model.groups.values() for name in sequences_of(group)]
    found: Vectors = model.collection(model.read(batch), unpooled=sequences)
    return found


def _logits(model: Attentive, batch: Batch, own: Vectors, attended: Vectors) -> Tensor:
    if isinstance(model, SearchedAttention):
        every = model.readings(own, len(batch), attended)
        found = [one.found(model.config.search_k) for one in every]
        return model.logits_of(found, own, batch, model.head).squeeze(1)
    columns = input_columns(own, batch, model.others)
    for place in range(len(model.groups)):
        aligned, attention = _din_parts(model, place)
        keys, values, target = aligned.keys(attended), aligned.keys(own), aligned.query(own, len(batch))
        interest = attention(aligned.query(attended, len(batch)), keys.values, keys.offsets, values.values)
        columns += [interest, interest * target]
    x = torch.cat(columns, dim=1)
    logits: Tensor = model.head(model.deep(x if model.norm is None else model.norm(x), batch))
    return logits.squeeze(1)


def _din_parts(model: DIN, place: int) -> tuple[AlignedSequences, TargetAttention]:
    aligned, attention = model.aligned[place], model.interests[place]
    assert isinstance(aligned, AlignedSequences)
    assert isinstance(attention, TargetAttention)
    return aligned, attention


def _leaf(vectors: Tensor | Jagged) -> Tensor | Jagged:
    if isinstance(vectors, Tensor):
        return vectors.detach().clone().requires_grad_()
    return vectors.with_values(vectors.values.detach().clone().requires_grad_())


def _values(vectors: Tensor | Jagged) -> Tensor:
    return vectors if isinstance(vectors, Tensor) else vectors.values

"""Target attention over long histories by search, on shared tables: "TWIN" (Chang et al. 2023), DARE's baseline.

`SearchedAttention` is what TWIN and `DARE` (dare.py) have in common. Of a target and a history of L events:

    s_j = <q, k_j> / sqrt(D), the part of ids and the part of ages scaled apart       scores, by attention vectors
    S   = the K events of the highest s_j                                             search, without gradient
    h   = sum over S of softmax_S(s)_j v_j                                            attention, of values
    logit = MLP(BatchNorm([others, h, q_r * h]))                                      q_r: the target as a value
    loss += weight * loss of a second MLP on the same of h over all L events          auxiliary

In TWIN k_j and v_j (q and q_r) are the same vectors. Not here: TWIN's own production parts (features of the behaviour
computed in advance, several heads); this is the baseline of the DARE paper, with one head.

Shapes: B rows, N events of all histories, D width of attention vectors, V of values, W of the head's input, T labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor, nn

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.sequences import Alignment
from features.spec import FeatureSpec
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.attention import DotAttention
from recsys.models.event_search import search_shared
from recsys.models.interface import EventKeys, Ranker, Vectors
from recsys.models.layers import MLP, Regular, check_pooled, input_columns, input_width
from recsys.models.normalisation import BatchNorm
from recsys.models.options import SequenceOptions
from recsys.models.ragged import owners_of, segment_softmax, top_k, weighted_sum
from recsys.models.retrieval_loss import part
from recsys.models.sequence_inputs import AlignedSequences, alignments, other_inputs, sequences_of, side_by_side
from recsys.phases import Step


class SearchOptions(SequenceOptions):
    """Settings of the search and of what is made of its result, beside those of the head.

    search_k: events of a history that are attended to. target_aware: whether the head sees q_r * h. auxiliary_weight:
    of the loss over all events, 0 = none. auxiliary_hidden: widths of its MLP, where there is one.
    """

    hidden: tuple[int, ...] = (200, 80)
    search_k: int = Field(default=20, ge=1)
    target_aware: bool = True
    auxiliary_weight: float = Field(default=1.0, ge=0)
    auxiliary_hidden: tuple[int, ...] = (200,)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What attention reads of one sequence group: target [B, V], scores [N], and the events' values [N, V], ragged."""

    target: Tensor
    scores: Tensor
    values: Jagged

    def found(self, k: int) -> "Reading":
        """Of the k events of each row that score highest."""
        kept, offsets = top_k(self.scores, self.values.offsets, k)
        values = Jagged(values=self.values.values[kept], offsets=offsets)
        return Reading(target=self.target, scores=self.scores[kept], values=values)

    def interest(self) -> Tensor:
        """The weighted sum h of each row, [B, V]."""
        owners, num_rows = owners_of(self.values.offsets, self.scores.shape[0]), self.values.num_rows
        weights = segment_softmax(self.scores, owners, num_rows)
        return weighted_sum(weights, self.values.values, owners, num_rows)


class Head(nn.Module):
    """BatchNorm (if `norm`), MLP, and one linear output per label: [B, W] -> [B, T]."""

    def __init__(self, width: int, hidden: Sequence[int], num_labels: int, config: SequenceOptions, name: str) -> None:
        super().__init__()
        self.norm = BatchNorm(width) if config.batch_norm else None
        regular = Regular(dropout=config.dropout, name=name)
        self.deep = MLP(width, hidden, activation=config.activation, regular=regular)
        self.last = nn.Linear(self.deep.width_out, num_labels)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """Logits [B, T]; batch: whose rows they are."""
        if self.norm is not None:
            x = self.norm(x, batch.weights)
        logits: Tensor = self.last(self.deep(x, batch))
        return logits


class SearchedAttention(Ranker):
    """The module docstring's model, for any number of sequence groups, each with an attention of its own.

    A subclass says which vectors attention reads: `attention_name`, or more freely `query`, `keys` (with `part_keys`)
    and `represented`, which count groups in the order of `groups`.
    Scoring looks up attention vectors of all L events and values of the K found alone; a training step with the
    auxiliary loss looks up both of all events, in one call.
    An empty history gives h = 0. Where fewer than K events are there, all are attended to and nothing else is: no row
    is padded. (The paper's code lets padding into the K, runs BatchNorm on batch statistics at test time, and starts
    BatchNorm's scale and PReLU's slopes at N(0, .01); here BatchNorm has running moments and everything starts as the
    layers' own initialisation says.)
    """

    config: SearchOptions

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: SearchOptions) -> None:
        super().__init__(encoder, collection, config)
        self.groups = alignments(self.schema, self.inputs)
        self.others = other_inputs(self.inputs, self.groups)
        check_pooled(self.others)
        groups = self.groups.values()
        self.valued = nn.ModuleList(AlignedSequences(one, collection.embedding_dim) for one in groups)
        read = [_renamed(one, self.attention_name) for one in groups]
        apart = read if read != list(groups) else []  # else attention reads the vectors of values
        self.attended = nn.ModuleList(AlignedSequences(one, collection.embedding_dim) for one in apart)
        self.attention = nn.ModuleList(DotAttention(self._attended(place).widths) for place in range(len(groups)))
        values = sum(_aligned(one).width for one in self.valued)
        width = input_width(collection, self.others) + (2 if config.target_aware else 1) * values
        self.head = Head(width, config.hidden, len(self.labels), config, "head")
        weighted = config.auxiliary_weight > 0
        self.auxiliary = Head(width, config.auxiliary_hidden, len(self.labels), config, "aux") if weighted else None

    # --- what attention reads ---

    def attention_name(self, feature: str) -> str:
        """The feature of the collection that attention reads in the place of one of the data's."""
        return feature

    def query(self, group: int, vectors: Vectors, num_rows: int) -> Tensor:
        """The targets that scores are made of, [B, D]."""
        return self._attended(group).query(vectors, num_rows)

    def keys(self, group: int, vectors: Vectors) -> Jagged:
        """The events that scores are made of, a Jagged of [N, D]."""
        return self._attended(group).keys(vectors)

    def matched(self, group: int, vectors: Vectors, num_rows: int) -> tuple[Tensor, Jagged]:
        """What scores are made of: query [B, D] and keys, a Jagged of [N, D]."""
        return self.query(group, vectors, num_rows), self.keys(group, vectors)

    def part_keys(self, group: int, alone: bool, vectors: Vectors) -> Tensor:
        """Of `keys` the columns of what stands alone, or of what stands in pairs with the target."""
        aligned = self._attended(group)
        return side_by_side(vectors, aligned.alone if alone else [*aligned.pairs.values()]).values

    def represented(self, group: int, vectors: Vectors, num_rows: int) -> tuple[Tensor, Tensor]:
        """What logits are made of: the target [B, V] and the events' values [N, V]."""
        aligned = _aligned(self.valued[group])
        return aligned.query(vectors, num_rows), aligned.keys(vectors).values

    def _attended(self, group: int) -> AlignedSequences:
        return _aligned((self.attended or self.valued)[group])

    # --- scores ---

    def logits(self, batch: Batch) -> Tensor:
        """[B], or [B, T] with several labels."""
        return self._logits_of_found(self.search(part(batch, self.inputs)), batch)

    def candidate_logits(self, rows: Batch, history: Batch, keys: Mapping[str, Tensor] | None = None) -> Tensor:
        """The history is searched for all candidates at once; what each finds is then read as `logits` reads it.

        So only which events are found can differ from `logits`: where scores differ by no more than float32 rounds, or
        by what `keys` are off.
        """
        return self._logits_of_found(self.search_candidates(part(rows, self.others), history, keys or {}), rows)

    def event_keys(self, events: Batch) -> dict[str, EventKeys]:
        """Keys of what stands in pairs, [N, W], where all of it is in `events`."""
        found = {}
        for place, (name, group) in enumerate(self.groups.items()):
            columns = {self.attention_name(one): one for one in group.pairs.values()}
            if columns and all(one in events.features for one in columns.values()):
                asked = Batch(features={key: events[one] for key, one in columns.items()})
                vectors = self.part_keys(place, False, self.collection(asked, unpooled=columns))
                precisions = {store.precision for key in columns for store in self.collection.table(key).stores}
                precision = precisions.pop() if len(precisions) == 1 else "float32"
                found[name] = EventKeys(vectors=vectors, precision=precision)
        return found

    def _logits_of_found(self, found: Batch, batch: Batch) -> Tensor:
        vectors = self.look_up(found, self.inputs)
        return self.logits_of(self.readings(vectors, found.num_rows), vectors, batch, self.head).squeeze(1)

    def row_losses(self, batch: Batch, step: Step) -> Tensor:
        """The losses of a ranker, [B], and those of the auxiliary logits times their weight."""
        if self.auxiliary is None:
            return super().row_losses(batch, step)
        vectors = self.look_up(part(batch, self.inputs), self.inputs)
        every = self.readings(vectors, len(batch))
        found = [one.found(self.config.search_k) for one in every]
        losses = self.losses(self.logits_of(found, vectors, batch, self.head), batch)
        auxiliary = self.losses(self.logits_of(every, vectors, batch, self.auxiliary), batch)
        return losses + self.config.auxiliary_weight * auxiliary

    def look_up(self, batch: Batch, inputs: Sequence[FeatureSpec], values: bool = True) -> Vectors:
        """The vectors of these inputs, and of what attention reads; values = False: of the latter alone."""
        sequences = {name for group in self.groups.values() for name in sequences_of(group)}
        paired = {name for group in self.groups.values() for name in group.pairs}
        matched = {self.attention_name(name): batch[name] for name in (*paired, *sequences)}
        columns = matched | ({spec.name: batch[spec.name] for spec in inputs} if values else {})
        unpooled = sequences | {self.attention_name(name) for name in sequences}
        found: Vectors = self.collection(Batch(features=columns), unpooled=unpooled)
        return found

    @torch.no_grad()
    def search(self, batch: Batch) -> Batch:
        """The batch with the `search_k` events of each history that score highest."""
        vectors = self.look_up(batch, (), values=False)
        features = dict(batch.features)
        for place, group in enumerate(self.groups.values()):
            scores, offsets = self.scores(place, vectors, batch.num_rows)
            kept, offsets = top_k(scores, offsets, self.config.search_k)
            cut = {one: Jagged(values=batch.jagged(one).values[kept], offsets=offsets) for one in sequences_of(group)}
            features |= cut
        return replace(batch, features=features)

    @torch.no_grad()
    def search_candidates(self, rows: Batch, history: Batch, keys: Mapping[str, Tensor]) -> Batch:
        """The candidates [C] with the `search_k` events of the one history that score highest for each.

        keys: those of `event_keys` that are at hand; others are looked up. The target of what stands alone is the same
        for every candidate, and so is that part of an event's score.
        """
        vectors = self._look_up_shared(rows, history, keys)
        features = dict(rows.features)
        for place, (name, group) in enumerate(self.groups.items()):
            query = self._attention(place).scaled(self.query(place, vectors, len(rows)))  # [C, D]
            compared = keys[name] if name in keys else self.part_keys(place, not group.pairs, vectors)  # [L, W]
            width, added = compared.shape[1], None
            if width < query.shape[1]:
                added = self.part_keys(place, True, vectors) @ query[0, width:]  # [L]
            kept = search_shared(query[:, :width], compared, self.config.search_k, added)  # [C, K]
            offsets = torch.arange(len(rows) + 1, device=kept.device) * kept.shape[1]
            found = {one: history.jagged(one).values[kept.flatten()] for one in sequences_of(group)}
            features |= {one: Jagged(values=ids, offsets=offsets) for one, ids in found.items()}
        return replace(rows, features=features)

    def _look_up_shared(self, rows: Batch, history: Batch, keys: Mapping[str, Tensor]) -> Vectors:
        """What attention reads of the candidates and, but for the keys at hand, of the one history."""
        targets = {self.attention_name(one): rows[one] for group in self.groups.values() for one in group.pairs}
        asked = [
            one for name, group in self.groups.items() for one in (group.alone if name in keys else sequences_of(group))
        ]
        events = {self.attention_name(one): history[one] for one in asked}
        of_rows, of_events = self.collection(Batch(features=targets), Batch(features=events), unpooled=events)
        return {**of_rows, **of_events}

    def scores(self, group: int, vectors: Vectors, num_rows: int) -> tuple[Tensor, Tensor]:
        """s_j of every event of a group, [N], and the offsets of the rows."""
        query, keys = self.matched(group, vectors, num_rows)
        return self._attention(group).scores(query, keys.values, keys.offsets), keys.offsets

    def _attention(self, group: int) -> DotAttention:
        found = self.attention[group]
        assert isinstance(found, DotAttention)
        return found

    def readings(self, vectors: Vectors, num_rows: int, attended: Vectors | None = None) -> list[Reading]:
        """Of each group, all events that were looked up.

        attended: what scores are made of, None = the vectors; another copy of them tells the two gradients apart.
        """
        found = []
        for group in range(len(self.groups)):
            scores, offsets = self.scores(group, vectors if attended is None else attended, num_rows)
            target, values = self.represented(group, vectors, num_rows)
            found.append(Reading(target=target, scores=scores, values=Jagged(values=values, offsets=offsets)))
        return found

    def logits_of(self, readings: Sequence[Reading], vectors: Vectors, batch: Batch, head: nn.Module) -> Tensor:
        """Logits [B, T] of a head."""
        columns = input_columns(vectors, batch, self.others)
        for reading in readings:
            interest = reading.interest()
            columns += [interest, interest * reading.target] if self.config.target_aware else [interest]
        logits: Tensor = head(torch.cat(columns, dim=1), batch)
        return logits

    def weights(self, group: int, vectors: Vectors, num_rows: int) -> Tensor:
        """The weight w_j of every event in h, [N]; 0 of those that the search leaves."""
        scores, offsets = self.scores(group, vectors, num_rows)
        kept, within = top_k(scores, offsets, self.config.search_k)
        weights = segment_softmax(scores[kept], owners_of(within, len(kept)), num_rows)
        return weights.new_zeros(len(scores)).index_put((kept,), weights)


class TWIN(SearchedAttention):
    """The model of the module docstring, with one vector of each id for attention and for values.

    projections: three matrices a group, without bias: q' = W_q q and k' = W_k k, which leave ids and ages apart as the
    scores do, and v' = W_v v; the DARE paper's "TWIN w/ proj".

        [model]
        name = "twin"
        search_k = 20
    """

    class Config(SearchOptions):
        """projections: see the class."""

        projections: bool = False

    config: Config

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        projected = self.valued if config.projections else ()
        self.projections = nn.ModuleList(Projections(_aligned(one).widths) for one in projected)

    def query(self, group: int, vectors: Vectors, num_rows: int) -> Tensor:
        """Targets, projected if the options say so."""
        query = super().query(group, vectors, num_rows)
        return self._projections(group).query(query) if self.projections else query

    def keys(self, group: int, vectors: Vectors) -> Jagged:
        """Keys, projected if the options say so."""
        keys = super().keys(group, vectors)
        return keys.with_values(self._projections(group).key(keys.values)) if self.projections else keys

    def part_keys(self, group: int, alone: bool, vectors: Vectors) -> Tensor:
        """The same for one part."""
        keys = super().part_keys(group, alone, vectors)
        return self._projections(group).keys[-1 if alone else 0](keys) if self.projections else keys

    def represented(self, group: int, vectors: Vectors, num_rows: int) -> tuple[Tensor, Tensor]:
        """The target, and values, projected if the options say so."""
        target, values = super().represented(group, vectors, num_rows)
        return target, self._projections(group).value(values) if self.projections else values

    def _projections(self, group: int) -> "Projections":
        found = self.projections[group]
        assert isinstance(found, Projections)
        return found


class Projections(nn.Module):
    """W_q, W_k and W_v, each [N, D] -> [N, D]; those of query and key have a block for each part of `widths`."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.queries = nn.ModuleList(nn.Linear(width, width, bias=False) for width in widths)
        self.keys = nn.ModuleList(nn.Linear(width, width, bias=False) for width in widths)
        self.value = nn.Linear(sum(widths), sum(widths), bias=False)

    def query(self, x: Tensor) -> Tensor:
        """W_q x."""
        return self._blocks(self.queries, x)

    def key(self, x: Tensor) -> Tensor:
        """W_k x."""
        return self._blocks(self.keys, x)

    def _blocks(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        parts = x.split(self.widths, dim=1)
        return torch.cat([block(one) for block, one in zip(blocks, parts, strict=True)], dim=1)


def _renamed(alignment: Alignment, name: Callable[[str], str]) -> Alignment:
    pairs = {name(target): name(sequence) for target, sequence in alignment.pairs.items()}
    return Alignment(pairs=pairs, alone=tuple(map(name, alignment.alone)))


def _aligned(found: nn.Module) -> AlignedSequences:
    assert isinstance(found, AlignedSequences)
    return found

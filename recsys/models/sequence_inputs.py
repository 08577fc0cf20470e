"""What target attention reads of a batch: the target's vector, and the vectors of the events of the row's history.

    query  [B, D]   the vectors of the target's features side by side, then a learned vector for each sequence that no
                    feature of the target stands against (an action, an age)
    keys   [N, D]   of each event the vectors of the aligned sequences, in the same order

Which sequences stand against what is the schema's (`FeatureSchema.alignment`). Not here: what is made of the two
(attention.py), and the tables, of which there is one lookup a step, by the model.

Shapes: B rows, N events of all histories, D width, W width of the columns that stand alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from features.batch import Batch, Jagged
from features.sequences import Alignment
from features.spec import FeatureSchema, FeatureSpec
from recsys.models.ragged import last_k

INITIAL = 0.05


class AlignedSequences(nn.Module):
    """Query and keys of one sequence group, from the vectors that were looked up.

    width_of: feature -> width of its vectors (`EmbeddingCollection.embedding_dim`).
    widths: of the part in pairs, then of the part that stands alone (left out where it is 0); together D. A target's
    learned vector starts uniform in +-0.05, as rows of tables do. Raises ValueError when a target's vector and those of
    its sequence differ in width.
    """

    def __init__(self, alignment: Alignment, width_of: Callable[[str], int]) -> None:
        super().__init__()
        self.pairs = dict(alignment.pairs)
        self.alone = tuple(alignment.alone)
        for target, sequence in self.pairs.items():
            both = [width_of(name) for name in (target, sequence)]
            if both[0] != both[1]:
                raise ValueError(f"target {target!r} has width {both[0]}, its sequence {sequence!r} has {both[1]}")
        alone = sum(width_of(name) for name in self.alone)
        paired = sum(width_of(name) for name in self.pairs)
        self.widths = tuple(width for width in (paired, alone) if width)
        self.target = nn.Parameter(torch.empty(alone).uniform_(-INITIAL, INITIAL)) if alone else None

    @property
    def width(self) -> int:
        """D."""
        return sum(self.widths)

    def query(self, vectors: Mapping[str, Tensor | Jagged], num_rows: int) -> Tensor:
        """The target of each row, [B, D]."""
        columns = [one_a_row(vectors, name) for name in self.pairs]
        if self.target is not None:
            columns.append(self.target.expand(num_rows, -1))
        return torch.cat(columns, dim=1)

    def keys(self, vectors: Mapping[str, Tensor | Jagged]) -> Jagged:
        """The events of each row, a Jagged of [N, D]. Raises ValueError naming sequences that are not aligned."""
        return side_by_side(vectors, [*self.pairs.values(), *self.alone])


def alignments(schema: FeatureSchema, inputs: Sequence[FeatureSpec]) -> dict[str, Alignment]:
    """Of every sequence group, by name, what is among a model's inputs; groups of which nothing is are left out.

    Raises ValueError for a schema or a choice of inputs without sequences, and for a sequence whose target is left out.
    """
    names = {spec.name for spec in inputs}
    found = {}
    for group in schema.sequences:
        whole = schema.alignment(group.name)
        pairs = {target: sequence for target, sequence in whole.pairs.items() if sequence in names}
        missing = [target for target in pairs if target not in names]
        if missing:
            raise ValueError(f"sequence {pairs[missing[0]]!r} is among the inputs, its target {missing[0]!r} is not")
        alone = tuple(sequence for sequence in whole.alone if sequence in names)
        if pairs or alone:
            found[group.name] = Alignment(pairs=pairs, alone=alone)
    if not found:
        raise ValueError(f"the model reads histories; of schema {schema.name!r} no sequence is among its inputs")
    return found


def other_inputs(inputs: Sequence[FeatureSpec], groups: Mapping[str, Alignment]) -> tuple[FeatureSpec, ...]:
    """The inputs that are no sequence of the groups: one vector a row each, the target's features among them."""
    sequences = {name for group in groups.values() for name in sequences_of(group)}
    return tuple(spec for spec in inputs if spec.name not in sequences)


def sequences_of(alignment: Alignment) -> tuple[str, ...]:
    """The names of a group's sequences, in the order of the keys."""
    return (*alignment.pairs.values(), *alignment.alone)


def hard_search(batch: Batch, alignment: Alignment, by: str, k: int) -> Batch:
    """The batch with only the k most recent events that share the target's id of feature `by` (Pi et al. 2020, "SIM").

    It compares ids and reads no table, so a long history costs no lookups. All unseen ids are one. A row may keep none.
    """
    kept, offsets = events_found(batch, alignment, by, k)
    cut = {name: Jagged(values=batch.jagged(name).values[kept], offsets=offsets) for name in sequences_of(alignment)}
    return replace(batch, features={**batch.features, **cut})


def events_found(batch: Batch, alignment: Alignment, by: str, k: int) -> tuple[Tensor, Tensor]:
    """The events that `hard_search` keeps: their indices, rising, and the offsets [B + 1] of what each row keeps."""
    events = batch.jagged(alignment.pairs[by])
    same = events.values == batch.ids(by).index_select(0, events.row_of_value)
    return last_k(same, events.offsets, k)


def side_by_side(vectors: Mapping[str, Tensor | Jagged], names: Sequence[str]) -> Jagged:
    """The vectors of aligned sequences, a Jagged of [N, all widths]; ValueError naming those that are not aligned."""
    lists = [several_a_row(vectors, name) for name in names]
    for name, other in zip(names, lists, strict=True):
        if not _aligned(lists[0], other):
            raise ValueError(f"sequences {names[0]!r} and {name!r} are of one history but differ in lengths")
    return lists[0].with_values(torch.cat([one.values for one in lists], dim=1))


def one_a_row(vectors: Mapping[str, Tensor | Jagged], name: str) -> Tensor:
    """The vectors [B, D] of a feature; ValueError for a list."""
    found = vectors[name]
    if isinstance(found, Jagged):
        raise ValueError(f"feature {name!r} is a target, it must be one id per row, not a list")
    return found


def several_a_row(vectors: Mapping[str, Tensor | Jagged], name: str) -> Jagged:
    """The vectors of a sequence, not pooled; ValueError for one vector a row."""
    found = vectors[name]
    if isinstance(found, Tensor):
        raise ValueError(f"sequence {name!r} came pooled; ask the collection for it with `unpooled`")
    return found


def _aligned(one: Jagged, other: Jagged) -> bool:
    """Whether both have the same rows; on an accelerator only their number is compared, which needs no wait."""
    if one.offsets is other.offsets or torch.compiler.is_exporting():
        return True
    if one.offsets.device.type != "cpu":
        return len(one.values) == len(other.values)
    return torch.equal(one.offsets, other.offsets)

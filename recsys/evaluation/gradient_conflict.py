"""How gradients of attention and of representation meet in the vectors of ids (Feng et al. 2025, "DARE", section 3).

Of every paired feature (a target and the sequence that repeats it) and every sequence that stands alone, the gradient
of the loss (of the logits that are served; an auxiliary loss is left out) is taken by each path (attention_paths.py)
and summed over the occurrences of an id in a batch, which is what a step does to the id's row:

    ratio     || gradients by attention || / || gradients by representation ||, over all ids and batches
    conflict  share of (id, batch) where both are there and their inner product is negative

On a shared table a ratio below 1 says that representation decides where vectors go, and a conflict that it does so
against attention. On tables of their own nothing meets, and the conflict is None.

Shapes: B rows, N occurrences, n ids, D width of a vector.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from features.batch import Batch, Jagged
from recsys.evaluation.attention_paths import Attentive, Paths, as_read, paths_of


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """What is known of one feature. table, attention_table: keys of the tables that the two paths read.

    ratio: None where representation has no gradient. by_id: row of the id -> (share of opposed batches, batches that
    it was seen in by both paths); empty on tables apart.
    """

    feature: str
    table: str
    attention_table: str
    attention_norm: float
    representation_norm: float
    conflict: float | None
    by_id: Mapping[int, tuple[float, int]]

    @property
    def ratio(self) -> float | None:
        """Attention : representation."""
        return self.attention_norm / self.representation_norm if self.representation_norm else None


class _Tally:
    """Sums of one feature over batches."""

    def __init__(self, num_ids: int) -> None:
        self.squares = torch.zeros(2, dtype=torch.float64)
        self.opposed = torch.zeros(num_ids, dtype=torch.int64)
        self.met = torch.zeros(num_ids, dtype=torch.int64)

    def add(self, attention: Tensor, representation: Tensor, shared: bool) -> None:
        """Gradients [n, D] of one batch by both paths."""
        self.squares += torch.stack([attention.double().square().sum(), representation.double().square().sum()])
        if shared:
            both = attention.any(1) & representation.any(1)
            self.met += both
            self.opposed += both & ((attention * representation).sum(1) < 0)


def conflicts(model: Attentive, batches: Iterable[Batch]) -> list[Conflict]:
    """Of each feature that attention reads, over the batches, at the weights that stand, in eval mode."""
    features = _features(model)
    tallies: dict[str, _Tally] = {}
    tables: dict[str, tuple[str, str]] = {}
    model.eval()
    for batch in batches:
        paths = paths_of(model, batch)
        by_attention, by_representation = _gradients(model, paths, batch)
        read = as_read(model, batch)
        for feature, columns in features.items():
            size = model.collection.table(feature).num_embeddings
            if size is None:
                continue  # hashed: rows are not counted
            tables[feature] = _tables(model, feature, paths)
            tally = tallies.setdefault(feature, _Tally(size))
            attention = _by_id(by_attention, read, columns, size)
            representation = _by_id(by_representation, read, columns, size)
            tally.add(attention, representation, shared=len(set(tables[feature])) == 1)
    return [_summary(feature, tables[feature], tally) for feature, tally in tallies.items()]


def _features(model: Attentive) -> dict[str, tuple[str, ...]]:
    """Feature -> the columns of a batch that hold its ids."""
    found: dict[str, tuple[str, ...]] = {}
    for group in model.groups.values():
        for target, sequence in group.pairs.items():
            found[target] = (*found.get(target, (target,)), sequence)
        found |= {sequence: (sequence,) for sequence in group.alone}
    return found


def _tables(model: Attentive, feature: str, paths: Paths) -> tuple[str, str]:
    own, attended = (model.collection.table_key(name) for name in (feature, paths.names[feature]))
    assert own is not None
    assert attended is not None
    return own, attended


def _gradients(model: Attentive, paths: Paths, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = batch.row_weights()
    loss = (model.losses(paths.logits, batch) * weights).sum() / weights.sum()
    leaves = [*paths.attention.values(), *paths.representation.values()]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    whole = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    count = len(paths.attention)
    return dict(zip(paths.attention, whole[:count], strict=True)), dict(
        zip(paths.representation, whole[count:], strict=True)
    )


def _by_id(gradients: Mapping[str, Tensor], batch: Batch, columns: tuple[str, ...], size: int) -> Tensor:
    """The gradients of all columns, summed by id, [n, D]."""
    found = [(gradients[name], batch[name]) for name in columns]
    total = found[0][0].new_zeros(size, found[0][0].shape[1])
    for gradient, column in found:
        total.index_add_(0, column.values if isinstance(column, Jagged) else column, gradient)
    return total


def _summary(feature: str, tables: tuple[str, str], tally: _Tally) -> Conflict:
    attention, representation = tally.squares.sqrt().tolist()
    met = int(tally.met.sum())
    ids = tally.met.nonzero()[:, 0].tolist()
    return Conflict(
        feature=feature,
        table=tables[0],
        attention_table=tables[1],
        attention_norm=attention,
        representation_norm=representation,
        conflict=int(tally.opposed.sum()) / met if met else None,
        by_id={one: (int(tally.opposed[one]) / int(tally.met[one]), int(tally.met[one])) for one in ids},
    )

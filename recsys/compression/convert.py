"""Trained tables into other tables: new rows such that each id's vector comes as near as it can to the one it had.

    minimise  sum_x w(x) | new(x) - old(x) |^2          w(x) = 1 + occurrences of x in train, over all readers

Where a table's vector is its rows side by side (a row per id, hashed, multiplexed in chunks), the minimum is known: a
row is the average of all that it stands for, weighted by w, over ids and readers. Rows that no id reads keep their
initial values. Other tables (products, sums, projections) are fitted by Adam on ids drawn in proportion to w; a table
that is multilinear in its rows has local minima, so that is an approximation of the least squares.

What is lost is measured, not promised: vectors of different readers have no common axes, so a multiplexed store filled
this way confuses what training from the start would have kept apart. It is meant for tables with few collisions, and
as a start for training. Another precision of the same rows is no matter of fitting (`recorded.py`). Methods that search
or train in stages are refused: what they find is found in training.

Shapes: N ids of a reader, P accesses of a store per id, d its width, D width of a vector, M rows of a store.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.table import EmbeddingTable

STEPS, IDS_PER_STEP, LEARNING_RATE = 600, 4096, 0.02
_IDS_AT_ONCE = 1 << 16


def convert_tables(source: EmbeddingCollection, target: EmbeddingCollection, encoder: Encoder) -> dict[str, float]:
    """Fill the stores and parameters of `target` from the vectors of `source`; returns what was lost, by reader.

    That is sum w |new - old|^2 / sum w |old|^2: 0 for equal vectors. target: in the plain backend, without optimizer.
    Raises ValueError naming the feature whose width differs or whose ids are hashed, hence not listed, and for a
    specification that trains in stages of its own.
    """
    if target.searches:
        raise ValueError(
            f"table {target.searches[0]!r} trains in stages of its own and cannot be made of trained vectors; "
            "give it to `recsys train`"
        )
    asked = _Wanted.all_of(source, target, encoder)
    uneven = {store.name for want in asked if not want.side_by_side for store in want.table.stores}
    fitted = [want for want in asked if uneven & {store.name for store in want.table.stores}]
    _average(target, [want for want in asked if want not in fitted])
    if fitted:
        _fit(target, fitted)
    return {want.key: want.lost(target) for want in asked}


class _Wanted:
    """What one table of the target should give: the vectors [N, D] of all its ids, and their weights [N]."""

    def __init__(self, key: str, feature: str, table: EmbeddingTable, vectors: Tensor, weights: Tensor) -> None:
        self.key, self.feature, self.table = key, feature, table
        self.vectors, self.weights = vectors, weights
        self.side_by_side = _is_side_by_side(table, len(vectors))

    @staticmethod
    def all_of(source: EmbeddingCollection, target: EmbeddingCollection, encoder: Encoder) -> list["_Wanted"]:
        """One for each table of the target, by its first feature."""
        first: dict[str, str] = {}
        for spec in target.schema.inputs:
            if (key := target.table_key(spec.name)) is not None:
                first.setdefault(key, spec.name)
        return [_Wanted.of(key, feature, source, target, encoder) for key, feature in first.items()]

    @staticmethod
    def of(
        key: str, feature: str, source: EmbeddingCollection, target: EmbeddingCollection, encoder: Encoder
    ) -> "_Wanted":  # fmt: skip
        number, counts = encoder.num_embeddings(feature), encoder.counts(feature)
        if number is None:
            raise ValueError(f"feature {feature!r} is hashed: its ids are not listed, so no row can be made of them")
        had, gets = source.embedding_dim(feature), target.embedding_dim(feature)
        if had != gets:
            raise ValueError(f"feature {feature!r} has vectors of {had}, the new table gives {gets}; they must agree")
        weights = torch.ones(number) if counts is None else 1.0 + counts
        return _Wanted(key, feature, target.table(feature), vectors_of(source, feature, number), weights.double())

    @torch.no_grad()
    def lost(self, target: EmbeddingCollection) -> float:
        """Share of the weighted squares that the target misses."""
        missed = (vectors_of(target, self.feature, len(self.vectors)) - self.vectors).double().square().sum(1)
        whole = self.vectors.double().square().sum(1)
        return float(missed @ self.weights) / max(float(whole @ self.weights), 1e-30)


@torch.no_grad()
def vectors_of(collection: EmbeddingCollection, feature: str, number: int) -> Tensor:
    """The vectors [N, D] of ids 0..number - 1."""
    parts = torch.arange(number).split(_IDS_AT_ONCE)
    return torch.cat([collection.lookup({"": (feature, ids)})[""] for ids in parts])


def _is_side_by_side(table: EmbeddingTable, number: int) -> bool:
    """Whether `combine` gives what it gets, in order, for every id: tried with vectors that differ in all places."""
    with torch.no_grad():
        return all(_is_plain(table, ids) for ids in torch.arange(number).split(_IDS_AT_ONCE))


def _is_plain(table: EmbeddingTable, ids: Tensor) -> bool:
    vectors = _numbered(table, ids)
    flat = [part.flatten(1) for part in vectors.values()]
    return bool(flat) and torch.equal(table.combine(vectors, ids), torch.cat(flat, 1))


def _numbered(table: EmbeddingTable, ids: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = {store.name: store.embedding_dim for store in table.stores}
    return {
        store: torch.randn(*rows.shape, widths[store], generator=generator) for store, rows in table.rows(ids).items()
    }


@torch.no_grad()
def _average(target: EmbeddingCollection, wanted: list[_Wanted]) -> None:
    weights = target.backend.weights()
    names = {store.name for want in wanted for store in want.table.stores}
    sums = {name: torch.zeros_like(weights[name], dtype=torch.float64) for name in names}  # [M, d]
    mass = {name: torch.zeros(len(weights[name]), dtype=torch.float64) for name in names}  # [M]
    for want in wanted:
        for ids in torch.arange(len(want.vectors)).split(_IDS_AT_ONCE):
            _add(want, ids, sums, mass)
    for name in names:
        read = mass[name] > 0
        weights[name][read] = (sums[name][read] / mass[name][read, None]).float()


def _add(want: _Wanted, ids: Tensor, sums: Mapping[str, Tensor], mass: Mapping[str, Tensor]) -> None:
    """What these ids ask of the rows that they read: their pieces of the vectors, weighted."""
    weight, start = want.weights[ids], 0
    for store, rows in want.table.rows(ids).items():
        width = rows.shape[1] * sums[store].shape[1]
        pieces = want.vectors[ids, start : start + width].double() * weight[:, None]  # [N, P d]
        sums[store].index_add_(0, rows.flatten(), pieces.reshape(-1, sums[store].shape[1]))
        mass[store].index_add_(0, rows.flatten(), weight[:, None].expand_as(rows).flatten())
        start += width


def _fit(target: EmbeddingCollection, wanted: list[_Wanted]) -> None:
    """Least squares by Adam, the step size falling to 0 as a cosine; draws are the same each time."""
    target.eval()  # what is served is fitted
    optimizer = torch.optim.Adam(target.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    heaps = [want.weights.cumsum(0) for want in wanted]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.zero_grad()
        requests, goals = {}, []
        for want, heap in zip(wanted, heaps, strict=True):
            drawn = torch.rand(min(IDS_PER_STEP, len(heap)), generator=generator, dtype=torch.float64) * heap[-1]
            ids = torch.searchsorted(heap, drawn).clamp_(max=len(heap) - 1)
            requests[want.key] = (want.feature, ids)
            goals.append(want.vectors[ids])
        found = target.lookup(requests)
        parts = [(found[want.key] - goal).square().mean() for want, goal in zip(wanted, goals, strict=True)]
        torch.stack(parts).sum().backward()
        optimizer.step()
    optimizer.zero_grad()

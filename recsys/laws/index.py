"""What every `Index` keeps, as plain functions over a way to build one; `check_index` runs them all.

A law raises `LawBroken` with what was asked and what came. `floor` is the recall against the exact index that an index
states for itself; 1 demands the exact lists, ties included. How fast an index answers is no law.

Shapes: n items, D embedding_dim, Q queries, K results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from recsys.retrieval.index import ExactIndex, Hits, Index

Build = Callable[[Tensor], Index]  # vectors [n, D] -> an index of them, positions 0..n - 1


class LawBroken(AssertionError):  # noqa: N818
    """An implementation does not keep a law."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What the laws are tried on. skew: the spread (sigma) of the log of the items' norms. k: the lengths asked for."""

    num_items: int = 2000
    embedding_dim: int = 16
    num_queries: int = 50
    skew: float = 0.6
    ks: tuple[int, ...] = (1, 10, 500)
    selectivities: tuple[float, ...] = (0.001, 0.01, 0.1, 0.5, 1.0)
    seed: int = 0

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Item vectors [n, D] of skewed norms and queries [Q, D], in eighths, so that inner products are exact."""
        generator = torch.Generator().manual_seed(self.seed)
        norms = torch.empty(self.num_items, 1).log_normal_(0, self.skew, generator=generator)
        items = torch.randn(self.num_items, self.embedding_dim, generator=generator) * norms
        queries = torch.randn(self.num_queries, self.embedding_dim, generator=generator)
        return (items * 8).round() / 8, (queries * 8).round() / 8

    def allowed(self, share: float) -> Tensor:
        """A bitmap [n] that allows about that share of the items, at least one."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        allowed = torch.rand(self.num_items, generator=generator) < share
        allowed[self.num_items // 2] = True
        return allowed


SMALL = World()


def hits_are_sorted_unique_and_padded(build: Build, world: World = SMALL) -> None:
    """Scores fall, ids are positions that occur once, and padding (-1, -inf) stands only at the end."""
    items, queries = world.vectors()
    index = build(items)
    for k in world.ks:
        hits = index.search(queries, k)
        _require(list(hits.ids.shape) == [len(queries), k] == list(hits.scores.shape), f"k = {k} gave {hits.ids.shape}")
        _check_rows(hits, len(items))


def scores_are_inner_products(build: Build, world: World = SMALL) -> None:
    """The score of a hit is the inner product of the query with that item's vector, to 1e-4 of the largest."""
    items, queries = world.vectors()
    hits = build(items).search(queries, max(world.ks))
    expected = (queries @ items.T).gather(1, hits.ids.clamp(min=0))
    wrong = ((hits.scores - expected).abs() > 1e-4 * expected.abs().max()) & (hits.ids >= 0)
    _require(not bool(wrong.any()), f"{int(wrong.sum())} scores differ from the inner product")


def nothing_outside_allowed(build: Build, world: World = SMALL) -> None:
    """No hit is outside the bitmap, at any selectivity; an empty bitmap gives no hits."""
    items, queries = world.vectors()
    index = build(items)
    for share in world.selectivities:
        allowed = world.allowed(share)
        hits = index.search(queries, max(world.ks), allowed)
        found = hits.ids[hits.ids >= 0]
        _require(bool(allowed[found].all()), f"selectivity {share}: returned an item that is not allowed")
        _check_rows(hits, len(items))
    empty = index.search(queries, 3, torch.zeros(len(items), dtype=torch.bool))
    _require(bool((empty.ids == -1).all()), "an empty bitmap still gave hits")


def recall_reaches_its_floor(build: Build, world: World = SMALL, floor: float = 1.0) -> None:
    """Of the exact top k the share `floor` is found, for every k and selectivity; with floor 1 in the same order."""
    items, queries = world.vectors()
    index, exact = build(items), ExactIndex(items)
    for k in world.ks:
        for allowed in [None, *(world.allowed(share) for share in world.selectivities)]:
            hits, truth = index.search(queries, k, allowed), exact.search(queries, k, allowed)
            recall = index_recall(hits, truth)
            share = 1.0 if allowed is None else float(allowed.float().mean())
            _require(recall >= floor, f"recall@{k} of the exact lists is {recall:.4f} at selectivity {share:.3f}")
            same_order = floor < 1 or torch.equal(hits.ids, truth.ids)
            _require(same_order, f"k = {k}, selectivity {share:.3f}: not in the exact order")


def several_vectors_score_by_their_best(build: Build, world: World = SMALL, floor: float = 1.0) -> None:
    """A query of M vectors finds what scores highest for any of them; M equal vectors find what one finds."""
    items, queries = world.vectors()
    index, k = build(items), world.ks[-1]
    several = torch.stack([queries, queries.flip(0), -queries], dim=1)  # [Q, 3, D]
    recall = index_recall(index.search(several, k), ExactIndex(items).search(several, k))
    _require(recall >= floor, f"recall@{k} with 3 vectors a query is {recall:.4f}")
    one, same = index.search(queries, k), index.search(queries[:, None].expand(-1, 3, -1), k)
    _require(torch.equal(one.ids, same.ids), "three equal vectors found other items than one")


def saving_changes_nothing(build: Build, world: World = SMALL) -> None:
    """A loaded index gives the same ids and the same scores, bit for bit, and saves to the same bytes."""
    items, queries = world.vectors()
    index, allowed = build(items), world.allowed(0.1)
    with TemporaryDirectory() as folder:
        index.save(Path(folder, "one"))
        loaded = type(index).load(Path(folder, "one"))
        loaded.save(Path(folder, "two"))
        for bitmap in (None, allowed):
            before, after = index.search(queries, 10, bitmap), loaded.search(queries, 10, bitmap)
            same = torch.equal(before.ids, after.ids) and torch.equal(before.scores, after.scores)
            _require(same, "a loaded index answers differently")
        _require(_contents(Path(folder, "one")) == _contents(Path(folder, "two")), "saving twice gave other bytes")


def more_than_there_is_is_padded(build: Build, world: World = SMALL) -> None:
    """K above n, or above what is allowed, gives all there is, then padding; an index of nothing gives padding."""
    items, queries = world.vectors()
    hits = build(items[:7]).search(queries, 12)
    _require(bool((hits.counts == 7).all()), f"7 items and k = 12 gave {hits.counts.tolist()}")
    allowed = torch.zeros(len(items), dtype=torch.bool).index_fill(0, torch.tensor([3, 5]), True)
    counts = build(items).search(queries, 12, allowed).counts
    _require(bool((counts == 2).all()), f"2 allowed items and k = 12 gave {counts.tolist()}")
    nothing = build(items[:0]).search(queries, 2)
    _require(
        bool((nothing.ids == -1).all()) and list(nothing.ids.shape) == [len(queries), 2], "an empty index gave hits"
    )


def bad_input_is_refused(build: Build, world: World = SMALL) -> None:
    """K below 1, a wrong dimension, NaN or infinity, and a wrong bitmap raise ValueError; so do vectors with NaN."""
    items, queries = world.vectors()
    index = build(items)
    broken = queries.clone()
    broken[1, 0] = torch.nan
    for wrong in (broken, broken.nan_to_num(torch.inf), queries[:, 1:], queries[0], queries.long()):
        _refuses(f"queries {list(wrong.shape)} {wrong.dtype}", partial(index.search, wrong, 3))
    for k in (0, -1):
        _refuses(f"k = {k}", partial(index.search, queries, k))
    for bitmap in (torch.ones(len(items)), torch.ones(len(items) - 1, dtype=torch.bool)):
        _refuses("a wrong bitmap", partial(index.search, queries, 3, bitmap))
    _refuses("vectors with NaN", lambda: build(torch.full((3, world.embedding_dim), torch.nan)))


def equal_scores_rank_by_position(build: Build, world: World = SMALL) -> None:
    """Where all items score the same, the hits are the lowest positions, in order. For exact indexes."""
    items = torch.ones(world.num_items, world.embedding_dim)
    hits = build(items).search(torch.ones(2, world.embedding_dim), 10)
    _require(hits.ids.tolist() == [list(range(10))] * 2, f"equal scores gave {hits.ids.tolist()}")


def check_index(build: Build, floor: float = 1.0, world: World = SMALL) -> None:
    """Every law; the one on ties is asked of exact indexes (floor 1) alone."""
    for law in LAWS:
        law(build, world)
    recall_reaches_its_floor(build, world, floor)
    several_vectors_score_by_their_best(build, world, floor)
    if floor == 1:
        equal_scores_rank_by_position(build, world)


LAWS: tuple[Callable[[Build, World], None], ...] = (
    hits_are_sorted_unique_and_padded,
    scores_are_inner_products,
    nothing_outside_allowed,
    saving_changes_nothing,
    more_than_there_is_is_padded,
    bad_input_is_refused,
)


def index_recall(hits: Hits, truth: Hits) -> float:
    """The share of the exact hits that were found, over all queries; 1 when there is nothing to find."""
    wanted = truth.ids >= 0
    found = (truth.ids[:, :, None] == hits.ids[:, None, :]).any(2) & wanted
    return float(found.sum()) / max(int(wanted.sum()), 1)


def _check_rows(hits: Hits, num_items: int) -> None:
    real = hits.ids >= 0
    _require(bool((hits.scores[:, :-1] >= hits.scores[:, 1:]).all()), "scores are not sorted")
    _require(bool((real.int().diff() <= 0).all()), "a hit stands behind padding")
    _require(bool((hits.ids[real] < num_items).all()), "an id is no position")
    _require(bool((hits.scores[~real] == float("-inf")).all()), "padding has a score")
    for row, mask in zip(hits.ids, real, strict=True):
        _require(len(row[mask].unique()) == int(mask.sum()), "an item stands twice in one list")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _refuses(what: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except ValueError:
        return
    raise LawBroken(f"{what} was accepted")


def _require(kept: bool, fault: str) -> None:
    if not kept:
        raise LawBroken(fault)

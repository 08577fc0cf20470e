"""`Planted`: a world of browsing and impressions in which relevance and meaning of a past view are planted apart.

It is made to tell models of long histories apart, as logs of people cannot: what attention should find is known. Each
user views `length` items, then is shown one item after every `views_between` further views. Of an impression of target
category t after views of categories c_1, ..., c_L, which lie s_j seconds back:

    relevance    r_j = nearness * cos(angle of c_j - angle of t) - forgetting * (1 + floor(log2(1 + s_j)))
    weight       w_j = softmax_j(r_j)
    meaning      G[c, t] = sum over r of sign_r z_r[c] z_r[t] / sqrt(rank)
    logit        bias + gain * sum_j w_j G[c_j, t]

Categories lie on a circle, so relevance has two dimensions: alike categories lie near each other. Meaning has `rank`
others, drawn without a look at the circle, with as many negative signs as positive: a category that is all but the
target's may speak for a click (more of it is wanted) or against one (the need is met). So attention wants alike
categories to have like vectors, and representation wants half of them to have opposite ones; vectors that serve both
need `rank` + 2 dimensions and a way to tell them apart. That is the conflict of "Long-Sequence Recommendation Models
Need Decoupled Embeddings" (Feng et al. 2025), in the form of its model: the truth is a softmax over a sum of a category
and a time term, so a model of that form can reach the ceiling. Items but for their category, and users but for what
they view, have no part in a click. Views have click = -1: they are history, no examples.

Arithmetic that may differ between machines in its last bits is rounded: probabilities before they are compared with a
random number.

Shapes: U users, C categories, V views of a user, T impressions of a user, L length of a history.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.random import Generator
from numpy.typing import NDArray

from features.shop_world import START
from features.world_tables import WorldTables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FIRST_ITEM = 10_000
MAX_LOGIT = 9.0  # no click is certain
NOT_SHOWN = -1  # the click of a view
MAX_DOUBLINGS = 8  # events of a user are 1, 2, 4, ... or 128 minutes apart


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Sizes, and how strong each cause is (see the module docstring).

    interests: categories of a user's own. exploring: share of views of any category. aimed: share of impressions of
    the user's own categories.
    """

    num_users: int = 1_500
    num_items: int = 800
    num_categories: int = 40
    length: int = 200
    num_impressions: int = 40
    views_between: int = 3
    interests: int = 8
    exploring: float = 0.3
    aimed: float = 0.7
    rank: int = 16
    nearness: float = 5.0
    forgetting: float = 0.6
    bias: float = -0.5
    gain: float = 4.0

    def make(self, rng: Generator) -> WorldTables:
        """Tables from a generator."""
        truth = _truth(rng, self)
        category = rng.permutation(np.arange(self.num_items) % self.num_categories)  # [I]
        users = [_person(rng, self, truth, category) for _ in range(self.num_users)]
        items = FIRST_ITEM + np.arange(self.num_items)
        names = pa.array([f"category {number:02d}" for number in category])
        return WorldTables(
            events=_event_table(users),
            users=pa.table({"user": _names(np.arange(self.num_users))}),
            items=pa.table({"item": items, "category": names}),
            triples=pa.table({
                "head": pa.array([f"item:{item}" for item in items]),
                "relation": pa.array(["is_a"] * len(items)),
                "tail": pa.array([f"category:{name}" for name in names.to_pylist()]),
            }),
        )  # fmt: skip

    @property
    def num_views(self) -> int:
        """V."""
        return self.length + self.views_between * (self.num_impressions - 1)


@dataclass(frozen=True)
class _Truth:
    """By category of a view and of a target, [C, C] each."""

    relevance: Floats
    meaning: Floats


@dataclass(frozen=True)
class _Events:
    """A user's events in time order, [V + T] each."""

    item: Ints
    time: Ints
    click: Ints
    probability: Floats


def _truth(rng: Generator, world: Planted) -> _Truth:
    place = rng.permutation(world.num_categories)
    apart = np.abs(place[:, None] - place)
    vectors = np.round(rng.standard_normal((world.num_categories, world.rank)), 4)
    signs = 1 - 2 * (np.arange(world.rank) % 2)
    return _Truth(
        relevance=np.round(world.nearness * np.cos(2 * np.pi * apart / world.num_categories), 6),
        meaning=np.round((vectors * signs) @ vectors.T / np.sqrt(world.rank), 6),
    )


def _person(rng: Generator, world: Planted, truth: _Truth, category: Ints) -> _Events:
    own = rng.permutation(world.num_categories)[: world.interests]
    shares = np.cumsum(0.2 + rng.random(world.interests))
    liked = own[np.searchsorted(shares, rng.random(world.num_views) * shares[-1], side="right")]
    views = np.where(rng.random(world.num_views) < world.exploring, _any(rng, world, world.num_views), liked)  # [V]
    count = world.num_impressions
    aimed = rng.random(count) < world.aimed
    targets = np.where(aimed, own[_whole(rng.random(count) * world.interests)], _any(rng, world, count))  # [T]
    before = world.length + world.views_between * np.arange(count)  # views before each impression
    categories = np.insert(views, before, targets)
    shown = np.insert(np.zeros(world.num_views, bool), before, True)
    time = START + np.cumsum(60 << _whole(rng.random(len(categories)) * MAX_DOUBLINGS))
    probability = np.zeros(len(categories))
    probability[shown] = _probability(world, truth, views, targets, time[~shown], time[shown])
    click = np.where(shown, rng.random(len(categories)) < probability, NOT_SHOWN)
    return _Events(_items_of(rng, categories, category), time, click, probability)


def _probability(
    world: Planted, truth: _Truth, views: Ints, targets: Ints, viewed: Ints, shown: Ints
) -> Floats:  # fmt: skip
    """Of a click at each impression [T]; views and their times [V], targets and their times [T]."""
    first = world.views_between * np.arange(len(targets))[:, None]
    seen = first + np.arange(world.length)  # [T, L]
    doublings = np.frexp(1.0 + (shown[:, None] - viewed[seen]))[1]
    relevance = truth.relevance[views[seen], targets[:, None]] - world.forgetting * doublings
    weights = np.exp(relevance - relevance.max(axis=1, keepdims=True))
    weighted = weights * truth.meaning[views[seen], targets[:, None]]
    logits = world.bias + world.gain * weighted.sum(axis=1) / weights.sum(axis=1)
    probability: Floats = np.round(1 / (1 + np.exp(-np.clip(logits, -MAX_LOGIT, MAX_LOGIT))), 6)
    return probability


def _items_of(rng: Generator, categories: Ints, category: Ints) -> Ints:
    """An item, all alike probable, of each category asked for; category [I] of the items."""
    order = np.argsort(category, kind="stable")
    ends = np.searchsorted(category[order], np.arange(category.max() + 2))
    low, high = ends[categories], ends[categories + 1]
    items: Ints = FIRST_ITEM + order[low + _whole(rng.random(len(categories)) * (high - low))]
    return items


def _event_table(users: list[_Events]) -> pa.Table:
    user = np.repeat(np.arange(len(users)), [len(events.item) for events in users])
    time = np.concatenate([events.time for events in users])
    order = np.lexsort((user, time))
    click = np.concatenate([events.click for events in users])[order]
    return pa.table({
        "user": _names(user[order]),
        "item": np.concatenate([events.item for events in users])[order],
        "timestamp": time[order],
        "viewed": (click == NOT_SHOWN).astype(np.int8),
        "click": click.astype(np.int8),
        "probability": np.concatenate([events.probability for events in users])[order],
    })  # fmt: skip


def _names(users: Ints) -> pa.Array:
    return pa.array([f"u{user:05d}" for user in users])


def _any(rng: Generator, world: Planted, count: int) -> Ints:
    return _whole(rng.random(count) * world.num_categories)


def _whole(numbers: Floats) -> Ints:
    return np.floor(numbers).astype(np.int64)

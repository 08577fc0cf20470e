"""Embedded demo data with a known truth: `WORLDS`, by name, and `generate`.

A world is a seeded generator of logs in which the probability of every click stands beside it, so that a model can be
judged against the best that any model could reach. A published world never changes (its content hash is pinned by a
test); another wish is another world. Nothing here describes real people or shops.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from features.shop_world import Shop
from features.world_tables import WorldTables


@dataclass(frozen=True, kw_only=True)
class World:
    """A named world: its seed, what makes its tables from a generator, and the content hash that it then has."""

    seed: int
    make: Callable[[Generator], WorldTables]
    content_hash: str


def generate(name: str, seed: int | None = None) -> WorldTables:
    """The tables of a world, in under a few seconds; another seed gives another world of the same kind."""
    if name not in WORLDS:
        raise ValueError(f"there is no world {name!r}; there are {', '.join(WORLDS)}")
    world = WORLDS[name]
    return world.make(np.random.default_rng(world.seed if seed is None else seed))


WORLDS: Mapping[str, World] = {
    "demo": World(
        seed=6,
        make=Shop().make,
        content_hash="3afd55d8d7d373711e47d9442787c194f9dc6e59ba4ffa337ff45ae38252542c",
    ),
    "small": World(
        seed=6,
        make=Shop(num_users=300, num_items=200, num_events=8_000).make,
        content_hash="f4019d1ac034bda6dfe1be00c967f8bcb4cd73f05a3bb39bb560e5aa14aeb702",
    ),
}

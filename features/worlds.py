"""Embedded demo data with a known truth: `WORLDS`, by name, `open_world`, and `generate` for those that fit in memory.

A world is a seeded generator of logs in which the probability of every click stands beside it, so that a model can be
judged against the best that any model could reach. A published world never changes (its content hash is pinned by a
test); another wish is another world. Nothing here describes real people or shops.

    demo, small            impressions of items to users over 30 days (`shop_world`)
    bigids, bigids_small   clicks over features with millions of ids, made batch by batch (`bigids_world`)
    planted, planted_small long histories of which few events matter, to each target others (`planted_world`)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from features.bigids_world import FEW_IDS, BigIds
from features.planted_world import Planted
from features.shop_world import Shop
from features.world_tables import WorldData, WorldTables


@dataclass(frozen=True, kw_only=True)
class World:
    """A named world: its seed, what makes its data from a generator, and the content hash that they then have."""

    seed: int
    make: Callable[[Generator], WorldData]
    content_hash: str


def open_world(name: str, seed: int | None = None) -> WorldData:
    """The data of a world, which is made as it is read; another seed gives another world of the same kind."""
    if name not in WORLDS:
        raise ValueError(f"there is no world {name!r}; there are {', '.join(WORLDS)}")
    world = WORLDS[name]
    return world.make(np.random.default_rng(world.seed if seed is None else seed))


def generate(name: str, seed: int | None = None) -> WorldTables:
    """The tables of a world that fits in memory, in under a few seconds."""
    made = open_world(name, seed)
    if not isinstance(made, WorldTables):
        raise ValueError(f"world {name!r} has no tables, only a stream of events; read it through open_world")
    return made


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
    "bigids": World(
        seed=7,
        make=BigIds().make,
        content_hash="b577774d222c452190e7834c6d6fe1010d8df802aa3cbd964cba42ca0489a574",
    ),
    "bigids_small": World(
        seed=7,
        make=BigIds(num_rows=50_000, cardinalities=FEW_IDS).make,
        content_hash="ab326ddbfa1c814c2e8d6609a63b9f659452515028a777b4c66afe152ea1bb53",
    ),
    "planted": World(
        seed=8,
        make=Planted().make,
        content_hash="00b9f68615cbb1d64343fad02f936b44bd083beb5baf34cf242e554d32a4400a",
    ),
    "planted_small": World(
        seed=8,
        make=Planted(num_users=60, num_items=120, num_categories=12, length=40, num_impressions=20).make,
        content_hash="40ecfad30ae3f026a787fc2e83ac258915b56ecf18562af35aa0eccc689d08b6",
    ),
}

"""A world with known answers: user u likes item i exactly when u + i is even.

No popularity, no attribute and no single id tells what a user likes, only the pair does. For each user one liked and
one disliked item are held out. It is a `DataView` in memory, so a model trains on it through its own phases.

Shapes: B rows, E rows of the world, L length of a history.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import FeatureSchema, parse_schema

NUM_USERS, NUM_ITEMS, NUM_TAGS = 24, 16, 5
INPUTS = ("user", "item", "history", "tags", "age", "price")


@dataclass(frozen=True, kw_only=True)
class Checkerboard:
    """Some rows (user, item, liked) of the world, and its catalogue.

    encoder: knows the schema and its vocabularies. users, items: positions, [E] int64. liked: [E] float32.
    """

    encoder: Encoder
    users: Tensor
    items: Tensor
    liked: Tensor

    @staticmethod
    def of(inputs: Sequence[str] = INPUTS) -> "Checkerboard":
        """All rows but the held-out ones, under a schema with the named features ("user" and "item" always)."""
        users, items = torch.cartesian_prod(torch.arange(NUM_USERS), torch.arange(NUM_ITEMS)).unbind(1)
        held_out = torch.cat([held_out_item(users, liked=True)[:, None], held_out_item(users, liked=False)[:, None]], 1)
        kept = (held_out != items[:, None]).all(1)
        users, items = users[kept], items[kept]
        encoder = Encoder.fit(_schema(inputs), _frame())
        return Checkerboard(encoder=encoder, users=users, items=items, liked=((users + items) % 2 == 0).float())

    def rows(self, chosen: Tensor) -> "Checkerboard":
        """Some of the rows, by number or mask."""
        return replace(self, users=self.users[chosen], items=self.items[chosen], liked=self.liked[chosen])

    def positives(self) -> "Checkerboard":
        """The liked rows, which are what a retriever trains on."""
        return self.rows(self.liked > 0)

    # --- DataView ---

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return NUM_ITEMS

    def loader(
        self, batch_size: int, *, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ) -> "MemoryLoader":
        """Batches of these rows; one rank only."""
        return MemoryLoader(self, batch_size, seed, shuffle)

    def interactions(self) -> csr_matrix:
        """The liked rows, binary [num users, num items]."""
        liked = self.positives()
        ones = np.ones(len(liked.users), dtype=np.float32)
        return csr_matrix((ones, (liked.users.numpy(), liked.items.numpy())), shape=(NUM_USERS, NUM_ITEMS))

    def user_batch(self, users: Tensor) -> Batch:
        """The features of users; the history is every item that they like in these rows."""
        return self._inputs("user", users, users, torch.full_like(users, -1))

    def item_batch(self, items: Tensor) -> Batch:
        """The features of items."""
        return self._inputs("item", items, items, items)

    def batch(self, users: Tensor, items: Tensor) -> Batch:
        """Rows of users and items [B] as a loader gives them: a history lacks the row's own item."""
        features = {**self._inputs("user", users, users, items).features, **self.item_batch(items).features}
        liked = ((users + items) % 2 == 0).float()
        return Batch(features=features, labels={"liked": liked}, row_ids=torch.arange(len(users)))

    def _inputs(self, entity: str, positions: Tensor, users: Tensor, targets: Tensor) -> Batch:
        names = [spec.name for spec in self.encoder.schema.inputs if spec.entity == entity]
        columns = {name: self._column(name, positions, users, targets) for name in names}
        return Batch(features=columns)

    def _column(self, name: str, positions: Tensor, users: Tensor, targets: Tensor) -> Tensor | Jagged:
        if name in ("user", "item"):
            return positions + 1  # row 0 of a vocabulary is the unseen id
        if name == "tags":
            return Jagged.from_lists([[tag + 1 for tag in tags_of(item)] for item in positions.tolist()])
        if name == "history":
            return Jagged.from_lists(
                [self._history(*pair) for pair in zip(users.tolist(), targets.tolist(), strict=True)]
            )
        return torch.sin(positions * (1.7 if name == "age" else 2.3))  # dense, and of no use

    def _history(self, user: int, target: int) -> list[int]:
        liked = self.items[(self.users == user) & (self.liked > 0)].tolist()
        return [item + 1 for item in liked if item != target]


class MemoryLoader:
    """Batches of a world's rows, shuffled by (seed, epoch)."""

    def __init__(self, world: Checkerboard, batch_size: int, seed: int, shuffle: bool) -> None:
        self.world = world
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle

    @property
    def num_batches(self) -> int:
        """Batches of an epoch; the last may be short."""
        return -(-len(self.world.users) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        """The batches from `start` on, each with the number of the next."""
        num_rows = len(self.world.users)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(num_rows, generator=generator) if self.shuffle else torch.arange(num_rows)
        for index, rows in list(enumerate(order.split(self.batch_size)))[start:]:
            yield self.world.batch(self.world.users[rows], self.world.items[rows]), index + 1


def held_out_item(users: Tensor, liked: bool) -> Tensor:
    """The liked, or disliked, item of each user that no row holds."""
    parity = users % 2 if liked else 1 - users % 2
    return (users // 2 * 2) % NUM_ITEMS + parity


def tags_of(item: int) -> list[int]:
    """One or two tags, which tell nothing."""
    return sorted({item % NUM_TAGS, item // 4})


def _schema(inputs: Sequence[str]) -> FeatureSchema:
    features = {
        "user": {"table": "ids"},
        "item": {"table": "ids"},
        "tags": {"kind": "id_list", "entity": "item", "table": "ids"},
        "age": {"kind": "dense", "entity": "user"},
        "price": {"kind": "dense", "entity": "item"},
    }
    named = {name: spec for name, spec in features.items() if name in ("user", "item", *inputs)}
    history = {"past": {"of": {"history": "item"}, "max_length": NUM_ITEMS, "ordered": False}}
    values = {"name": "checkerboard", "user": "user", "item": "item", "features": named, "labels": {"liked": {}}}
    return parse_schema(values | ({"sequences": history} if "history" in inputs else {}), where="checkerboard")


def _frame() -> pd.DataFrame:
    """Every user, item and tag at least once, for the vocabularies."""
    rows = range(NUM_USERS * NUM_ITEMS)
    return pd.DataFrame(
        {
            "user": [row // NUM_ITEMS for row in rows],
            "item": [row % NUM_ITEMS for row in rows],
            "tags": ["|".join(map(str, tags_of(row % NUM_ITEMS))) for row in rows],
            "age": 0.0,
            "price": 0.0,
            "liked": 0.0,
        }
    )

"""A made-up batch of a schema whose histories have a pair of sequences of items, an action that only past events have,
and an age; for the tests of models that read histories.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import parse_schema
from recsys.config import ModelConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.store import Normal
from recsys.models import make_model
from recsys.models.interface import Ranker

ACTIONS = ("click", "buy", "skip")
SCHEMA = parse_schema(
    {
        "name": "aligned",
        "user": "user",
        "item": "item",
        "timestamp": "time",
        "features": {
            "user": {"table": "ids"},
            "item": {"table": "ids"},
            "category": {"entity": "item", "table": "ids"},
            "action": {"table": "actions", "history_only": True},
            "price": {"kind": "dense", "entity": "item"},
        },
        "sequences": {
            "past": {
                "of": {"history": "item", "history_category": "category", "history_action": "action"},
                "max_length": 9,
                "age": {"name": "history_age", "by": "position", "table": "actions"},
            }
        },
        "labels": {"click": {}},
    },
    where="aligned world",
)
LENGTHS = (3, 0, 9, 1, 5, 2)


def encoder() -> Encoder:
    """Twelve items, four categories, three actions, six users."""
    ids: dict[str, list[Any]] = {
        "user": list(range(6)),
        "item": list(range(12)),
        "category": list("abcd"),
        "action": list(ACTIONS),
    }
    return Encoder.from_counts(SCHEMA, {name: (raw, [1] * len(raw)) for name, raw in ids.items()})


def batch(seed: int = 0) -> Batch:
    """Six rows; the category of an item is its row modulo 4."""
    generator = torch.Generator().manual_seed(seed)

    def ids(high: int, count: int) -> Tensor:
        return torch.randint(1, high, (count,), generator=generator)

    item, past = ids(13, 6), ids(13, sum(LENGTHS))
    columns = {
        "history": past,
        "history_category": past % 4 + 1,
        "history_action": ids(4, sum(LENGTHS)),
        "history_age": torch.cat([torch.arange(length, 0, -1) for length in LENGTHS]),
    }
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return Batch(
        features={
            "user": torch.arange(1, 7),
            "item": item,
            "category": item % 4 + 1,
            "price": torch.rand(6, generator=generator),
            **{name: Jagged(values=values, offsets=offsets) for name, values in columns.items()},
        },
        labels={"click": (torch.arange(6) % 2).float()},
        row_ids=torch.arange(6),
    )


def model(name: str, features: Sequence[str] = (), options: Mapping[str, object] | None = None) -> Ranker:
    """A model over this world, its tables plain and without an optimizer: ids of width 4, actions and ages of 3."""
    section = {"features": tuple(features), **(options or {})}
    specs = {"ids": DenseTable(embedding_dim=4, init=Normal(std=1.0)), "actions": DenseTable(embedding_dim=3)}
    collection = EmbeddingCollection(encoder(), specs, backend="plain")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = make_model(ModelConfig(name=name, options=section), encoder(), collection)
    assert isinstance(made, Ranker)
    return made

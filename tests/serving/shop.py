"""A tiny shop, made by hand without files: users, items, histories and models with random weights, and bundles of them.

Item 90 is in the catalogue and in no event (cold); user 50 is in neither. Shapes are those of the real thing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from features.batch import Batch
from features.encoder import Encoder
from features.entities import EntityTable
from features.histories import Histories
from features.history_files import EventChunk
from features.spec import FeatureSchema, parse_schema
from recsys.bundle import Bundle, BundleStore
from recsys.components import ExportView, Roles, export_ranker, export_retriever
from recsys.compression import make_collection
from recsys.config import ModelConfig, TablesConfig
from recsys.models import make_model
from recsys.models.interface import ClosedForm, Ranker, Retriever

NUM_USERS, NUM_ITEMS, EVENTS_EACH = 12, 40, 7
COLD_ITEM, NEW_USER = 90, 50
IDS = {"method": "dense", "embedding_dim": 8, "init": {"kind": "normal", "std": 1.0}}
TABLES = TablesConfig.model_validate({"backend": "plain", "ids": IDS})


def shop_schema(ordered: bool = True, unseen: str = "own_row") -> FeatureSchema:
    """Users with a gender and an age, items with a category and a price, clicks at an hour."""
    user_id = {"entity": "user", "table": "ids", "unseen": unseen}
    features: dict[str, Any] = {
        "user_id": user_id,
        "gender": {"entity": "user", "table": "ids"},
        "age": {"entity": "user", "kind": "dense", "missing": 0.0},
        "item_id": {"entity": "item", "table": "ids"},
        "category": {"entity": "item", "table": "ids"},
        "price": {"entity": "item", "kind": "dense", "missing": 0.0},
        "hour": {"table": "ids"},
        "device": {"table": "ids", "missing": "refuse"},
    }
    of = {"history": "item_id", "history_category": "category", "history_hour": "hour"}
    sequences = {"past": {"of": of, "max_length": 5, "ordered": ordered}}
    labels: dict[str, Any] = {"click": {}, "buy": {}}
    named = {"name": "shop", "user": "user_id", "item": "item_id", "timestamp": "time"}
    parts = {"features": features, "sequences": sequences, "labels": labels}
    return parse_schema(named | parts, where="shop")


@dataclass(frozen=True, kw_only=True)
class ShopData:
    """What `features.prepared.Prepared` gives, made in memory."""

    path: Path
    schema: FeatureSchema
    encoder: Encoder
    users: EntityTable | None
    items: EntityTable | None
    histories: Histories | None
    splits: tuple[str, ...] = ("train",)


@dataclass(frozen=True, kw_only=True)
class ShopView:
    """What `features.prepared.View` gives."""

    prepared: ShopData
    events: pa.Table
    splits: tuple[str, ...] = ("train",)

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        assert self.prepared.items is not None
        return len(self.prepared.items)

    def interactions(self) -> csr_matrix:
        """Who has what."""
        assert self.prepared.users is not None
        assert self.prepared.items is not None
        users = self.prepared.users.positions(self.events["user_id"]).numpy()
        items = self.prepared.items.positions(self.events["item_id"]).numpy()
        shape = (len(self.prepared.users), len(self.prepared.items))
        matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
        matrix.data[:] = 1.0
        return matrix

    def user_batch(self, users: Tensor) -> Batch:
        """Features and histories of users."""
        data = self.prepared
        assert data.users is not None
        assert data.items is not None
        columns = dict(data.users.gather(users).features)
        for group in data.schema.sequences if data.histories else ():
            assert data.histories is not None
            columns |= data.histories.cut(group, users.numpy(), np.full(len(users), -1), data.items)
        return Batch(features=columns)

    def item_batch(self, items: Tensor) -> Batch:
        """Features of items."""
        assert self.prepared.items is not None
        return self.prepared.items.gather(items)


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The shop's data and what is made of it. texts: whether ids are texts ("u3", "i7") and not numbers."""

    folder: Path
    schema: FeatureSchema
    texts: bool = False

    def user(self, number: int) -> int | str:
        """The raw id of a user."""
        return f"u{number:03}" if self.texts else number

    def item(self, number: int) -> int | str:
        """The raw id of an item."""
        return f"i{number:03}" if self.texts else number

    @cached_property
    def events(self) -> pa.Table:
        """Each user has EVENTS_EACH different items, in time order."""
        random = np.random.default_rng(0)
        rows = [(u, int(i)) for u in range(NUM_USERS) for i in random.permutation(NUM_ITEMS)[:EVENTS_EACH]]
        return pa.table(
            {
                "user_id": [self.user(u) for u, _ in rows],
                "item_id": [self.item(i) for _, i in rows],
                "hour": [i % 5 for i in range(len(rows))],
                "device": ["phone" if i % 2 else "desk" for i in range(len(rows))],
                "time": list(range(len(rows))),
            }
        )

    @cached_property
    def items(self) -> pa.Table:
        """The raw item table, the cold item last."""
        numbers = [*range(NUM_ITEMS), COLD_ITEM]
        categories = [None if n == 3 else f"c{n % 4}" for n in numbers]
        ids = [self.item(n) for n in numbers]
        return pa.table({"item_id": ids, "category": categories, "price": [float(n % 7) for n in numbers]})

    @cached_property
    def users(self) -> pa.Table:
        """The raw user table."""
        ids = [self.user(u) for u in range(NUM_USERS)]
        genders, ages = ["f" if u % 3 else "m" for u in range(NUM_USERS)], [20.0 + u for u in range(NUM_USERS)]
        return pa.table({"user_id": ids, "gender": genders, "age": ages})

    @cached_property
    def data(self) -> ShopData:
        """Encoder, entity tables and histories."""
        joined = self.events.join(self.users, "user_id").join(self.items, "item_id")
        encoder = Encoder.fit(self.schema, joined)
        users = EntityTable.build(self.schema, encoder, "user", self.users, self.events["user_id"])
        items = EntityTable.build(self.schema, encoder, "item", self.items, self.events["item_id"])
        histories = self._histories(encoder, users, items)
        return ShopData(
            path=self.folder, schema=self.schema, encoder=encoder, users=users, items=items, histories=histories
        )

    def _histories(self, encoder: Encoder, users: EntityTable, items: EntityTable) -> Histories:
        hours = encoder.encode(self.events, ["hour"])["hour"]
        assert isinstance(hours, Tensor)
        ordered = self.schema.sequences[0].ordered
        chunk = EventChunk(
            users=users.positions(self.events["user_id"]).numpy(),
            items=items.positions(self.events["item_id"]).numpy(),
            splits=np.zeros(len(self.events), np.uint8),
            timestamps=self.events["time"].to_numpy() if ordered else None,
            columns={"hour": hours.numpy()},
        )
        return Histories.build(self.folder / "histories", [chunk], num_users=len(users), ordered=ordered)

    @cached_property
    def view(self) -> ExportView:
        """All that is known."""
        return cast(ExportView, ShopView(prepared=self.data, events=self.events))

    @cached_property
    def store(self) -> BundleStore:
        """Where the shop's bundles are."""
        return BundleStore(self.folder / "store")

    def model(self, name: str, **options: Any) -> Retriever | Ranker | ClosedForm:
        """A model of ours, its weights random, its closed form computed."""
        section = ModelConfig(name=name, options=options)
        torch.manual_seed(0)
        model = make_model(section, self.data.encoder, make_collection(TABLES, self.data.encoder))
        if isinstance(model, ClosedForm):
            model.fit(self.view.interactions())
            return model
        return model.eval()

    def export(self, name: str, **options: Any) -> Roles:
        """The components of a model."""
        model = self.model(name, **options)
        section = ModelConfig(name=name, options=options)
        export: Callable[..., Roles] = export_ranker if isinstance(model, Ranker) else export_retriever
        return export(self.store, model=model, model_section=section, view=self.view)

    def bundle(self, *names: str) -> Bundle:
        """A bundle of one or two models."""
        roles: Roles = {}
        for name in names:
            roles |= self.export(name)
        return self.store.open(self.store.publish(roles, config={}))

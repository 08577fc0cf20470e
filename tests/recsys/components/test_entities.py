"""Schema, items and users: what is written is what is read; equal ones are stored once; foreign ones are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.bundle import BundleError
from recsys.components import load_retriever
from recsys.components.entities import catalogue_hash
from tests.serving.shop import COLD_ITEM, EVENTS_EACH, NUM_USERS, Shop, shop_schema


def test_entities_read_back_are_those_of_the_data(shop: Shop) -> None:
    entities = load_retriever(shop.bundle("mf")).entities
    data = shop.data
    assert entities.encoder.content_hash == data.encoder.content_hash
    assert entities.items is not None
    assert data.items is not None
    assert catalogue_hash(entities.items) == catalogue_hash(data.items)
    assert COLD_ITEM in entities.items.raw_ids
    for name, column in data.items.features.features.items():
        assert isinstance(column, Tensor)
        assert torch.equal(entities.items.features.ids(name), column)


def test_seen_items_and_histories_read_back(shop: Shop) -> None:
    users = load_retriever(shop.bundle("mf")).entities.users
    assert users is not None
    assert users.histories is not None
    interactions = shop.view.interactions()
    for user in range(NUM_USERS):
        assert users.seen(user).tolist() == sorted(interactions[user].indices.tolist())
        events, _ = users.histories.slice(np.array([user]), np.array([-1]), max_length=99)
        assert len(events) == EVENTS_EACH
        assert set(users.histories.column("items", events)) == set(users.seen(user))
    assert users.seen(-1).tolist() == []


def test_equal_parts_are_stored_once(shop: Shop) -> None:
    mf, knn, dcn = shop.export("mf"), shop.export("itemknn"), shop.export("dcn")
    for part in ("schema", "items", "users"):
        assert mf[f"retriever.{part}"] == knn[f"retriever.{part}"] == dcn[f"ranker.{part}"]
    assert mf["fallback"] == knn["fallback"]
    assert mf["retriever"] != knn["retriever"]
    assert shop.export("mf") == mf


def test_parts_of_another_dataset_are_refused(shop: Shop, tmp_path: Path) -> None:
    other = Shop(folder=tmp_path, schema=shop_schema(), texts=True)
    for role in ("retriever.schema", "retriever.items"):
        foreign = other.export("mf")[role]
        shutil.copytree(tmp_path / "store/components" / foreign, shop.folder / "store/components" / foreign)
        bundle = shop.store.open(shop.store.publish(shop.export("mf") | {role: foreign}, config={}))
        with pytest.raises(BundleError, match="another schema or other items"):
            load_retriever(bundle)

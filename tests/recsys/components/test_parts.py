"""Retrievers and rankers: what is written is what is read; parts that do not fit together are refused."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from recsys.bundle import BundleError
from recsys.components import ExportView, export_retriever, load_ranker, load_retriever
from recsys.config import ConfigError, ModelConfig
from recsys.models.interface import ClosedForm, Ranker, Retriever
from tests.serving.shop import NUM_USERS, Shop, ShopView


@pytest.mark.parametrize("name", ["mf", "twotower"])
def test_retriever_read_back_has_the_same_vectors(shop: Shop, name: str) -> None:
    part, original = load_retriever(shop.bundle(name)), shop.model(name)
    assert isinstance(part.model, Retriever)
    assert isinstance(original, Retriever)
    users = shop.view.user_batch(torch.arange(NUM_USERS))
    expected = original.user_vectors(users)
    assert torch.equal(part.model.user_vectors(users), expected)
    assert part.index is not None
    hits = part.index.search(expected, k=part.index.num_positions)
    scores = torch.full_like(hits.scores, torch.nan).scatter(1, hits.ids, hits.scores)
    torch.testing.assert_close(scores, expected[:, 0] @ original.item_matrix(shop.view).T)


@pytest.mark.parametrize("name", ["popularity", "itemknn", "p3"])
def test_closed_form_read_back_has_the_same_scores(shop: Shop, name: str) -> None:
    part = load_retriever(shop.bundle(name))
    original = shop.model(name)
    histories = shop.view.interactions()
    assert isinstance(part.model, ClosedForm)
    assert isinstance(original, ClosedForm)
    assert torch.equal(part.model.history_scores(histories), original.history_scores(histories))
    assert part.index is None


@pytest.mark.parametrize("name", ["dcn"])
def test_ranker_read_back_has_the_same_weights(shop: Shop, name: str) -> None:
    part = load_ranker(shop.bundle(name))
    model = shop.model(name)
    assert isinstance(model, Ranker)
    original, read = model.state_dict(), part.model.state_dict()
    assert sorted(read) == sorted(original)
    assert all(torch.equal(read[key], original[key]) for key in read)
    assert not any(parameter.requires_grad for parameter in part.model.parameters())
    assert not part.model.training


def test_fallback_is_popularity(shop: Shop) -> None:
    fallback = load_retriever(shop.bundle("mf")).fallback
    assert fallback.tolist() == np.asarray(shop.view.interactions().sum(axis=0)).ravel().tolist()


def test_index_of_another_model_is_refused(shop: Shop) -> None:
    roles = shop.export("mf") | {"index": shop.export("twotower")["index"]}
    with pytest.raises(BundleError, match="'vectors'"):
        shop.store.publish(roles, config={})


def test_class_of_the_users_is_imported_only_when_allowed(shop: Shop) -> None:
    name = "recsys.models.mf:MatrixFactorization"
    bundle = shop.store.open(shop.store.publish(shop.export(name), config={}))
    with pytest.raises(ConfigError, match="not allowed here"):
        load_retriever(bundle)
    assert load_retriever(bundle, allowed=["recsys"]).name == name


def test_part_that_is_absent_is_named(shop: Shop) -> None:
    with pytest.raises(BundleError, match=r"has no 'ranker.schema'"):
        load_ranker(shop.bundle("mf"))


def test_retriever_without_users_is_refused(shop: Shop) -> None:
    view = cast(ExportView, ShopView(prepared=replace(shop.data, users=None), events=shop.events))
    model, section = shop.model("mf"), ModelConfig(name="mf")
    assert isinstance(model, Retriever)
    with pytest.raises(ValueError, match="schema 'shop' has no table of them"):
        export_retriever(shop.store, model=model, model_section=section, view=view)


def test_ranker_is_no_retriever(shop: Shop) -> None:
    dcn = {role.replace("ranker", "retriever"): part for role, part in shop.export("dcn").items()}
    roles = dcn | {"fallback": shop.export("mf")["fallback"]}
    with pytest.raises(BundleError, match="model 'dcn' is no retriever"):
        load_retriever(shop.store.open(shop.store.publish(roles, config={})))

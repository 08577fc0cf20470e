"""Score of many candidates for one history: what is done once gives the scores of rows done one by one."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from features.batch import Batch, Jagged
from recsys.components import export_ranker
from recsys.compression import make_collection
from recsys.config import ModelConfig, TablesConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.models import make_model, table_encoder
from recsys.models.interface import Ranker
from serving.pipeline import Pipeline
from serving.queries import ScoreQuery
from tests.serving.shop import COLD_ITEM, IDS, NEW_USER, NUM_ITEMS, NUM_USERS, Shop

LENGTH = 5
ITEMS = [*range(NUM_ITEMS), COLD_ITEM, 777]
CONTEXT = {"hour": pa.array([item % 5 for item in range(len(ITEMS))]), "device": pa.array(["phone"])}
ATTENTION = {"method": "dense", "embedding_dim": 2, "init": {"kind": "normal", "std": 1.0}}
OF_ITEMS = ("user_id", "item_id", "category", "price", "history", "history_category")  # keys are kept of these
MODELS: dict[str, dict[str, Any]] = {
    "din": {},
    "twin": {"search_k": 2},
    "twin, projections": {"search_k": 2, "projections": True, "features": OF_ITEMS},
    "dare": {"search_k": 2, "features": OF_ITEMS},
    "dare, hours": {"search_k": 2},
    "dare, int8": {"search_k": LENGTH, "features": OF_ITEMS},
}
HISTORIES: dict[str, Any] = {
    "empty": [],
    "one event": [3],
    "fewer than are searched for, one unknown": [8, 778],
    "as long as it may be": [1, 2, 3, 4, 1],
    "longer": [*range(20, 27), COLD_ITEM, 7],
}


def made(shop: Shop, name: str) -> tuple[Ranker, ModelConfig]:
    """A model of the shop with random weights, its tables as they are served."""
    kind, _, precision = name.partition(", ")
    tables: dict[str, Any] = {"backend": "plain", "ids": IDS}
    if kind == "dare":
        tables["attention"] = ATTENTION | ({"precision": precision} if precision == "int8" else {})
    section = ModelConfig(name=kind, options=MODELS[name])
    encoder = table_encoder(section, shop.data.encoder)
    torch.manual_seed(0)
    model = make_model(section, shop.data.encoder, make_collection(TablesConfig.model_validate(tables), encoder))
    assert isinstance(model, Ranker)
    model.collection = model.collection.freeze()
    return model.eval(), section


def served(shop: Shop, model: Ranker, section: ModelConfig) -> Pipeline:
    roles = export_ranker(shop.store, model=model, model_section=section, view=shop.view)
    return Pipeline.load(shop.store.open(shop.store.publish(roles, config={})))


def one_by_one(shop: Shop, model: Ranker, user: int, events: list[tuple[int, int]] | None = None) -> NDArray[Any]:
    """Each candidate as a row of training, with the history that is stored or (item, row of hour) of `events`."""
    data, scores = shop.data, []
    assert data.users is not None
    assert data.items is not None
    context = {name: pa.array([column[at % len(column)].as_py() for at in range(len(ITEMS))]) for name, column in
               CONTEXT.items()}  # fmt: skip
    encoded = Batch(features=data.encoder.encode(pa.table(context), list(context)))
    of_user = dict(shop.view.user_batch(data.users.positions([user])).features)
    if events is not None:
        of_events = data.items.gather(data.items.positions([item for item, _ in events] or pa.array([], pa.int64())))
        ids = {"history": of_events.ids("item_id"), "history_category": of_events.ids("category")}
        ids["history_hour"] = torch.tensor([hour for _, hour in events], dtype=torch.int64)
        offsets = torch.tensor([0, len(events)])
        of_user |= {name: Jagged(values=values, offsets=offsets) for name, values in ids.items()}
    for row, item in enumerate(ITEMS):
        of_item = data.items.gather(data.items.positions([item])).features
        features = {**of_user, **of_item, **encoded.select(torch.tensor([row])).features}
        scores.append(model.logits(Batch(features=features)).sigmoid())
    return torch.cat(scores).detach().numpy()


@pytest.mark.parametrize("name", MODELS)
def test_stored_histories_are_read_once(shop: Shop, name: str) -> None:
    model, section = made(shop, name)
    pipeline = served(shop, model, section)
    for user in range(0, NUM_USERS, 4):
        answer = pipeline.score(ScoreQuery(user=user, items=ITEMS, columns=CONTEXT))
        np.testing.assert_allclose(answer.scores[:, 0], one_by_one(shop, model, user), rtol=0, atol=1e-5)
        assert answer.unknown_item_ids == 1


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", MODELS)
def test_histories_of_requests_are_read_once(shop: Shop, name: str, history: str) -> None:
    model, section = made(shop, name)
    pipeline, items = served(shop, model, section), HISTORIES[history]
    hours = [at % 5 for at in range(len(items))]
    past = {"history": items, "history_features": {"hour": pa.array(hours, pa.int64())}}
    answer = pipeline.score(ScoreQuery(user=NEW_USER, items=ITEMS, columns=CONTEXT, **past))
    rows = shop.data.encoder.encode(pa.table({"hour": pa.array(hours, pa.int64())}), ["hour"])["hour"]
    assert isinstance(rows, torch.Tensor)
    events = [(item, int(row)) for item, row in zip(items, rows, strict=True) if item != 778][-LENGTH:]
    expected = one_by_one(shop, model, NEW_USER, events)
    np.testing.assert_allclose(answer.scores[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["din", "dare"])
def test_user_without_history_is_scored(shop: Shop, name: str) -> None:
    model, section = made(shop, name)
    answer = served(shop, model, section).score(ScoreQuery(user=NEW_USER, items=ITEMS, columns=CONTEXT))
    np.testing.assert_allclose(answer.scores[:, 0], one_by_one(shop, model, NEW_USER, []), rtol=0, atol=1e-5)


def test_sequences_given_as_columns_go_before_what_is_kept(shop: Shop) -> None:
    """Even where they say of an item what the catalogue does not."""
    model, section = made(shop, "dare")
    pipeline = served(shop, model, section)
    past = {"history": pa.array([[1, 2]]), "history_category": pa.array([["c3", "c3"]])}
    one = pipeline.score(ScoreQuery(user=4, items=ITEMS, columns=CONTEXT | past))
    each = {name: pa.array(column.to_pylist() * len(ITEMS)) for name, column in past.items()}
    many = pipeline.score(ScoreQuery(user=4, items=ITEMS, columns=CONTEXT | each))
    np.testing.assert_allclose(one.scores, many.scores, rtol=0, atol=1e-5)
    stored = pipeline.score(ScoreQuery(user=4, items=ITEMS, columns=CONTEXT))
    assert float(np.abs(one.scores - stored.scores).max()) > 1e-3


@pytest.mark.parametrize("name", ["dare", "dare, hours"])
def test_histories_are_looked_up_where_no_keys_are_kept(shop: Shop, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the whole history where they are; only what is found, with the candidates."""
    model, section = made(shop, name)
    pipeline = served(shop, model, section)
    shared: list[list[str]] = []
    whole = EmbeddingCollection.forward

    def forward(self: EmbeddingCollection, *batches: Batch, **options: Any) -> Any:
        shared.extend(list(batch.features) for batch in batches[1:])
        return whole(self, *batches, **options)

    monkeypatch.setattr(EmbeddingCollection, "forward", forward)
    pipeline.score(ScoreQuery(user=1, items=ITEMS, columns=CONTEXT))
    sequences = ["history-attention", "history_category-attention", "history_hour-attention"]
    assert shared == [[] if name == "dare" else sequences]


def test_precision_of_the_attention_table_is_that_of_its_kept_vectors(shop: Shop) -> None:
    """Scores in int8 are near those in float32: a value of the table is off by 1/510 of its row's span."""
    exact, _ = made(shop, "dare")
    coarse, _ = made(shop, "dare, int8")
    stores = {store.name: store.precision for store in coarse.collection.stores.values()}
    assert {name: kept == "int8" for name, kept in stores.items()} == {name: "attention" in name for name in stores}
    user = 3
    whole = ModelConfig(name="dare", options=MODELS["dare, int8"])
    answer = served(shop, coarse, whole).score(ScoreQuery(user=user, items=ITEMS, columns=CONTEXT)).scores[:, 0]
    exact.config = coarse.config
    np.testing.assert_allclose(answer, one_by_one(shop, exact, user), rtol=0, atol=0.02)

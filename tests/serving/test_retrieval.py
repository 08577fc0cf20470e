"""Retrieve, without a server: the same lists as offline, who is answered by what, and every refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from recsys.models.interface import Recommender, Retriever
from recsys.retrieval import parse_predicate, top_k
from serving.deadline import Deadline
from serving.errors import DeadlineExpiredError, InvalidArgumentError
from serving.pipeline import Pipeline
from serving.queries import FallbackReason, Limits, Retrieved, RetrieveQuery
from tests.serving.shop import COLD_ITEM, NEW_USER, NUM_ITEMS, NUM_USERS, Shop, shop_schema

ALL = NUM_ITEMS + 1
MODELS = ("mf", "twotower", "popularity", "itemknn", "p3")
SHOES: dict[str, Any] = {"kind": "equal", "attribute": "category", "value": "c1"}


@pytest.fixture(scope="module")
def pipelines(shop: Shop) -> dict[str, Pipeline]:
    """One for each model."""
    return {name: Pipeline.load(shop.bundle(name)) for name in MODELS}


def offline(shop: Shop, name: str, user: int, left_out: set[int], allowed: Tensor | None = None) -> list[int]:
    """The naive list: all scores, what is left out removed, the k best by (score, position)."""
    model = shop.model(name)
    assert isinstance(model, Recommender)
    scores = model.scores(shop.view, torch.tensor([user])).clone()
    scores[0, sorted(left_out)] = float("-inf")
    if allowed is not None:
        scores[0, ~allowed] = float("-inf")
    best, items = top_k(scores, ALL)
    assert shop.data.items is not None
    ids: list[int] = shop.data.items.raw(items[0, best[0] > float("-inf")]).tolist()
    return ids


def seen(shop: Shop, user: int) -> set[int]:
    return set(shop.view.interactions()[user].indices.tolist())


@pytest.mark.parametrize("name", MODELS)
def test_served_list_is_the_offline_list(shop: Shop, pipelines: dict[str, Pipeline], name: str) -> None:
    for user in range(NUM_USERS):
        for k in (1, 10, ALL, 1000):
            answer = pipelines[name].retrieve(RetrieveQuery(user=user, k=k))
            assert answer.items.tolist() == offline(shop, name, user, set())[:k]
            assert answer.user_known
            assert answer.fallback is None
            assert answer.source_names == (name,)


@pytest.mark.parametrize("name", MODELS)
def test_served_list_leaves_out_seen_and_excluded_items(shop: Shop, pipelines: dict[str, Pipeline], name: str) -> None:
    for user in range(NUM_USERS):
        query = RetrieveQuery(user=user, k=10, exclude_seen=True, excluded=[5, 6, 7777, COLD_ITEM])
        answer = pipelines[name].retrieve(query)
        assert answer.items.tolist() == offline(shop, name, user, seen(shop, user) | {5, 6, NUM_ITEMS})[:10]
        assert answer.unknown_excluded_ids == 1


@pytest.mark.parametrize("name", MODELS)
def test_served_list_keeps_to_the_filter(shop: Shop, pipelines: dict[str, Pipeline], name: str) -> None:
    assert shop.data.items is not None
    allowed = torch.tensor([value == "c1" for value in shop.data.items.attributes["category"].to_pylist()])
    query = RetrieveQuery(user=4, k=ALL, exclude_seen=True, filter=parse_predicate(SHOES))
    answer = pipelines[name].retrieve(query)
    assert answer.items.tolist() == offline(shop, name, 4, seen(shop, 4), allowed)


@pytest.mark.parametrize("name", ["mf", "twotower"])
def test_scores_are_those_of_the_model(shop: Shop, pipelines: dict[str, Pipeline], name: str) -> None:
    model = shop.model(name)
    assert isinstance(model, Retriever)
    answer = pipelines[name].retrieve(RetrieveQuery(user=2, k=10))
    assert shop.data.items is not None
    positions = shop.data.items.positions(answer.items)
    expected = model.scores(shop.view, torch.tensor([2]))[0, positions]
    np.testing.assert_allclose(answer.scores, expected.detach().numpy(), atol=1e-5)


def test_cold_item_is_retrieved_by_its_attributes(pipelines: dict[str, Pipeline]) -> None:
    query = RetrieveQuery(user=1, k=5, filter=parse_predicate({"kind": "equal", "attribute": "item_id", "value": 90}))
    assert pipelines["twotower"].retrieve(query).items.tolist() == [COLD_ITEM]


def test_new_user_with_a_history_is_answered_from_it(pipelines: dict[str, Pipeline]) -> None:
    for name in ("twotower", "itemknn", "p3"):
        answers = [pipelines[name].retrieve(RetrieveQuery(user=NEW_USER, k=5, history=h)) for h in ([1, 2], [30, 31])]
        assert all(answer.fallback is None and not answer.user_known for answer in answers)
        assert answers[0].scores.tolist() != answers[1].scores.tolist()


def test_history_of_the_request_replaces_the_stored_one(shop: Shop, pipelines: dict[str, Pipeline]) -> None:
    assert shop.data.users is not None
    mine = shop.events.filter(pc.equal(shop.events["user_id"], 3))["item_id"].to_pylist()
    for name in ("twotower", "itemknn", "p3", "popularity"):
        stored = pipelines[name].retrieve(RetrieveQuery(user=3, k=ALL))
        given = pipelines[name].retrieve(RetrieveQuery(user=3, k=ALL, history=mine))
        if name != "twotower":  # reads hours of events too, which a request does not give
            assert given.items.tolist() == stored.items.tolist()
        other = pipelines[name].retrieve(RetrieveQuery(user=3, k=ALL, history=[0], exclude_seen=True))
        assert not {0, *mine} & set(other.items.tolist())


def test_history_that_is_not_read_is_counted(pipelines: dict[str, Pipeline]) -> None:
    query = RetrieveQuery(user=3, k=5, history=[1, 2, 3, 4, 5, 6, 7, 555])
    counts = {name: pipelines[name].retrieve(query) for name in MODELS}
    assert {name: answer.unread_history_ids for name, answer in counts.items()} == {
        "mf": 7, "twotower": 2, "popularity": 0, "itemknn": 0, "p3": 0,
    }  # fmt: skip
    assert {answer.unknown_history_ids for answer in counts.values()} == {1}


def test_new_user_with_features_is_answered_from_them(pipelines: dict[str, Pipeline]) -> None:
    ages = [pipelines["twotower"].retrieve(RetrieveQuery(k=ALL, features={"age": pa.array([age])})) for age in (1, 90)]
    assert all(answer.fallback is None for answer in ages)
    assert ages[0].scores.tolist() != ages[1].scores.tolist()


def test_feature_of_the_request_goes_before_the_stored_one(pipelines: dict[str, Pipeline]) -> None:
    stored = pipelines["twotower"].retrieve(RetrieveQuery(user=4, k=9))
    same = pipelines["twotower"].retrieve(RetrieveQuery(user=4, k=9, features={"age": pa.array([24])}))
    other = pipelines["twotower"].retrieve(RetrieveQuery(user=4, k=9, features={"age": pa.array([70])}))
    np.testing.assert_array_equal(stored.scores, same.scores)
    assert stored.scores.tolist() != other.scores.tolist()


FALLBACKS = {
    "nobody": (RetrieveQuery(k=5), FallbackReason.NO_SUBJECT),
    "unknown user": (RetrieveQuery(k=5, user=NEW_USER), FallbackReason.UNKNOWN_USER),
    "unknown items": (RetrieveQuery(k=5, user=NEW_USER, history=[777, 778]), FallbackReason.NOTHING_USABLE),
    "empty history": (RetrieveQuery(k=5, history=[]), FallbackReason.NOTHING_USABLE),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", FALLBACKS)
def test_fallback_answers_with_its_reason(shop: Shop, pipelines: dict[str, Pipeline], name: str, case: str) -> None:
    query, reason = FALLBACKS[case]
    answer = pipelines[name].retrieve(query)
    assert answer.fallback is not None
    assert answer.fallback.reason == reason
    assert answer.source_names == ("fallback",)
    assert answer.items.tolist() == offline(shop, "popularity", 0, set())[:5]


def test_fallback_answers_for_a_model_that_cannot_read_what_is_given(pipelines: dict[str, Pipeline]) -> None:
    reads_no_history = pipelines["mf"].retrieve(RetrieveQuery(k=5, history=[1, 2]))
    reads_no_features = pipelines["p3"].retrieve(RetrieveQuery(k=5, features={"gender": pa.array(["f"])}))
    for answer in (reads_no_history, reads_no_features):
        assert answer.fallback is not None
        assert answer.fallback.reason == FallbackReason.NOTHING_USABLE
    assert reads_no_history.fallback is not None
    assert "'mf' reads user_id" in reads_no_history.fallback.detail


def test_fallback_keeps_to_filter_and_exclusions(pipelines: dict[str, Pipeline]) -> None:
    answer = pipelines["mf"].retrieve(RetrieveQuery(k=ALL, excluded=[1, 5], filter=parse_predicate(SHOES)))
    assert sorted(answer.items.tolist()) == [n for n in range(NUM_ITEMS) if n % 4 == 1 and n not in (1, 5)]


def test_vector_asks_the_index_as_it_is(shop: Shop, pipelines: dict[str, Pipeline]) -> None:
    model = shop.model("mf")
    assert isinstance(model, Retriever)
    vector = model.user_vectors(shop.view.user_batch(torch.tensor([5])))[0, 0].detach().numpy()
    by_user = pipelines["mf"].retrieve(RetrieveQuery(user=5, k=9, exclude_seen=True))
    by_vector = pipelines["mf"].retrieve(RetrieveQuery(user=5, k=9, vector=vector, exclude_seen=True))
    assert by_vector.items.tolist() == by_user.items.tolist()
    assert pipelines["mf"].retrieve(RetrieveQuery(k=9, vector=vector)).fallback is None


def test_nothing_allowed_gives_nothing(pipelines: dict[str, Pipeline]) -> None:
    nothing = parse_predicate({"kind": "equal", "attribute": "category", "value": "no such"})
    for name in MODELS:
        answer = pipelines[name].retrieve(RetrieveQuery(user=1, k=5, filter=nothing))
        assert len(answer) == 0


VECTOR = np.zeros(8, np.float32)
REFUSED = {
    "k: got 0, accepted: 1 to 10000": RetrieveQuery(user=1, k=0),
    "k: got 10001": RetrieveQuery(user=1, k=10_001),
    "user: got 'seven', accepted: whole numbers": RetrieveQuery(user="seven", k=1),
    "history: got 'a'": RetrieveQuery(history=["a"], k=1),
    "excluded: got 'a'": RetrieveQuery(user=1, excluded=["a"], k=1),
    "history: got '10001 ids', accepted: at most 10000": RetrieveQuery(history=range(10_001), k=1),
    "excluded: got '10001 ids'": RetrieveQuery(excluded=range(10_001), k=1),
    "features: unknown name 'gendre', did you mean 'gender'": RetrieveQuery(features={"gendre": pa.array(["f"])}, k=1),
    "features: unknown name 'price'": RetrieveQuery(features={"price": pa.array([1])}, k=1),
    "features[gender]: got '2 rows', accepted: one row": RetrieveQuery(features={"gender": pa.array(["f", "m"])}, k=1),
    "features[user_id]: feature 'user_id', row 0": RetrieveQuery(features={"user_id": pa.array([1.5])}, k=1),
    "vector: got '3 numbers', accepted: 8": RetrieveQuery(vector=np.zeros(3, np.float32), k=1),
    "vector[0]: got nan": RetrieveQuery(vector=VECTOR * np.nan, k=1),
    "features: a vector is given": RetrieveQuery(vector=VECTOR, features={"user_id": pa.array([1])}, k=1),
    "filter: filter names an unknown attribute 'colour'": RetrieveQuery(
        k=1, filter=parse_predicate({"kind": "equal", "attribute": "colour", "value": 1})
    ),
    "filter: filter on 'category'": RetrieveQuery(
        k=1, filter=parse_predicate({"kind": "equal", "attribute": "category", "value": 1})
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_request_that_cannot_be_answered_is_refused(pipelines: dict[str, Pipeline], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        pipelines["mf"].retrieve(REFUSED[message])
    assert str(refused.value).startswith(message)


def test_vector_is_refused_by_a_model_without_vectors(pipelines: dict[str, Pipeline]) -> None:
    with pytest.raises(InvalidArgumentError, match="vector: model 'p3' has no vectors"):
        pipelines["p3"].retrieve(RetrieveQuery(vector=VECTOR, k=1))


def test_limits_are_settable(shop: Shop) -> None:
    pipeline = Pipeline.load(shop.bundle("mf"), limits=Limits(k=3))
    with pytest.raises(InvalidArgumentError, match="accepted: 1 to 3"):
        pipeline.retrieve(RetrieveQuery(user=1, k=4))


def test_expired_work_is_not_done(pipelines: dict[str, Pipeline]) -> None:
    with pytest.raises(DeadlineExpiredError, match="before: query"):
        pipelines["mf"].retrieve(RetrieveQuery(user=1, k=1), Deadline.after(-1))


def test_catalogue_of_texts_is_served(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> None:
    texts = Shop(folder=tmp_path_factory.mktemp("texts"), schema=shop_schema(), texts=True)
    pipeline = Pipeline.load(texts.bundle("p3"))
    answer = pipeline.retrieve(RetrieveQuery(user="u003", k=5, excluded=["i001"]))
    numbers = Pipeline.load(shop.bundle("p3")).retrieve(RetrieveQuery(user=3, k=5, excluded=[1]))
    assert answer.items.tolist() == [texts.item(number) for number in numbers.items]
    with pytest.raises(InvalidArgumentError, match="user: got 3, accepted: texts"):
        pipeline.retrieve(RetrieveQuery(user=3, k=5))


def test_unknown_user_that_the_schema_refuses_gets_the_fallback(tmp_path: Path) -> None:
    shop = Shop(folder=tmp_path, schema=shop_schema(unseen="refuse"))
    pipeline = Pipeline.load(shop.bundle("twotower"))
    known = pipeline.retrieve(RetrieveQuery(user=1, k=3))
    unknown = pipeline.retrieve(RetrieveQuery(user=NEW_USER, k=3, history=[1, 2]))
    assert known.fallback is None
    assert unknown.fallback is not None
    assert unknown.fallback.reason == FallbackReason.NOTHING_USABLE


def test_set_of_a_request_is_read_as_a_stored_one(tmp_path: Path) -> None:
    shop = Shop(folder=tmp_path, schema=shop_schema(ordered=False))
    pipeline = Pipeline.load(shop.bundle("itemknn"))
    mine = shop.events.filter(pc.equal(shop.events["user_id"], 3))["item_id"].to_pylist()
    lists: list[Retrieved] = [pipeline.retrieve(RetrieveQuery(k=9, history=h)) for h in (mine, mine[::-1], mine * 2)]
    stored = pipeline.retrieve(RetrieveQuery(user=3, k=9))
    assert all(answer.items.tolist() == stored.items.tolist() for answer in lists)

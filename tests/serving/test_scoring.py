"""Score, without a server: the same probabilities as offline, what is given before what is stored, every refusal."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from features.batch import Batch
from recsys.components import ExportView, export_ranker
from recsys.config import ModelConfig
from recsys.models.interface import Ranker
from serving.deadline import Deadline
from serving.errors import DeadlineExpiredError, InvalidArgumentError, NotServedError
from serving.pipeline import Pipeline
from serving.queries import ScoreQuery
from tests.serving.shop import COLD_ITEM, NEW_USER, NUM_ITEMS, NUM_USERS, Shop, ShopView

CONTEXT = {"hour": pa.array([2]), "device": pa.array(["phone"])}


def offline(shop: Shop, user: int, items: list[int], hours: list[int]) -> Any:
    """The naive probabilities: a batch of training's own features, row by row."""
    model, data = shop.model("dcn"), shop.data
    assert isinstance(model, Ranker)
    assert data.users is not None
    assert data.items is not None
    context = pa.table({"hour": hours, "device": ["phone"] * len(items)})
    event = data.encoder.encode(context, ["hour", "device"])
    scores = []
    for row, item in enumerate(items):
        of_user = shop.view.user_batch(torch.tensor([user])).features
        of_item = shop.view.item_batch(data.items.positions([item])).features
        of_row = Batch(features=event).select(torch.tensor([row])).features
        batch = Batch(features={**of_user, **of_item, **of_row})
        scores.append(model.logits(batch).sigmoid().detach())
    return torch.cat(scores).numpy()


def test_served_scores_are_the_offline_scores(shop: Shop, pipeline: Pipeline) -> None:
    items = [*range(NUM_ITEMS), COLD_ITEM]
    hours = [item % 5 for item in items]
    for user in range(0, NUM_USERS, 5):
        columns = {"hour": pa.array(hours), "device": CONTEXT["device"]}
        answer = pipeline.score(ScoreQuery(user=user, items=items, columns=columns))
        np.testing.assert_allclose(answer.scores[:, 0], offline(shop, user, items, hours), atol=1e-5)
        assert (answer.tasks, answer.user_known) == (("click",), True)


def test_column_of_one_row_is_repeated(pipeline: Pipeline) -> None:
    short = pipeline.score(ScoreQuery(user=1, items=[1, 2, 3], columns=CONTEXT))
    long = {name: pa.array(column.to_pylist() * 3) for name, column in CONTEXT.items()}
    np.testing.assert_array_equal(
        short.scores, pipeline.score(ScoreQuery(user=1, items=[1, 2, 3], columns=long)).scores
    )
    one = pipeline.score(ScoreQuery(user=1, items=[2], columns=long))
    np.testing.assert_allclose(one.scores[:, 0], np.repeat(short.scores[1], 3), atol=1e-6)


def test_rows_may_have_users_of_their_own(shop: Shop, pipeline: Pipeline) -> None:
    columns = CONTEXT | {"user_id": pa.array([0, 5, None, NEW_USER]), "item_id": pa.array([7])}
    answer = pipeline.score(ScoreQuery(columns=columns))
    expected = [
        pipeline.score(ScoreQuery(user=user, items=[7], columns=CONTEXT)).scores[0, 0] for user in (0, 5, NEW_USER)
    ]
    np.testing.assert_allclose(answer.scores[[0, 1, 3], 0], expected, atol=1e-6)
    assert not answer.user_known


def test_item_described_by_columns_needs_no_id(pipeline: Pipeline) -> None:
    described = {"item_id": pa.nulls(1), "category": pa.array(["c1"]), "price": pa.array([3.0])}
    by_columns = pipeline.score(ScoreQuery(user=1, columns=CONTEXT | described))
    by_id = pipeline.score(ScoreQuery(user=1, items=[5], columns=CONTEXT | {"price": pa.array([3.0])}))
    assert by_columns.scores.shape == by_id.scores.shape == (1, 1)
    assert by_columns.scores[0, 0] != by_id.scores[0, 0]  # the id says something too


def test_column_goes_before_the_stored_feature(pipeline: Pipeline) -> None:
    stored = pipeline.score(ScoreQuery(user=1, items=[5], columns=CONTEXT))
    same = pipeline.score(ScoreQuery(user=1, items=[5], columns=CONTEXT | {"age": pa.array([21.0])}))
    other = pipeline.score(ScoreQuery(user=1, items=[5], columns=CONTEXT | {"age": pa.array([80.0])}))
    np.testing.assert_array_equal(stored.scores, same.scores)
    assert stored.scores[0, 0] != other.scores[0, 0]


def test_unknown_ids_are_scored_and_counted(pipeline: Pipeline) -> None:
    answer = pipeline.score(ScoreQuery(user=NEW_USER, items=[1, 777], columns=CONTEXT, history=[1, 778]))
    assert (answer.user_known, answer.unknown_item_ids, answer.unknown_history_ids) == (False, 1, 1)
    assert ((answer.scores > 0) & (answer.scores < 1)).all()


def test_history_of_the_request_is_read(pipeline: Pipeline) -> None:
    queries = [ScoreQuery(user=NEW_USER, items=[1, 2], columns=CONTEXT, history=history) for history in ([3], [8], [])]
    scores = [pipeline.score(query).scores[0, 0] for query in queries]
    assert len(set(scores)) == 3
    long = ScoreQuery(user=1, items=[1], columns=CONTEXT, history=list(range(9)))
    assert pipeline.score(long).unread_history_ids == 4


def test_ranker_without_entities_takes_columns(shop: Shop) -> None:
    """All features stand in the rows, as in a click log that names no user and no item table."""
    data = replace(shop.data, users=None, items=None, histories=None)
    names = ["user_id", "item_id", "hour", "device"]
    view = cast(ExportView, ShopView(prepared=data, events=shop.events))
    section = ModelConfig(name="dcn", options={"features": names})
    model = shop.model("dcn", features=names)
    assert isinstance(model, Ranker)
    roles = export_ranker(shop.store, model=model, model_section=section, view=view)
    pipeline = Pipeline.load(shop.store.open(shop.store.publish(roles, config={})))
    rows = {name: shop.events[name].combine_chunks() for name in names}
    expected = model.logits(Batch(features=shop.data.encoder.encode(shop.events, names))).sigmoid().detach().numpy()
    np.testing.assert_allclose(pipeline.score(ScoreQuery(columns=rows)).scores[:, 0], expected, atol=1e-6)
    for query, field in ((ScoreQuery(user=1, columns=rows), "user"), (ScoreQuery(items=[1], columns=rows), "items")):
        with pytest.raises(InvalidArgumentError, match=f"{field}: "):
            pipeline.score(query)


def test_several_tasks_are_scored_side_by_side(shop: Shop) -> None:
    roles = shop.export("dcn", labels=["click", "buy"])
    answer = Pipeline.load(shop.store.open(shop.store.publish(roles, config={}))).score(
        ScoreQuery(user=1, items=[1, 2, 3], columns=CONTEXT)
    )
    assert answer.tasks == ("click", "buy")
    assert answer.scores.shape == (3, 2)


PAST = {"history": pa.array([[1]]), "history_category": pa.array([["c1"]]), "history_hour": pa.array([[2]])}


def test_rows_may_have_sequences_of_their_own(shop: Shop, pipeline: Pipeline) -> None:
    """As training cuts them: the last events, with the features of those events."""
    mine = shop.events.filter(pc.equal(shop.events["user_id"], 4))
    last = mine["item_id"].to_pylist(), mine["hour"].to_pylist()
    categories = dict(zip(shop.items["item_id"].to_pylist(), shop.items["category"].to_pylist(), strict=True))
    of_rows = {
        "history": pa.array([last[0], [7]]),
        "history_category": pa.array([[categories[item] for item in last[0]], ["c3"]]),
        "history_hour": pa.array([last[1], [0]]),
    }
    given = pipeline.score(ScoreQuery(user=4, items=[1, 1], columns=CONTEXT | of_rows)).scores[:, 0]
    stored = pipeline.score(ScoreQuery(user=4, items=[1], columns=CONTEXT)).scores[0, 0]
    np.testing.assert_allclose(given[0], stored, atol=1e-6)
    assert given[1] != given[0]


REFUSED = {
    "columns: got '0 rows', accepted: 1 to 10000": ScoreQuery(user=1),
    "items: got '0 rows'": ScoreQuery(user=1, items=[], columns={}),
    "items: got '10001 rows'": ScoreQuery(user=1, items=range(10_001), columns=CONTEXT),
    "columns[hour]: got '2 rows', accepted: 1 or 3": ScoreQuery(
        user=1, items=[1, 2, 3], columns=CONTEXT | {"hour": pa.array([1, 2])}
    ),
    "columns[hour]: got none, accepted: a value for each row": ScoreQuery(
        user=1, items=[1], columns={"device": CONTEXT["device"]}
    ),
    "columns[device]: feature 'device', row 0: the value is missing": ScoreQuery(
        user=1, items=[1], columns=CONTEXT | {"device": pa.nulls(1)}
    ),
    "columns[age]: feature 'age' needs numbers": ScoreQuery(
        user=1, items=[1], columns=CONTEXT | {"age": pa.array(["x"])}
    ),
    "columns: unknown name 'hours', did you mean 'hour'?": ScoreQuery(
        user=1, items=[1], columns=CONTEXT | {"hours": pa.array([1])}
    ),
    "columns[history]: got none, accepted: all sequences of 'past'": ScoreQuery(
        user=1, items=[1], columns=CONTEXT | {"history_hour": pa.array([[1]])}
    ),
    "columns[history_hour]: its lists differ in length": ScoreQuery(
        user=1, items=[1], columns=CONTEXT | PAST | {"history_hour": pa.array([[1, 2]])}
    ),
    "items: got none, accepted: ids of items, or a column for 'category'": ScoreQuery(user=1, columns=CONTEXT),
    "items: are given twice": ScoreQuery(user=1, items=[1], columns=CONTEXT | {"item_id": pa.array([1])}),
    "user: is given twice": ScoreQuery(user=1, items=[1], columns=CONTEXT | {"user_id": pa.array([1])}),
    "items: got 'a', accepted: whole numbers": ScoreQuery(user=1, items=["a"], columns=CONTEXT),
    "columns[user_id]: got 1.5, accepted: whole numbers": ScoreQuery(
        items=[1], columns=CONTEXT | {"user_id": pa.array([1.5])}
    ),
    "columns[user_id]: got 'x', accepted: whole numbers": ScoreQuery(
        items=[1], columns=CONTEXT | {"user_id": pa.array(["x"])}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_request_that_cannot_be_answered_is_refused(pipeline: Pipeline, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        pipeline.score(REFUSED[message])
    assert str(refused.value).startswith(message)


def test_bundle_without_the_part_says_so(shop: Shop, pipeline: Pipeline) -> None:
    with pytest.raises(NotServedError, match="holds no ranker"):
        Pipeline.load(shop.bundle("mf")).score(ScoreQuery(items=[1]))


def test_expired_work_is_not_done(pipeline: Pipeline) -> None:
    with pytest.raises(DeadlineExpiredError, match="before: features"):
        pipeline.score(ScoreQuery(user=1, items=[1], columns=CONTEXT), Deadline.after(-1))

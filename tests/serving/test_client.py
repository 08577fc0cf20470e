"""The client: typed answers, typed refusals, and what it repeats."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.attribution import Attribution
from serving.client import Client, ServingError
from serving.errors import DeadlineExpiredError, NotReadyError, OverloadedError
from serving.pipeline import Pipeline
from serving.queries import FallbackReason, RetrieveQuery, ScoreQuery
from serving.server import Settings, running
from tests.serving.doubles import Scripted
from tests.serving.shop import COLD_ITEM, EVENTS_EACH, NEW_USER
from tests.serving.test_scoring import CONTEXT


@pytest.fixture(scope="module")
def client(pipeline: Pipeline) -> Iterator[Client]:
    """Of a server with the two-tower model and DCN-V2."""
    with running(lambda: pipeline, Settings(port=0)) as address, Client(address, timeout_s=30) as client:
        yield client


def test_client_gives_what_the_pipeline_gives(client: Client, pipeline: Pipeline) -> None:
    answer = client.retrieve(user=3, k=9, excluded=[1], features={"age": 40})
    aged = pipeline.retrieve(RetrieveQuery(user=3, k=41, exclude_seen=True, excluded=[1]))
    assert set(answer.items) <= set(aged.items)
    assert answer.bundle_id == pipeline.bundle_id
    assert Attribution.from_token(answer.attribution_token).is_of(answer.bundle_id)
    assert answer.to_pandas()["rank"].tolist() == list(range(1, 10))


def test_client_leaves_out_seen_items_unless_told(client: Client, pipeline: Pipeline) -> None:
    for exclude_seen in (True, False):
        expected = pipeline.retrieve(RetrieveQuery(user=3, k=41, exclude_seen=exclude_seen))
        assert client.retrieve(user=3, k=41, exclude_seen=exclude_seen).items.tolist() == expected.items.tolist()
    assert len(client.retrieve(user=3, k=41)) == 41 - EVENTS_EACH


def test_client_takes_filters_as_json(client: Client) -> None:
    tree = {"kind": "equal", "attribute": "item_id", "value": COLD_ITEM}
    for form in (tree, '{"kind": "equal", "attribute": "item_id", "value": 90}'):
        assert client.retrieve(k=3, user=1, filter=form).items.tolist() == [COLD_ITEM]
    with pytest.raises(ValueError, match="unknown kind"):
        client.retrieve(k=3, user=1, filter={"kind": "like"})


def test_client_gives_the_fallback_and_its_reason(client: Client) -> None:
    answer = client.retrieve(user=NEW_USER, k=3)
    assert answer.fallback is not None
    assert answer.fallback.reason == FallbackReason.UNKNOWN_USER
    assert not answer.user_known


def test_client_scores_columns_of_any_form(client: Client, pipeline: Pipeline) -> None:
    expected = pipeline.score(ScoreQuery(user=3, items=[1, 2], columns=CONTEXT))
    forms: tuple[dict[str, Any], ...] = (
        {"hour": [2], "device": ["phone"]},
        {"hour": 2, "device": "phone"},
        {"hour": np.int64(2), "device": np.str_("phone")},
        {"hour": np.array([2, 2]), "device": ["phone", "phone"]},
    )
    for columns in forms:
        answer = client.score(user=3, items=[1, 2], columns=columns)
        np.testing.assert_array_equal(answer.scores, expected.scores)
        assert answer.bundle_id == pipeline.bundle_id


def test_client_says_what_was_and_when(client: Client, pipeline: Pipeline) -> None:
    past: dict[str, Any] = {"history": [1, 2, 3], "history_times": [30, 10, 20], "time": 25}
    scored = client.score(
        items=[4], columns={"hour": 2, "device": "phone"}, history_features={"hour": [1, 2, 3]}, **past
    )
    hours = {"hour": pa.array([2, 3])}
    sorted_out = ScoreQuery(items=[4], columns=CONTEXT, history=[2, 3], history_features=hours)
    np.testing.assert_array_equal(scored.scores, pipeline.score(sorted_out).scores)
    assert scored.unread_history_ids == 1
    found = client.retrieve(k=5, **past)
    assert found.items.tolist() == client.retrieve(k=5, history=[2, 3], excluded=[1]).items.tolist()


def test_client_tells_what_is_served(client: Client, pipeline: Pipeline) -> None:
    assert client.bundle() == pipeline.info
    assert client.is_serving()


def test_refusal_names_code_and_field(client: Client) -> None:
    with pytest.raises(ServingError, match="INVALID_ARGUMENT: k: got 0") as refused:
        client.retrieve(user=1, k=0)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert refused.value.violations == {"k": "got 0, accepted: 1 to 10000"}


def test_absent_server_is_unavailable() -> None:
    with Client("127.0.0.1:1", timeout_s=10) as client:
        assert not client.is_serving()
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            client.bundle()


def test_timeout_must_be_positive() -> None:
    with pytest.raises(ValueError, match="timeout_s must be above 0, got 0"):
        Client(timeout_s=0)


@pytest.mark.parametrize(
    ("error", "attempts"), [(NotReadyError("x"), 4), (OverloadedError("x"), 1), (DeadlineExpiredError("x"), 1)]
)
def test_only_unavailable_is_repeated(error: Exception, attempts: int) -> None:
    def fail() -> None:
        raise error

    pipeline = Scripted(fail)
    with running(lambda: pipeline, Settings(port=0)) as address, Client(address, timeout_s=30) as client:
        with pytest.raises(ServingError):
            client.retrieve(k=1)
        assert pipeline.begun == attempts


def test_call_that_finds_the_server_starting_is_answered() -> None:
    pipeline = Scripted()

    def ready_at_the_third() -> None:
        if pipeline.begun < 3:
            raise NotReadyError("not yet")

    pipeline.stage = ready_at_the_third
    with running(lambda: pipeline, Settings(port=0)) as address, Client(address, timeout_s=30) as client:
        assert client.retrieve(k=1).bundle_id == pipeline.bundle_id
    assert pipeline.begun == 3

"""The service over a socket: the pipeline's answers, statuses, deadlines, admission, and what is logged."""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from serving import errors, messages
from serving.attribution import MAX_BYTES, Attribution
from serving.pipeline import Pipeline
from serving.queries import RetrieveQuery, ScoreQuery
from serving.server import Settings, running
from serving.service import STATUSES, status_of
from serving.v1 import retrieval_pb2 as pb
from serving.v1 import retrieval_pb2_grpc as rpc
from tests.serving.doubles import Scripted, until
from tests.serving.shop import NUM_USERS, Shop
from tests.serving.test_scoring import CONTEXT

SETTINGS = Settings(port=0, threads=2)
ASK = pb.RetrieveRequest(k=3)


@pytest.fixture(scope="module")
def calls(pipeline: Pipeline) -> Iterator[Any]:
    """A stub of a server with the two-tower model and DCN-V2."""
    with running(lambda: pipeline, SETTINGS) as address, grpc.insecure_channel(address) as channel:
        yield rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]


def refusal(call: Any, request: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as refused:
        call(request, **options)
    return refused.value


def test_retrieve_answers_as_the_pipeline(calls: Any, pipeline: Pipeline) -> None:
    for user in range(NUM_USERS):
        query = RetrieveQuery(user=user, k=9, exclude_seen=True, excluded=[3])
        answer = messages.retrieved_of(calls.Retrieve(messages.retrieve_request(query)))
        expected = pipeline.retrieve(query)
        assert answer.items.tolist() == expected.items.tolist()
        np.testing.assert_array_equal(answer.scores, expected.scores)
        assert answer.source_names == ("twotower",)


def test_score_answers_as_the_pipeline(calls: Any, pipeline: Pipeline) -> None:
    query = ScoreQuery(user=3, items=list(range(40)), columns=CONTEXT)
    answer = messages.scored_of(calls.Score(messages.score_request(query)))
    np.testing.assert_array_equal(answer.scores, pipeline.score(query).scores)


def test_get_bundle_answers_as_the_pipeline(calls: Any, pipeline: Pipeline) -> None:
    assert messages.bundle_info_of(calls.GetBundle(pb.GetBundleRequest())) == pipeline.info


def test_responses_carry_bundle_and_token(calls: Any, pipeline: Pipeline) -> None:
    request = messages.score_request(ScoreQuery(user=3, items=[1], columns=CONTEXT))
    for response in (calls.Retrieve(ASK), calls.Score(request)):
        assert response.bundle_id == pipeline.bundle_id
        assert len(response.attribution_token) <= MAX_BYTES
        assert Attribution.from_token(response.attribution_token).is_of(pipeline.bundle_id)


REFUSED = {
    "k": pb.RetrieveRequest(k=0),
    "vector": pb.RetrieveRequest(k=1, vector=[1.0]),
    "filter": pb.RetrieveRequest(k=1, filter=pb.Filter()),
    "excluded": pb.RetrieveRequest(k=1, excluded=pb.Ids(numbers=[1], texts=["a"])),
    "features[age]": pb.RetrieveRequest(k=1, features={"age": pb.Column()}),
}


@pytest.mark.parametrize("field", REFUSED)
def test_invalid_argument_carries_the_field(calls: Any, field: str) -> None:
    error = refusal(calls.Retrieve, REFUSED[field])
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{field}: ")
    violations = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(violations)
    assert [violation.field for violation in violations.field_violations] == [field]
    assert "accepted" in violations.field_violations[0].description


def test_part_that_is_not_in_the_bundle_fails_the_precondition(shop: Shop) -> None:
    pipeline = Pipeline.load(shop.bundle("mf"))
    with running(lambda: pipeline, SETTINGS) as address, grpc.insecure_channel(address) as channel:
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        error = refusal(calls.Score, pb.ScoreRequest(items=pb.Ids(numbers=[1])))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "holds no ranker" in error.details()


def test_every_error_of_a_request_has_a_status() -> None:
    declared = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(STATUSES) == declared
    assert len(set(STATUSES.values())) == len(declared)


def test_unexpected_error_is_internal_and_says_nothing() -> None:
    status, noted = status_of(KeyError("user 4711"))
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert noted["error_id"] in status.message
    assert "4711" not in status.message + json.dumps(noted)
    assert noted["error"] == "KeyError"


def _scripted(pipeline: Scripted, settings: Settings = SETTINGS) -> Any:
    return running(lambda: pipeline, settings)


def test_unexpected_error_leaves_the_server_whole(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyError("user 4711")

    pipeline = Scripted(fail)
    with _scripted(pipeline) as address, grpc.insecure_channel(address) as channel:
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        with caplog.at_level(logging.INFO, logger="serving"):
            assert refusal(calls.Retrieve, ASK).code() == grpc.StatusCode.INTERNAL
        pipeline.stage = lambda: None
        assert calls.Retrieve(ASK).bundle_id == pipeline.bundle_id
    assert "4711" not in caplog.text


def test_deadline_of_the_caller_ends_the_work() -> None:
    release = threading.Event()
    pipeline = Scripted(release.wait)
    with _scripted(pipeline) as address, grpc.insecure_channel(address) as channel:
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        assert refusal(calls.Retrieve, ASK, timeout=0.2).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        release.set()
        assert until(lambda: pipeline.ended == ["expired"])


def test_call_without_a_deadline_gets_the_servers() -> None:
    release = threading.Event()
    pipeline = Scripted(release.wait)
    settings = Settings(port=0, threads=1, default_deadline_s=0.2)
    with _scripted(pipeline, settings) as address, grpc.insecure_channel(address) as channel:
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        error = refusal(calls.Retrieve, ASK)
        release.set()
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "before the answer was there" in error.details()


def test_cancelled_call_stops_and_queued_work_is_not_begun() -> None:
    release = threading.Event()
    pipeline = Scripted(release.wait)
    with _scripted(pipeline, Settings(port=0, threads=1)) as address, grpc.insecure_channel(address) as channel:
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        first = calls.Retrieve.future(ASK, timeout=30)
        assert pipeline.entered.wait(10)
        queued = [calls.Retrieve.future(ASK, timeout=30) for _ in range(3)]
        for call in (first, *queued):
            call.cancel()
        calls.GetBundle(pb.GetBundleRequest())  # by now the server has heard of it
        release.set()
        assert until(lambda: pipeline.ended == ["expired"])
        assert calls.Retrieve(ASK).bundle_id == pipeline.bundle_id
    assert pipeline.begun == 2


def test_too_many_calls_are_refused_and_health_is_not() -> None:
    release = threading.Event()
    pipeline = Scripted(release.wait)
    settings = Settings(port=0, threads=2, max_concurrent=1)
    with _scripted(pipeline, settings) as address, grpc.insecure_channel(address) as channel:
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        first = calls.Retrieve.future(ASK, timeout=30)
        assert pipeline.entered.wait(10)
        error = refusal(calls.Retrieve, ASK)
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        release.set()
        assert first.result().bundle_id == pipeline.bundle_id
        assert calls.Retrieve(ASK).bundle_id == pipeline.bundle_id  # the place is free again
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_request_that_is_too_large_is_refused(calls: Any) -> None:
    large = pb.RetrieveRequest(k=1, features={"age": pb.Column(texts=pb.Texts(values=["x" * (5 << 20)]))})
    assert refusal(calls.Retrieve, large).code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_every_call_is_one_line_without_ids(calls: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serving"):
        calls.Retrieve(pb.RetrieveRequest(k=3, user=pb.Id(number=4711)))
        refusal(calls.Retrieve, pb.RetrieveRequest(k=3, features={"x4711": pb.Column(texts=pb.Texts(values=["4711"]))}))
        calls.GetBundle(pb.GetBundleRequest())
    lines = [json.loads(record.message) for record in caplog.records if record.name == "serving"]
    assert [(line["method"], line["code"]) for line in lines] == [
        ("Retrieve", "OK"), ("Retrieve", "INVALID_ARGUMENT"), ("GetBundle", "OK"),
    ]  # fmt: skip
    assert lines[1]["field"] == "features"
    assert all(line["ms"] >= 0 for line in lines)
    assert "4711" not in json.dumps([{**line, "ms": 0} for line in lines])

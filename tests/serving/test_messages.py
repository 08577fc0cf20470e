"""Requests and responses: to the wire and back is the same value."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys.retrieval.filters import Equal
from serving import messages
from serving.queries import (
    BundleInfo,
    Catalogue,
    Fallback,
    FallbackReason,
    RankingInfo,
    RetrievalInfo,
    Retrieved,
    RetrieveQuery,
    Scored,
    ScoreQuery,
)
from serving.v1 import retrieval_pb2 as pb

FULL = RetrieveQuery(
    k=3,
    user=7,
    history=[1, 2],
    features={"age": pa.array([31])},
    vector=np.array([0.5, -1.0], np.float32),
    exclude_seen=True,
    excluded=[4],
    filter=Equal(attribute="category", value="shoes"),
)


PAST: dict[str, Any] = {"history": [8], "history_times": [-5], "history_features": {"s": pa.array(["x"])}, "time": 0}


def plain(value: Any) -> dict[str, Any]:
    """Its fields with arrays as lists, so that values can be compared."""
    named = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _plain(part) for name, part in named.items()}


def _plain(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: _plain(inner) for name, inner in part.items()}
    return part.tolist() if isinstance(part, np.ndarray | pa.Array) else list(part) if isinstance(part, tuple) else part


@pytest.mark.parametrize(
    "query",
    [FULL, replace(FULL, **PAST), RetrieveQuery(k=0), RetrieveQuery(k=1, user="u", history=[])],
    ids=["full", "past", "empty", "no history"],
)
def test_retrieve_query_round_trips(query: RetrieveQuery) -> None:
    request = pb.RetrieveRequest.FromString(messages.retrieve_request(query).SerializeToString())
    assert plain(messages.retrieve_query_of(request)) == plain(query) | {"excluded": _plain(np.array(query.excluded))}


@pytest.mark.parametrize(
    "query", [ScoreQuery(), ScoreQuery(user="u", items=["a"], columns={"x": pa.array([1.5])}), ScoreQuery(**PAST)]
)
def test_score_query_round_trips(query: ScoreQuery) -> None:
    request = pb.ScoreRequest.FromString(messages.score_request(query).SerializeToString())
    assert plain(messages.score_query_of(request)) == plain(query)


@pytest.mark.parametrize("reason", [None, *FallbackReason])
def test_retrieved_round_trips(reason: FallbackReason | None) -> None:
    answer = Retrieved(
        items=np.array([5, 3]),
        scores=np.array([0.5, 0.25], np.float32),
        sources=np.array([0, 1], np.uint32),
        source_names=("mf", "fallback"),
        fallback=None if reason is None else Fallback(reason=reason, detail="why"),
        user_known=True,
        unknown_history_ids=1,
        unknown_excluded_ids=2,
        unread_history_ids=3,
    )
    response = messages.retrieve_response(answer, "b" * 64, b"token")
    assert plain(messages.retrieved_of(response)) == plain(answer)
    assert (response.bundle_id, response.attribution_token) == ("b" * 64, b"token")
    assert answer.to_pandas()["source"].tolist() == ["mf", "fallback"]


def test_scored_round_trips() -> None:
    scores = np.array([[0.5, 0.25], [0.0, 1.0]], np.float32)
    answer = Scored(scores=scores, tasks=("click", "buy"), user_known=True, unknown_item_ids=1)
    assert plain(messages.scored_of(messages.score_response(answer, "b", b"t"))) == plain(answer)


def test_bundle_info_round_trips() -> None:
    catalogue = Catalogue(num_users=1, num_items=2, users_are_texts=True, items_are_texts=False)
    retrieval = RetrievalInfo(model="mf", catalogue=catalogue, embedding_dim=8, features=("a",), attributes=("b",))
    read = {"history_features": ("s", "t"), "history_times": True}
    ranking = RankingInfo(model="dcn", catalogue=catalogue, features=("a",), tasks=("click",))
    for info in (
        BundleInfo(bundle_id="b", components={"index": "c"}, retrieval=retrieval, ranking=None),
        BundleInfo(bundle_id="b", components={}, retrieval=None, ranking=ranking),
        BundleInfo(
            bundle_id="b",
            components={},
            retrieval=replace(retrieval, **read),  # type: ignore[arg-type]
            ranking=replace(ranking, **read),  # type: ignore[arg-type]
        ),
    ):
        assert messages.bundle_info_of(messages.bundle_response(info)) == info


def test_requests_of_the_first_release_are_read_as_ever() -> None:
    retrieve = pb.RetrieveRequest.FromString(bytes.fromhex(
        "0a02080712040a0201021a0c0a0361676512050a030a011f22080000003f000080bf280330013a030a0104421522130a0863617465"
        "676f727912071a0573686f6573"
    ))  # fmt: skip
    score = pb.ScoreRequest.FromString(bytes.fromhex(
        "0a0312017512031201611a120a016c120d1a060a01700a017122030a01021a1c0a0178121712120a10000000000000f83f00000000"
        "00000000320101"
    ))  # fmt: skip
    assert plain(messages.retrieve_query_of(retrieve)) == plain(FULL)
    columns = {"x": pa.array([1.5, None]), "l": pa.array([["p", "q"]])}
    assert plain(messages.score_query_of(score)) == plain(ScoreQuery(user="u", items=["a"], columns=columns))


def test_every_fallback_reason_has_its_number() -> None:
    assert set(messages.REASONS) == set(FallbackReason)
    assert set(messages.REASONS.values()) == set(pb.FallbackReason.values()) - {0}

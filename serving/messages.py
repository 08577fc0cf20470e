"""Whole requests and responses between the wire and memory. Every pair of functions is a round trip.

Not here: what a request means, and whether its values are accepted (`serving.pipeline`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from serving.columns import column_message, column_of, id_message, id_of, ids_message, ids_of
from serving.conditions import filter_message, filter_of
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
    SubjectQuery,
)
from serving.v1 import retrieval_pb2 as pb

REASONS = {
    FallbackReason.NO_SUBJECT: pb.FALLBACK_REASON_NO_SUBJECT,
    FallbackReason.UNKNOWN_USER: pb.FALLBACK_REASON_UNKNOWN_USER,
    FallbackReason.NOTHING_USABLE: pb.FALLBACK_REASON_NOTHING_USABLE,
}


def retrieve_query_of(request: pb.RetrieveRequest) -> RetrieveQuery:
    """What is asked; InvalidArgumentError for what cannot be read."""
    return RetrieveQuery(
        k=request.k,
        user=id_of(request.user),
        **_history_of(request),
        features=_columns_of(request.features, "features"),
        vector=np.array(request.vector, dtype=np.float32) if request.vector else None,
        exclude_seen=request.exclude_seen,
        excluded=ids_of(request.excluded, "excluded"),
        filter=filter_of(request.filter) if request.HasField("filter") else None,
    )


def retrieve_request(query: RetrieveQuery) -> pb.RetrieveRequest:
    """The inverse of `retrieve_query_of`."""
    return pb.RetrieveRequest(
        k=query.k,
        user=None if query.user is None else id_message(query.user),
        **_history_fields(query),
        features={name: column_message(column) for name, column in query.features.items()},
        vector=None if query.vector is None else query.vector.tolist(),
        exclude_seen=query.exclude_seen,
        excluded=ids_message(query.excluded) if len(query.excluded) else None,
        filter=None if query.filter is None else filter_message(query.filter),
    )


def _history_of(request: pb.RetrieveRequest | pb.ScoreRequest) -> dict[str, Any]:
    """The fields of `SubjectQuery` that say what happened when."""
    return {
        "history": ids_of(request.history, "history") if request.HasField("history") else None,
        "history_times": np.array(request.history_times, dtype=np.int64) if request.history_times else None,
        "history_features": _columns_of(request.history_features, "history_features"),
        "time": request.time if request.HasField("time") else None,
    }


def _history_fields(query: SubjectQuery) -> dict[str, Any]:
    """The inverse of `_history_of`."""
    return {
        "history": None if query.history is None else ids_message(query.history),
        "history_times": None if query.history_times is None else np.asarray(query.history_times).tolist(),
        "history_features": {name: column_message(column) for name, column in query.history_features.items()},
        "time": query.time,
    }


def _columns_of(columns: Mapping[str, pb.Column], field: str) -> dict[str, pa.Array]:
    return {name: column_of(column, f"{field}[{name}]") for name, column in columns.items()}


def retrieve_response(answer: Retrieved, bundle_id: str, token: bytes) -> pb.RetrieveResponse:
    """The answer, of this bundle, under this attribution token."""
    return pb.RetrieveResponse(
        items=ids_message(answer.items),
        scores=answer.scores.tolist(),
        sources=answer.sources.tolist(),
        source_names=answer.source_names,
        bundle_id=bundle_id,
        attribution_token=token,
        fallback=None if answer.fallback is None else _fallback_message(answer.fallback),
        user_known=answer.user_known,
        unknown_history_ids=answer.unknown_history_ids,
        unknown_excluded_ids=answer.unknown_excluded_ids,
        unread_history_ids=answer.unread_history_ids,
    )


def retrieved_of(response: pb.RetrieveResponse) -> Retrieved:
    """The inverse of `retrieve_response`, less bundle id and token."""
    return Retrieved(
        items=ids_of(response.items, "items"),
        scores=np.array(response.scores, dtype=np.float32),
        sources=np.array(response.sources, dtype=np.uint32),
        source_names=tuple(response.source_names),
        fallback=_fallback_of(response.fallback) if response.HasField("fallback") else None,
        user_known=response.user_known,
        unknown_history_ids=response.unknown_history_ids,
        unknown_excluded_ids=response.unknown_excluded_ids,
        unread_history_ids=response.unread_history_ids,
    )


def _fallback_message(fallback: Fallback) -> pb.Fallback:
    return pb.Fallback(reason=REASONS[fallback.reason], detail=fallback.detail)


def _fallback_of(message: pb.Fallback) -> Fallback:
    """A reason of a newer server reads as the most general one."""
    known = {value: reason for reason, value in REASONS.items()}
    return Fallback(reason=known.get(message.reason, FallbackReason.NOTHING_USABLE), detail=message.detail)


def score_query_of(request: pb.ScoreRequest) -> ScoreQuery:
    """What is asked; InvalidArgumentError for what cannot be read."""
    return ScoreQuery(
        user=id_of(request.user),
        items=ids_of(request.items, "items") if request.HasField("items") else None,
        columns=_columns_of(request.columns, "columns"),
        **_history_of(request),
    )


def score_request(query: ScoreQuery) -> pb.ScoreRequest:
    """The inverse of `score_query_of`."""
    return pb.ScoreRequest(
        user=None if query.user is None else id_message(query.user),
        items=None if query.items is None else ids_message(query.items),
        columns={name: column_message(column) for name, column in query.columns.items()},
        **_history_fields(query),
    )


def score_response(answer: Scored, bundle_id: str, token: bytes) -> pb.ScoreResponse:
    """The answer, of this bundle, under this attribution token."""
    return pb.ScoreResponse(
        scores=answer.scores.ravel().tolist(),
        tasks=answer.tasks,
        bundle_id=bundle_id,
        attribution_token=token,
        user_known=answer.user_known,
        unknown_item_ids=answer.unknown_item_ids,
        unknown_history_ids=answer.unknown_history_ids,
        unread_history_ids=answer.unread_history_ids,
    )


def scored_of(response: pb.ScoreResponse) -> Scored:
    """The inverse of `score_response`, less bundle id and token."""
    return Scored(
        scores=np.array(response.scores, dtype=np.float32).reshape(-1, max(1, len(response.tasks))),
        tasks=tuple(response.tasks),
        user_known=response.user_known,
        unknown_item_ids=response.unknown_item_ids,
        unknown_history_ids=response.unknown_history_ids,
        unread_history_ids=response.unread_history_ids,
    )


def bundle_response(info: BundleInfo) -> pb.GetBundleResponse:
    """What is served."""
    return pb.GetBundleResponse(
        bundle_id=info.bundle_id,
        components=dict(info.components),
        retrieval=None if info.retrieval is None else _retrieval_message(info.retrieval),
        ranking=None if info.ranking is None else _ranking_message(info.ranking),
    )


def bundle_info_of(response: pb.GetBundleResponse) -> BundleInfo:
    """The inverse of `bundle_response`."""
    return BundleInfo(
        bundle_id=response.bundle_id,
        components=dict(response.components),
        retrieval=_retrieval_of(response.retrieval) if response.HasField("retrieval") else None,
        ranking=_ranking_of(response.ranking) if response.HasField("ranking") else None,
    )


def _retrieval_message(info: RetrievalInfo) -> pb.Retrieval:
    return pb.Retrieval(
        model=info.model,
        catalogue=_catalogue_message(info.catalogue),
        embedding_dim=info.embedding_dim,
        features=info.features,
        attributes=info.attributes,
        history_features=info.history_features,
        history_times=info.history_times,
    )


def _retrieval_of(message: pb.Retrieval) -> RetrievalInfo:
    return RetrievalInfo(
        model=message.model,
        catalogue=_catalogue_of(message.catalogue),
        embedding_dim=message.embedding_dim,
        features=tuple(message.features),
        attributes=tuple(message.attributes),
        history_features=tuple(message.history_features),
        history_times=message.history_times,
    )


def _ranking_message(info: RankingInfo) -> pb.Ranking:
    return pb.Ranking(
        model=info.model,
        catalogue=_catalogue_message(info.catalogue),
        features=info.features,
        tasks=info.tasks,
        history_features=info.history_features,
        history_times=info.history_times,
    )


def _ranking_of(message: pb.Ranking) -> RankingInfo:
    return RankingInfo(
        model=message.model,
        catalogue=_catalogue_of(message.catalogue),
        features=tuple(message.features),
        tasks=tuple(message.tasks),
        history_features=tuple(message.history_features),
        history_times=message.history_times,
    )


def _catalogue_message(catalogue: Catalogue) -> pb.Catalogue:
    return pb.Catalogue(
        num_users=catalogue.num_users,
        num_items=catalogue.num_items,
        user_id_type=_id_type(catalogue.users_are_texts),
        item_id_type=_id_type(catalogue.items_are_texts),
    )


def _catalogue_of(message: pb.Catalogue) -> Catalogue:
    return Catalogue(
        num_users=message.num_users,
        num_items=message.num_items,
        users_are_texts=message.user_id_type == pb.ID_TYPE_STRING,
        items_are_texts=message.item_id_type == pb.ID_TYPE_STRING,
    )


def _id_type(are_texts: bool) -> pb.IdType:
    return pb.ID_TYPE_STRING if are_texts else pb.ID_TYPE_UINT64

"""The typed Python client: `Client(address)` asks a server for candidates, scores, and what it serves.

A call that finds no server is repeated (UNAVAILABLE only, at most four attempts); nothing else is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
import pyarrow as pa
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from numpy.typing import ArrayLike

from recsys.retrieval.filters import parse_predicate
from serving.columns import column_message, column_of
from serving.messages import bundle_info_of, retrieve_request, retrieved_of, score_request, scored_of
from serving.queries import BundleInfo, Filter, RawId, RawIds, Retrieved, RetrieveQuery, Scored, ScoreQuery
from serving.v1 import retrieval_pb2 as pb
from serving.v1 import retrieval_pb2_grpc as rpc

RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
SERVICE_CONFIG = {
    "methodConfig": [{"name": [{}], "retryPolicy": RETRY}],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
Response = TypeVar("Response")


class ServingError(Exception):
    """A call that was not answered.

    code: the name of the gRPC status. violations: field -> reason, for INVALID_ARGUMENT.
    """

    def __init__(self, code: str, message: str, violations: Mapping[str, str]) -> None:
        self.code = code
        self.violations = dict(violations)
        super().__init__(f"{code}: {message}")


@dataclass(frozen=True, kw_only=True)
class Candidates(Retrieved):
    """Candidates, the bundle that they came from, and the token to hand back with what the user does."""

    bundle_id: str
    attribution_token: bytes


@dataclass(frozen=True, kw_only=True)
class Scores(Scored):
    """Probabilities, the bundle that they came from, and the token to hand back with what the user does."""

    bundle_id: str
    attribution_token: bytes


class Client:
    """A channel to one server. timeout_s: the deadline of every call, in seconds.

    Every method raises ServingError when the call is not answered.
    Example: `with Client("127.0.0.1:50051") as client: client.retrieve(user=7, k=10).items`.
    """

    def __init__(self, address: str = "127.0.0.1:50051", *, timeout_s: float = 1.0) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s}")
        self._timeout_s = timeout_s
        options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
        self._channel = grpc.insecure_channel(address, options=options)
        self._calls = rpc.CandidateRetrievalServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._channel.close()

    def retrieve(
        self,
        *,
        k: int,
        user: RawId | None = None,
        history: RawIds | None = None,
        history_times: Sequence[int] | None = None,
        history_features: Mapping[str, Any] | None = None,
        time: int | None = None,
        features: Mapping[str, Any] | None = None,
        vector: ArrayLike | None = None,
        exclude_seen: bool = True,
        excluded: RawIds = (),
        filter: Filter | Mapping[str, Any] | str | None = None,  # noqa: A002
    ) -> Candidates:
        """The k best items; the arguments are those of `RetrieveQuery`.

        features: user feature -> its value (a list for a list feature). history_features: event feature -> a value
        for each item of the history. filter: a predicate, or its JSON form.
        """
        query = RetrieveQuery(
            k=k,
            user=user,
            history=history,
            history_times=history_times,
            history_features=_columns(history_features),
            time=time,
            features=_columns({name: [value] for name, value in (features or {}).items()}),
            vector=None if vector is None else np.asarray(vector, dtype=np.float32).ravel(),
            exclude_seen=exclude_seen,
            excluded=excluded,
            filter=parse_predicate(filter) if isinstance(filter, str | Mapping) else filter,
        )
        response = self._call(self._calls.Retrieve, retrieve_request(query))
        answer = retrieved_of(response)
        return Candidates(**vars(answer), bundle_id=response.bundle_id, attribution_token=response.attribution_token)

    def score(
        self,
        *,
        user: RawId | None = None,
        items: RawIds | None = None,
        columns: Mapping[str, Any] | None = None,
        history: RawIds | None = None,
        history_times: Sequence[int] | None = None,
        history_features: Mapping[str, Any] | None = None,
        time: int | None = None,
    ) -> Scores:
        """Probabilities of rows; the arguments are those of `ScoreQuery`.

        columns: feature -> a value for each row, as an Arrow array or what `pyarrow.array` takes, or one for all rows:
        a text or number as it is, a list in a list. history_features: as in `retrieve`.
        """
        query = ScoreQuery(
            user=user,
            items=items,
            columns=_columns({name: _per_row(values) for name, values in (columns or {}).items()}),
            history=history,
            history_times=history_times,
            history_features=_columns(history_features),
            time=time,
        )
        response = self._call(self._calls.Score, score_request(query))
        return Scores(
            **vars(scored_of(response)), bundle_id=response.bundle_id, attribution_token=response.attribution_token
        )

    def bundle(self) -> BundleInfo:
        """What is served."""
        return bundle_info_of(self._call(self._calls.GetBundle, pb.GetBundleRequest()))

    def is_serving(self) -> bool:
        """Whether a bundle is loaded and calls are answered; False too when no server is there."""
        try:
            response = self._call(self._health.Check, health_pb2.HealthCheckRequest())
        except ServingError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise _described(error) from None


def _columns(columns: Mapping[str, Any] | None) -> dict[str, pa.Array]:
    """Columns as they are read on the other side."""
    return {name: column_of(column_message(values), name) for name, values in (columns or {}).items()}


def _per_row(values: Any) -> Any:
    """A single text, number or None as a column of one row."""
    return [values] if values is None or isinstance(values, str | int | float | np.generic) else values


def _described(error: Any) -> ServingError:
    """What a failed call says, with the field violations that it carries."""
    violations: dict[str, str] = {}
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            violations |= {fault.field: fault.description for fault in bad_request.field_violations}
    return ServingError(error.code().name, error.details() or "", violations)

"""The thin servicer: messages in, the pipeline in a worker thread, messages out; and what becomes of exceptions.

The event loop only reads, queues and writes. All work runs in a bounded pool of threads, so that a slow request delays
those behind it and not the health checks. Nothing in here knows models or indexes.
"""

import asyncio
import json
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.attribution import Attribution
from serving.deadline import Deadline
from serving.errors import (
    DeadlineExpiredError,
    InvalidArgumentError,
    NotReadyError,
    NotServedError,
    OverloadedError,
)
from serving.messages import bundle_response, retrieve_query_of, retrieve_response, score_query_of, score_response
from serving.queries import Answerer
from serving.v1 import retrieval_pb2 as pb
from serving.v1 import retrieval_pb2_grpc as rpc

SERVICE = pb.DESCRIPTOR.services_by_name["CandidateRetrievalService"].full_name
STATUSES: dict[type[Exception], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotServedError: grpc.StatusCode.FAILED_PRECONDITION,
    NotReadyError: grpc.StatusCode.UNAVAILABLE,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExpiredError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
Reply = TypeVar("Reply")
Handler = Callable[[Any, Any], Awaitable[Any]]
log = logging.getLogger("serving")


class Service(rpc.CandidateRetrievalServiceServicer):
    """Answers from `pipeline`, which is set once its bundle is loaded.

    default_deadline_s: how long a call may take whose caller names no deadline.
    """

    def __init__(self, workers: Executor, default_deadline_s: float) -> None:
        self.pipeline: Answerer | None = None
        self._workers = workers
        self._default_deadline_s = default_deadline_s

    async def Retrieve(self, request: pb.RetrieveRequest, context: Any) -> pb.RetrieveResponse:  # noqa: N802
        """See protos/serving/v1."""

        def answer(pipeline: Answerer, deadline: Deadline) -> pb.RetrieveResponse:
            found = pipeline.retrieve(retrieve_query_of(request), deadline)
            return retrieve_response(found, pipeline.bundle_id, _token(pipeline))

        return await self._in_worker(context, answer)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        """See protos/serving/v1."""

        def answer(pipeline: Answerer, deadline: Deadline) -> pb.ScoreResponse:
            scored = pipeline.score(score_query_of(request), deadline)
            return score_response(scored, pipeline.bundle_id, _token(pipeline))

        return await self._in_worker(context, answer)

    async def GetBundle(self, request: pb.GetBundleRequest, context: Any) -> pb.GetBundleResponse:  # noqa: N802
        """See protos/serving/v1."""
        return bundle_response(self._loaded().info)

    def _loaded(self) -> Answerer:
        if self.pipeline is None:
            raise NotReadyError("no bundle is loaded yet")
        return self.pipeline

    async def _in_worker(self, context: Any, answer: Callable[[Answerer, Deadline], Reply]) -> Reply:
        """The answer, from a thread of the pool. Work that nobody waits for any more ends before its next stage."""
        pipeline = self._loaded()
        left = context.time_remaining()
        deadline = Deadline.after(self._default_deadline_s if left is None else left)
        work = asyncio.get_running_loop().run_in_executor(self._workers, answer, pipeline, deadline)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await work
        except TimeoutError:
            raise DeadlineExpiredError("the time was spent before the answer was there") from None
        finally:
            deadline.cancel()


def _token(pipeline: Answerer) -> bytes:
    return Attribution.of(pipeline.bundle_id).to_token()


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Around every call of our service: admits so many at once, turns exceptions into statuses, writes one log line.

    Health and reflection are not counted, so an overloaded server still says that it is well.
    """

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self._running = 0

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The handler of the method, guarded if it is one of ours."""
        handler = await continuation(details)
        service, _, method = details.method.removeprefix("/").partition("/")
        if handler is None or service != SERVICE:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(method, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _guarded(self, method: str, handler: Handler) -> Handler:
        async def guarded(request: Any, context: Any) -> Any:
            started = time.perf_counter()
            try:
                response = await self._admitted(handler, request, context)
            except asyncio.CancelledError:
                _log_call(method, "CANCELLED", started)
                raise
            except Exception as error:  # the one place where exceptions become statuses
                status, noted = status_of(error)
                _log_call(method, CODES[status.code].name, started, noted)
                await _abort(context, status)
            else:
                _log_call(method, "OK", started)
                return response

        return guarded

    async def _admitted(self, handler: Handler, request: Any, context: Any) -> Any:
        if self._running >= self._max_concurrent:
            raise OverloadedError(f"{self._max_concurrent} calls are being answered, the most at once; try again later")
        self._running += 1
        try:
            return await handler(request, context)
        finally:
            self._running -= 1


def status_of(error: Exception) -> tuple[status_pb2.Status, dict[str, Any]]:
    """The status that the caller sees, and what is logged beside it.

    What is unexpected is INTERNAL with an id; the log has the id, the type and the place, but not the text, which may
    quote a request.
    """
    code = STATUSES.get(type(error))
    if code is None:
        number = secrets.token_hex(8)
        status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message=f"internal error {number}")
        return status, {"error_id": number, "error": type(error).__name__, "at": _places(error)}
    status = status_pb2.Status(code=code.value[0], message=str(error))
    if not isinstance(error, InvalidArgumentError):
        return status, {}
    violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.reason)
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    status.details.append(detail)
    return status, {"field": error.field.partition("[")[0]}


def _places(error: Exception) -> list[str]:
    """Where it was raised, the outermost call first."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


async def _abort(context: Any, status: status_pb2.Status) -> None:
    parts = rpc_status.to_status(status)
    await context.abort(parts.code, parts.details, parts.trailing_metadata)


def _log_call(method: str, code: str, started: float, noted: dict[str, Any] | None = None) -> None:
    """One JSON object in one line; never ids of users, nor values of a request."""
    line = {"method": method, "code": code, "ms": round((time.perf_counter() - started) * 1000, 3)} | (noted or {})
    log.log(logging.ERROR if code == "INTERNAL" else logging.INFO, json.dumps(line))

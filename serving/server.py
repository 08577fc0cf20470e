"""Building, running and draining the server: one bundle behind one port, in one event loop.

A server listens at once and says NOT_SERVING until its bundle is loaded. SIGTERM or SIGINT says NOT_SERVING first, then
refuses new calls, and ends when those under way have been answered; a second one does not wait for them.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.queries import Answerer
from serving.service import SERVICE, Guard, Service
from serving.v1 import retrieval_pb2_grpc as rpc

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger("serving")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to serve.

    port 0: any free port. threads: of the pool that does the work, 0 for one per core. max_concurrent: calls under way
    and waiting; more are refused with RESOURCE_EXHAUSTED. default_deadline_s: for calls that name no deadline.
    drain_s: how long calls under way may take after SIGTERM. Raises ValueError naming the setting.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    threads: int = 0
    max_concurrent: int = 64
    default_deadline_s: float = 1.0
    drain_s: float = 10.0
    reflection: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0..65535, got {self.port}")
        for name in ("threads", "drain_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("max_concurrent", "default_deadline_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def address(self) -> str:
        """host:port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def num_threads(self) -> int:
        """Threads of the pool."""
        return self.threads or os.cpu_count() or 1


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc ships no types
    """The standard health service (grpc.health.v1): serving, not serving, or closing.

    The servicer that comes with grpc keeps the streams of its watchers open, so that with a single watcher every drain
    lasts as long as it may; here closing says NOT_SERVING to them and ends them.
    """

    def __init__(self) -> None:
        self._status = NOT_SERVING
        self._closing = False
        self._changed = asyncio.Condition()

    async def set(self, status: int, *, closing: bool = False) -> None:
        """What is said from now on; nothing is heard after closing."""
        async with self._changed:
            if not self._closing:
                self._status, self._closing = status, closing
            self._changed.notify_all()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status of the server (service "") or of one of its services."""
        if request.service not in ("", SERVICE, HEALTH):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:80]!r}")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The status now, and at each change, until the server closes."""
        known = request.service in ("", SERVICE, HEALTH)
        last = False
        while not last:
            said, last = self._status, self._closing
            status = said if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            yield health_pb2.HealthCheckResponse(status=status)
            async with self._changed:
                while not last and self._status == said and not self._closing:
                    await self._changed.wait()


class Server:
    """One bundle behind one port. All methods belong to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers = ThreadPoolExecutor(settings.num_threads, thread_name_prefix="serving")
        self._service = Service(self._workers, settings.default_deadline_s)
        self._health = Health()
        # Without so_reuseport=0 a second server on the same port would start, and take half of the connections.
        guard = Guard(settings.max_concurrent)
        self._grpc = grpc.aio.server(interceptors=[guard], options=[("grpc.so_reuseport", 0)])
        rpc.add_CandidateRetrievalServiceServicer_to_server(self._service, self._grpc)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if settings.reflection:
            reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), self._grpc)

    async def start(self) -> Settings:
        """Listen, saying NOT_SERVING; returns the settings with the port that was chosen.

        Raises OSError naming the address when it cannot be listened on.
        """
        check_free(self._settings)
        try:
            port = self._grpc.add_insecure_port(self._settings.address)
        except RuntimeError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), self._settings.address) from None
        await self._grpc.start()
        return replace(self._settings, port=port)

    async def load(self, load: Callable[[], Answerer]) -> Answerer:
        """Load the bundle in a thread, then say SERVING."""
        pipeline = await asyncio.to_thread(load)
        self._service.pipeline = pipeline
        await self._health.set(SERVING)
        return pipeline

    async def drain(self) -> None:
        """Say NOT_SERVING, refuse new calls, end when those under way are answered or `drain_s` is over."""
        await self._health.set(NOT_SERVING, closing=True)
        await self._grpc.stop(self._settings.drain_s)
        self._workers.shutdown(wait=False, cancel_futures=True)


def check_free(settings: Settings) -> None:
    """Raise OSError naming the address if another process listens there, or it is not of this machine."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(kind, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EADDRNOTAVAIL, f"cannot listen: {reason}", settings.address) from None


async def serve(
    load: Callable[[], Answerer],
    settings: Settings,
    stop: asyncio.Event,
    ready: Callable[[Settings, Answerer], None],
) -> None:
    """Listen, load, call `ready` with the settings (and the port chosen), and serve until `stop`; then drain."""
    server = Server(settings)
    listening = await server.start()
    stopping = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(server.load(load))
    try:
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            ready(listening, loading.result())
        await stopping
    finally:
        stopping.cancel()
        loading.cancel()
        await server.drain()


def run(load: Callable[[], Answerer], settings: Settings, say: Callable[[str], None] = print) -> None:
    """Serve in this process until SIGTERM or SIGINT, with log lines on stderr and one line to `say` when ready.

    A second signal ends the process at once. Raises what loading raises, and OSError when the port is in use.
    """
    log_to_stderr()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.num_threads))
    asyncio.run(_serve_until_signalled(load, settings, say))


async def _serve_until_signalled(load: Callable[[], Answerer], settings: Settings, say: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop_once() -> None:
        stop.set()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, lambda received, _: os._exit(128 + received))

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop_once)
    await serve(load, settings, stop, lambda listening, pipeline: say(_greeting(listening, pipeline)))


def _greeting(listening: Settings, pipeline: Answerer) -> str:
    return f"serving bundle {pipeline.bundle_id[:12]} on {listening.address}"


@contextmanager
def running(load: Callable[[], Answerer], settings: Settings) -> Iterator[str]:
    """A server in a thread of this process, drained on leaving; gives the address to reach it at.

    Example: `with running(lambda: pipeline, Settings(port=0)) as address, Client(address) as client: ...`
    """
    started: Future[tuple[str, Callable[[], object]]] = Future()

    async def body() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def ready(listening: Settings, _: Answerer) -> None:
            started.set_result((listening.address, lambda: loop.call_soon_threadsafe(stop.set)))

        await serve(load, settings, stop, ready)

    with ThreadPoolExecutor(1, thread_name_prefix="server") as thread:
        ended = thread.submit(lambda: asyncio.run(body()))
        either: list[Future[Any]] = [started, ended]
        wait(either, return_when=FIRST_COMPLETED)
        if not started.done():
            ended.result()  # raises what starting raised
        address, stop = started.result()
        try:
            yield address
        finally:
            stop()
            ended.result()


def log_to_stderr() -> None:
    """Send the service's log, one JSON object per line, to stderr, once."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False

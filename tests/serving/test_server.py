"""The server as a process: ports, health before and after loading, reflection, and draining."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving.client import Client
from serving.pipeline import Pipeline
from serving.server import Settings, running
from serving.service import SERVICE
from serving.v1 import retrieval_pb2 as pb
from serving.v1 import retrieval_pb2_grpc as rpc
from tests.serving.doubles import Scripted, until

ROOT = Path(__file__).resolve().parents[2]
STATUS = health_pb2.HealthCheckResponse
SLOW_SERVER = """
import time
from serving.server import Settings, run
from tests.serving.doubles import Scripted
run(lambda: Scripted(lambda: time.sleep({seconds})), Settings(port=0, threads=1, default_deadline_s=60))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def health(channel: Any, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 65536}, "port must be 0..65535, got 65536"),
        ({"threads": -1}, "threads must not be negative"),
        ({"drain_s": -1.0}, "drain_s must not be negative"),
        ({"max_concurrent": 0}, "max_concurrent must be above 0"),
        ({"default_deadline_s": 0.0}, "default_deadline_s must be above 0"),
    ],
)
def test_setting_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_default_bind_is_this_machine_alone() -> None:
    assert Settings().address == "127.0.0.1:50051"
    assert Settings(host="::1", port=7).address == "[::1]:7"


def test_port_in_use_is_refused_by_name() -> None:
    with running(Scripted, Settings(port=0)) as address:
        port = int(address.rpartition(":")[2])
        second = running(Scripted, Settings(port=port))
        with pytest.raises(OSError, match=f"cannot listen: Address already in use.*127.0.0.1:{port}"), second:
            pass
        with Client(address) as client:
            assert client.is_serving()


def test_host_that_is_not_ours_is_refused_by_name() -> None:
    with pytest.raises(OSError, match="cannot listen"), running(Scripted, Settings(host="192.0.2.1", port=0)):
        pass


def test_server_is_not_serving_until_loaded() -> None:
    go_on, port = threading.Event(), free_port()

    def load() -> Pipeline:
        go_on.wait(30)
        return Scripted()

    def body() -> None:
        with running(load, Settings(port=port)):
            done.wait(30)

    done = threading.Event()
    thread = threading.Thread(target=body)
    thread.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(10)
        assert health(channel) == STATUS.NOT_SERVING
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as refused:
            calls.Retrieve(pb.RetrieveRequest(k=1))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "no bundle is loaded yet" in refused.value.details()
        go_on.set()
        assert until(lambda: bool(health(channel) == STATUS.SERVING))
        assert health(channel, SERVICE) == STATUS.SERVING
    done.set()
    thread.join(30)


def test_bundle_that_cannot_be_loaded_ends_the_server() -> None:
    port = free_port()

    def load() -> Pipeline:
        raise ValueError("the bundle is damaged")

    for _ in range(2):  # the second time finds the port free
        with pytest.raises(ValueError, match="the bundle is damaged"), running(load, Settings(port=port)):
            pass


def test_health_of_an_unknown_service_is_not_found() -> None:
    with running(Scripted, Settings(port=0)) as address, grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            health(channel, "no.such.Service")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert next(watched).status == STATUS.SERVICE_UNKNOWN
        watched.cancel()


def test_watcher_hears_of_the_drain_and_does_not_prolong_it() -> None:
    with running(Scripted, Settings(port=0, drain_s=60)) as address:
        channel = grpc.insecure_channel(address)
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == STATUS.SERVING
        started = time.monotonic()
    assert [response.status for response in watched] == [STATUS.NOT_SERVING]
    assert time.monotonic() - started < 30
    channel.close()


def listed_services(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        return [service.name for service in answer.list_services_response.service]


def test_reflection_lists_the_services() -> None:
    with running(Scripted, Settings(port=0)) as address:
        assert {SERVICE, "grpc.health.v1.Health"} <= set(listed_services(address))


def test_reflection_can_be_off() -> None:
    with running(Scripted, Settings(port=0, reflection=False)) as address:
        with pytest.raises(grpc.RpcError) as refused:
            listed_services(address)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@contextmanager
def process(seconds: float) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server in a process of its own whose every call takes so long, and its address."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SLOW_SERVER.format(seconds=seconds)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("serving bundle abababababab on 127.0.0.1:"), server.communicate()
        try:
            yield server, line.split()[-1]
        finally:
            server.kill()


def test_sigterm_answers_what_is_under_way_and_exits_with_0() -> None:
    with process(seconds=1.0) as (server, address), grpc.insecure_channel(address) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == STATUS.SERVING
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        under_way = calls.Retrieve.future(pb.RetrieveRequest(k=1))
        calls.GetBundle(pb.GetBundleRequest())  # by now the call before it has arrived
        server.send_signal(signal.SIGTERM)
        assert [response.status for response in watched] == [STATUS.NOT_SERVING]
        assert not under_way.done()
        assert under_way.result(timeout=30).bundle_id == "ab" * 32
        _, log = server.communicate(timeout=30)
    assert server.returncode == 0
    assert '"code": "OK"' in log
    assert "Traceback" not in log


def test_second_sigterm_does_not_wait() -> None:
    with process(seconds=30) as (server, address), grpc.insecure_channel(address) as channel:
        calls = rpc.CandidateRetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == STATUS.SERVING
        calls.Retrieve.future(pb.RetrieveRequest(k=1))
        calls.GetBundle(pb.GetBundleRequest())
        server.send_signal(signal.SIGTERM)
        assert [response.status for response in watched] == [STATUS.NOT_SERVING]
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 128 + signal.SIGTERM

"""Runs a function of a test module on two gloo ranks: one interpreter imports everything once, then forks them.

    run_on_two_ranks(check_sums, str(tmp_path))     # check_sums(folder) asserts, on each rank

The function takes strings. Ranks find each other as under torchrun, on a free port. As a script this is the interpreter
that forks; it exits with 0 when both ranks ended as they should.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from recsys import distributed

ROOT = Path(__file__).resolve().parent.parent.parent
WORLD_SIZE = 2


def run_on_two_ranks(
    function: Callable[..., None], *arguments: str, killed: int = -1, timeout_s: float = 120.0
) -> None:
    """Fail, with what the ranks printed, unless the function returns on both; the rank `killed` must die of SIGKILL."""
    command = [sys.executable, __file__, str(killed), function.__module__, function.__name__, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as forked:  # fmt: skip
        try:
            printed, _ = forked.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(forked.pid, signal.SIGKILL)
            printed = f"no end after {timeout_s} s\n" + forked.communicate()[0]
    assert forked.returncode == 0, printed


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _fork_ranks(killed: int, module: str, function: str, *arguments: str) -> int:
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", module=r"(features|recsys)\.")
    work = getattr(importlib.import_module(module), function)
    port = free_port()
    ranks = [_fork(rank, port, work, arguments) for rank in range(WORLD_SIZE)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    expected = [-signal.SIGKILL if rank == killed else 0 for rank in range(WORLD_SIZE)]
    print(f"the ranks ended with {codes}, expected {expected}")
    return int(codes != expected)


def _fork(rank: int, port: int, work: Callable[..., None], arguments: Sequence[str]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD_SIZE)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        torch.set_num_threads(1)
        with distributed.joined_ranks(timeout_s=60):
            work(*arguments)
        code = 0
    except BaseException:  # whatever it is, this child must not go on with its parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(_fork_ranks(int(sys.argv[1]), *sys.argv[2:]))

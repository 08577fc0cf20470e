"""What the tests of isolation have done in processes that may die."""

import os
import signal
import sys
import time

import torch

from recsys import distributed


def greet(name: str) -> dict[str, object]:
    print("noise on stdout is no answer")
    return {"hello": name, "ranks": distributed.world_size()}


def add_ranks(_: str) -> int:
    return int(distributed.all_reduce_sum(torch.tensor([distributed.rank() + 1])).item())


def crash(rank: str) -> None:
    if distributed.rank() == int(rank):
        os.kill(os.getpid(), signal.SIGSEGV)
    distributed.barrier()


def fail(text: str) -> None:
    raise LookupError(text)


def leave(code: str) -> None:
    sys.exit(int(code))


def sleep(seconds: str) -> None:
    time.sleep(float(seconds))

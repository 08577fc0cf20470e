"""Peak memory and time of preparing a long log: histories, vocabularies and examples of 50 million events.

    python -m tests.bench.bench_prepare [--rows 50000000] [--folder DIR]

The log (synthetic, one Parquet file, made in DIR and removed) has 1 event in 25 from a new user, items drawn by a power
law out of 1 M, four clicks in ten, times in order. It is prepared twice by `recsys prepare` in a process of its own: a
fiftieth of it, then all of it. Printed: the peak of each process's resident memory, its CPU and wall time. Mapped files
count as memory while they are in it, so the figure is an upper bound.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PART, USER_EVENTS, ITEMS = 1_000_000, 25, 1_000_000
SCHEMA = """name = "long"
user = "user"
item = "item"
timestamp = "time"

[features.user]
table = "ids"

[features.item]
table = "ids"

[features.device]
table = "ids"

[labels.click]

[sequences.past]
of = { history = "item", history_device = "device" }
max_length = 100
age = { name = "age", by = "time", table = "ids" }
"""
CONFIG = """[data]
name = "long"
source = "parquet"
path = "log.parquet"
schema = "schema.toml"
examples = "all"
split = { kind = "time", validation = 0.01, test = 0.01 }

[model]
name = "base"

[tables.ids]
method = "dense"
embedding_dim = 8
"""


def write_log(path: Path, rows: int) -> None:
    """The first `rows` events."""
    rng, written = np.random.default_rng(0), 0
    devices = pa.array(["phone", "tablet", "desktop"])
    with path.open("wb") as file:
        writer = None
        while written < rows:
            part = min(PART, rows - written)
            table = pa.table({
                "user": rng.integers(0, max(1, rows // USER_EVENTS), part),
                "item": (ITEMS * rng.random(part) ** 3).astype(np.int64),
                "time": 1_767_225_600 + (written + np.arange(part)) // 20,
                "device": devices.take(pa.array(rng.integers(0, 3, part))),
                "click": (rng.random(part) < 0.4).astype(np.int8),
            })  # fmt: skip
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
            written += part
        if writer is not None:
            writer.close()


def measured(folder: Path) -> tuple[float, float, float]:
    """Peak GiB, CPU seconds and wall seconds of `recsys prepare` in a child."""
    command = [sys.executable, "-m", "recsys.cli", "prepare", "config.toml", "--data", ".", "--prepared", "prepared"]
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = os.getcwd()
        os.chdir(folder)
        os.execv(command[0], command)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"prepare ended with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 2**20, usage.ru_utime + usage.ru_stime, time.monotonic() - started


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the system's)")
    args = parser.parse_args()
    for rows in (max(1, args.rows // 50), args.rows):
        with TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            (folder / "schema.toml").write_text(SCHEMA)
            (folder / "config.toml").write_text(CONFIG)
            write_log(folder / "log.parquet", rows)
            peak, cpu, wall = measured(folder)
            print(f"{rows:,} events: peak {peak:.2f} GiB, {cpu:.0f} s of CPU, {wall:.0f} s", flush=True)


if __name__ == "__main__":
    main()

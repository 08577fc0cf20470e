"""The memory of training is bounded by the loader's blocks, not by the length of the log (a script and its test).

    python -m tests.recsys.test_training_memory FOLDER NUM_ROWS     one epoch over so many rows; prints peak MiB, rows/s

Rows of eight hashed ids and a label, in files as `prepare` writes them, stream through the trainer into a DCN over one
multiplexed fused table. Up to 2 million rows the loader keeps all of them, from there on two blocks of 1 million.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from features.encoder import Encoder
from features.loader import Loader, RowSource
from features.spec import parse_schema
from recsys.config import ModelConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.optimizers import RowWiseAdagrad
from recsys.embedding.unified import UnifiedTable
from recsys.models import make_model
from recsys.models.interface import Ranker
from recsys.phases import Phase, Until
from recsys.training.checkpoint import Checkpoints
from recsys.training.trainer import Settings, Trainer

FIELDS = [f"field{number}" for number in range(8)]
ROWS_PER_FILE, ROWS_PER_GROUP, BATCH = 1_000_000, 100_000, 8192
ALLOWED = 1.1


def write_examples(folder: Path, num_rows: int) -> list[Path]:
    """Files of random ids; the label hangs on the first."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    files = []
    for start in range(0, num_rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, num_rows - start)
        columns = {name: generator.integers(0, 2**62, count) >> 40 << 40 for name in FIELDS}
        clicked = (columns[FIELDS[0]] >> 40 & 1 == generator.integers(0, 4, count) // 3).astype(np.float32)
        files.append(folder / f"part-{start // ROWS_PER_FILE}.parquet")
        pq.write_table(pa.table(columns | {"label:clicked": clicked}), files[-1], row_group_size=ROWS_PER_GROUP)
    return files


def train(folder: Path, num_rows: int) -> float:
    """One epoch; returns rows per second."""
    schema = parse_schema(
        {"name": "log", "features": {n: {"table": "ids", "hashed": True} for n in FIELDS}, "labels": {"clicked": {}}},
        where="test",
    )
    loader = Loader(RowSource(files=write_examples(folder / "examples", num_rows), schema=schema), BATCH, seed=0)
    encoder = Encoder(schema, {})
    tables = {"ids": UnifiedTable(num_embeddings=100_000, chunk_dim=8)}
    collection = EmbeddingCollection(encoder, tables, backend="fused", optimizer=RowWiseAdagrad(lr=0.05))
    model = make_model(ModelConfig(name="dcn", options={"hidden": (16,), "cross_layers": 1}), encoder, collection)
    assert isinstance(model, Ranker)
    phase = Phase(
        name="train", batches=loader.epoch, num_batches=loader.num_batches, loss=model.row_losses,
        optimizers=(torch.optim.Adam(model.parameters()),), until=Until(max_epochs=1),
    )  # fmt: skip
    started = time.monotonic()
    Trainer(model, [phase], Checkpoints(folder / "checkpoints"), Settings(seed=0)).fit()
    return num_rows / (time.monotonic() - started)


def peak_mib(folder: Path, num_rows: int) -> float:
    """Peak memory of `train` in a process of its own."""
    command = [sys.executable, "-m", "tests.recsys.test_training_memory", str(folder), str(num_rows)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    return float(printed.split()[0])


@pytest.mark.slow
def test_peak_memory_of_training_is_flat_in_the_number_of_examples(tmp_path: Path) -> None:
    few, many = peak_mib(tmp_path / "few", 2_000_001), peak_mib(tmp_path / "many", 8_000_000)
    assert many < ALLOWED * few


if __name__ == "__main__":
    torch.set_num_threads(1)
    speed = train(Path(sys.argv[1]), int(sys.argv[2]))
    unit = 1 if sys.platform == "darwin" else 1024
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:.0f} MiB, {speed:.0f} rows/s")

"""Evaluating 20 M rows takes no more memory than 5 M: measured under a limit on what a process may allocate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ALLOWED = 640 << 20  # of private memory above what the imports take; in memory, columns and their sort take over 2 GB
SCRIPT = """
import json, resource, sys, tempfile, time
from pathlib import Path
import torch
from torch import nn
from features.batch import Batch
from features.spec import parse_schema
from recsys.evaluation.evaluate import RowSettings, evaluate_ranking
from recsys.models.interface import Ranker

rows, allowed, step = int(sys.argv[1]), int(sys.argv[2]), 1 << 16
features = {"user": {"table": "ids"}, "x": {"kind": "dense"}}
SCHEMA = parse_schema({"name": "s", "user": "user", "features": features, "labels": {"click": {}}}, where="here")

class Linear(Ranker):
    def __init__(self):
        nn.Module.__init__(self)
        self.schema, self.labels = SCHEMA, ("click",)

    def logits(self, batch):
        return batch.ids("x")

class Rows:
    num_batches = 0

    def epoch(self, epoch, start=0):
        for number, first in enumerate(range(0, rows, step)):
            ids = torch.arange(first, min(first + step, rows))
            random = torch.Generator().manual_seed(number)
            x = torch.randn(len(ids), generator=random)
            click = (torch.rand(len(ids), generator=random) < (x - 2).sigmoid()).float()
            user = torch.randint(200_000, ids.shape, generator=random)
            yield Batch(features={"x": x, "user": user}, labels={"click": click}, weights=torch.ones(len(ids)),
                        group=user, row_ids=ids), number + 1

torch.set_num_threads(1)
held = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (held + allowed, held + allowed))
since = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    report = evaluate_ranking(Linear(), Rows(), split="test", settings=RowSettings(scratch=Path(folder)))
    measured = time.perf_counter() - since
    report.save(Path(folder) / "report")
print(json.dumps({"seconds": measured, "metrics": report.metrics, "counts": report.counts}))
"""


def evaluated(rows: int, allowed: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(rows), str(allowed)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_twenty_million_rows_fit_where_five_million_do() -> None:
    found = {}
    for rows in (5_000_000, 20_000_000):
        ended = evaluated(rows, ALLOWED)
        assert ended.returncode == 0, ended.stderr
        found[rows] = json.loads(ended.stdout)
        assert found[rows]["counts"]["rows"] == rows
    small, large = (part["metrics"] for part in found.values())
    assert large["auc"] == pytest.approx(small["auc"], abs=2e-3)
    assert large["gauc"] == pytest.approx(large["auc"], abs=2e-3)
    assert evaluated(1_000_000, ALLOWED // 32).returncode != 0  # the limit is one

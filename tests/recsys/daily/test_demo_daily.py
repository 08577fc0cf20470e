"""configs/demo_daily.toml over its ten days: what was new on day 6 is learned. (Synthetic data.)"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from features.view import Prepared
from recsys.evaluation.bootstrap import Comparison, Draws, Sampled
from recsys.run import Run
from tests.recsys.cli.conftest import call

ROOT = Path(__file__).resolve().parents[3]
DAY_6, LAUNCH = "2026-01-07", 1_767_225_600 + 6 * 86_400  # days count from 0
LATER = ("2026-01-09", "2026-01-10", "2026-01-11")
BEFORE = {"2026-01-09": "2026-01-08", "2026-01-10": "2026-01-09", "2026-01-11": "2026-01-10"}


def rows_of(data: Prepared, new: str) -> Tensor:
    """Which examples show an item of the new category, or one launched on day 6 or later."""
    items = data.items
    assert items is not None
    shown = pq.read_table(data.files("train")[0], columns=["item"])["item"].to_numpy()
    if new == "category":
        found = np.asarray(items.column("category").to_pylist(), dtype=object)[shown] == "drones"
    else:
        found = np.asarray(items.column("launched"))[shown] >= LAUNCH
    return torch.from_numpy(found)


def compared(job: Path, prepared: Path, new: str) -> Comparison:
    """AUC on the rows of something new, over three days: the newest models against the last one from before it."""
    columns: list[Tensor] = []
    for day in LATER:
        data = Prepared.open(next(prepared.glob(f"*-{day}-*")))
        kept = rows_of(data, new)
        newest, frozen = (
            Run.open(job / name).evaluate_on(data, "train").arrays for name in (BEFORE[day], "2026-01-06")
        )
        scores = torch.stack([newest["labels"], newest["logits"], frozen["logits"]], dim=1).double()
        columns.append(torch.cat([scores, newest["clusters"].double()[:, None]], dim=1)[kept])
    labels, *logits, clusters = torch.cat(columns).unbind(1)
    draws = Draws(seed=0)
    sampled = Sampled.aucs(labels, torch.stack(logits, dim=1), draws, clusters=clusters.long(), weights=None)
    return sampled.compared("auc", slice(0, 1), slice(1, 2), draws)


@pytest.mark.slow
def test_what_is_new_on_day_6_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("daily", ROOT / "configs" / "demo_daily.toml", "--from", "2026-01-01", "--to", "2026-01-10")
    assert result.exit_code == 0, result.stderr
    job = tmp_path / "runs" / "demo_daily"
    known = {
        name: "drones" in Run.open(job / name).prepared.encoder.vocabularies["category"].raw_ids
        for name in ("2026-01-06", DAY_6)
    }
    assert known == {"2026-01-06": False, DAY_6: True}
    for new in ("category", "items"):
        found = compared(job, tmp_path / "prepared", new)
        assert found.above, f"{new}: {found}"

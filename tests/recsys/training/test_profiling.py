import json
from pathlib import Path

import pytest

from recsys.training.profiling import PARTS, Profiler
from tests.recsys.training.test_trainer import ROWS, trainer


def test_profile_names_the_parts_of_a_step_and_writes_their_trace(tmp_path: Path) -> None:
    runner, profiler = trainer(tmp_path / "run"), Profiler(tmp_path / "trace.json", steps=6, warmup=3)
    runner.observers = (profiler,)
    runner.fit()
    assert list(profiler.milliseconds) == ["loader", "forward", "backward", "update", "rest"]
    assert all(spent > 0 for part, spent in profiler.milliseconds.items() if part != "rest")
    assert sum(profiler.shares.values()) == pytest.approx(1.0)
    assert profiler.rows_per_s > 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    for part in PARTS[1:]:
        assert sum(event.get("name") == part and event.get("cat") == "user_annotation" for event in events) == 6


def test_profile_of_a_short_training_is_what_there_was(tmp_path: Path) -> None:
    runner, profiler = trainer(tmp_path / "run", max_epochs=1), Profiler(tmp_path / "trace.json", steps=100, warmup=2)
    runner.observers = (profiler,)
    runner.fit()
    profiler.close()
    assert profiler.milliseconds
    within = Profiler(tmp_path / "none.json", warmup=ROWS)
    runner = trainer(tmp_path / "again", max_epochs=1)
    runner.observers = (within,)
    runner.fit()
    within.close()
    assert not within.milliseconds
    assert not (tmp_path / "none.json").exists()


def test_profile_refuses_no_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        Profiler(tmp_path / "trace.json", steps=0)

import json
import shutil
from pathlib import Path

import pytest

from features import storage
from recsys.cli.named_runs import report_of, runs_of, summary_of
from recsys.config import ConfigError
from recsys.run import Run

RUNS = Path("runs")


def test_a_name_is_a_run_or_its_seeds_in_order(project: Path) -> None:
    shutil.copytree("runs/wide-seed5", "runs/wide-seed10")
    shutil.copytree("runs/wide-seed5", "runs/wide-seedling")
    for path in (Path("runs/wide"), Path("wide"), project / "runs" / "wide"):
        assert [run.name for run in runs_of(path, RUNS)] == ["wide-seed1", "wide-seed2", "wide-seed5", "wide-seed10"]
    shutil.copytree("runs/wide-seed5", "runs/wide")
    assert [run.name for run in runs_of(Path("wide"), RUNS)] == ["wide"]
    shutil.rmtree("runs/wide")
    for path in (Path("runs/wide-seed2"), Path("wide-seed2")):
        assert [run.name for run in runs_of(path, RUNS)] == ["wide-seed2"]
    for name in ("wide-seed10", "wide-seedling"):
        shutil.rmtree(RUNS / name)


def test_a_name_without_runs_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing is not a run \(it has no config.json\)"):
        runs_of(Path("nothing"), RUNS)


def test_seeds_of_other_configs_are_refused(project: Path) -> None:
    shutil.copytree("runs/ctr-seed1", "runs/mixed-seed1")
    shutil.copytree("runs/wide-seed2", "runs/mixed-seed2")
    with pytest.raises(
        ConfigError, match="mixed-seed1 and runs/mixed-seed2 differ in model, training: they are no seeds"
    ):
        runs_of(Path("mixed"), RUNS)
    for seed in (1, 2):
        shutil.rmtree(RUNS / f"mixed-seed{seed}")


def test_a_seed_that_started_from_another_run_is_refused(project: Path) -> None:
    for seed in (1, 2):
        shutil.copytree(f"runs/wide-seed{seed}", f"runs/started-seed{seed}")
    state = Path("runs/started-seed2/run.json")
    storage.write_json(state, json.loads(state.read_text()) | {"init_from": "runs/other", "lineage": "f" * 64})
    with pytest.raises(ConfigError, match="started-seed2 differ in --init-from: they are no seeds"):
        runs_of(Path("started"), RUNS)
    for seed in (1, 2):
        shutil.rmtree(RUNS / f"started-seed{seed}")


def test_a_report_is_read_where_there_is_one_and_made_anew_for_another_config(project: Path) -> None:
    run = Run.open("runs/ctr-seed1")
    made = report_of(run, "test")
    path = run.folder / "reports" / "test" / "report.json"
    written = path.stat().st_mtime_ns
    assert report_of(run, "test").summary() == made.summary()
    assert path.stat().st_mtime_ns == written
    path.write_text(path.read_text().replace(run.config.content_hash, "0" * 64))
    assert report_of(run, "test").config_hash == run.config.content_hash
    older = {key: value for key, value in json.loads(path.read_text()).items() if key != "format"}
    storage.write_json(path, older)
    assert report_of(run, "test").summary() == made.summary()
    assert json.loads(path.read_text()).keys() - older.keys() == {"format"}


def test_summary_is_mean_and_deviation_of_what_all_have() -> None:
    assert summary_of([{"auc": 0.5}]) == {}
    found = summary_of([{"auc": 0.5, "gauc": 1.0}, {"auc": 0.7}, {"auc": 0.6}])
    assert found["mean"] == {"auc": pytest.approx(0.6)}
    assert found["std"] == {"auc": pytest.approx(0.1)}

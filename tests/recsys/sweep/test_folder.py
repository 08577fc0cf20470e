"""A sweep's folder: one config, one process at a time, and nothing done twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from features.prepared import Prepared
from recsys.config import ConfigError, RunConfig
from recsys.sweep import folder as folder_module
from recsys.sweep.cell import Task
from recsys.sweep.folder import Sweep
from recsys.sweep.outcome import Outcome
from recsys.sweep.plan import Cell, Grid
from recsys.sweep.process import CellFailed
from tests.recsys.sweep.outcomes import finished
from tests.recsys.sweep.small_sweep import small_sweep

GRID = Grid.parse(methods="hash,unified", budgets="50%,3B", precisions="float32", seeds=1, first_seed=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Prepared]:
    return small_sweep(tmp_path_factory.mktemp("sweeps"))


def sweep(made: tuple[RunConfig, Prepared], folder: Path, **changes: Any) -> Sweep:
    config, prepared = made
    return Sweep(folder, config.model_copy(update=changes), prepared, GRID.cells())


def at_once(work: object, task: Task, log: Path, tell: object) -> Outcome:
    """Stands in for a process: the budget of 3 bytes fails, the rest finishes."""
    config = RunConfig.from_json(task.config)
    if config.tables.specs["ids"].options.get("budget") == "3B":
        raise CellFailed("a reason")
    return finished(0.7, config_hash=config.content_hash)


def ran(of: Sweep) -> list[Cell]:
    with of.held():
        return [cell for cell, _ in of.run(lambda cell, note: None)]


def test_sweep_runs_what_is_not_done_and_a_failure_does_not_end_it(
    made: tuple[RunConfig, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "run_in_process", at_once)
    first = sweep(made, tmp_path / "out")
    assert ran(first) == GRID.cells()
    statuses = {cell.name: outcome.status for cell, outcome in first.outcomes().items()}
    assert {name for name, status in statuses.items() if status == "failed"} == {
        "unified-3B-float32-seed1", "hash-3B-float32-seed1",
    }  # fmt: skip
    assert ran(sweep(made, tmp_path / "out")) == []
    (tmp_path / "out" / "cells" / "dense-int8-seed1.json").unlink()
    assert [cell.name for cell in ran(sweep(made, tmp_path / "out"))] == ["dense-int8-seed1"]


def test_forgotten_cells_are_tried_again(
    made: tuple[RunConfig, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "run_in_process", at_once)
    ran(sweep(made, tmp_path / "out"))
    again = sweep(made, tmp_path / "out").forget(("failed",))
    assert {cell.budget for cell in again} == {"3B"}
    assert ran(sweep(made, tmp_path / "out")) == again


def test_sweep_of_real_processes_ends_as_it_says(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    config, prepared = made
    cells = [cell for cell in GRID.cells() if cell.method == "hash"]
    of = Sweep(tmp_path / "out", config, prepared, cells)
    assert ran(of) == cells
    assert [of.outcomes()[cell].status for cell in cells] == ["finished", "unreachable"]
    assert json.loads((tmp_path / "out/cells/hash-50pct-float32-seed1.json").read_text())["status"] == "finished"


# --- what is refused ---


def refused(of: Sweep) -> str:
    with pytest.raises(ConfigError) as error, of.held():
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_config_is_refused_by_name(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    with sweep(made, tmp_path / "out").held():
        pass
    with sweep(made, tmp_path / "out", name="renamed").held():  # the name decides nothing
        pass
    said = refused(sweep(made, tmp_path / "out", seed=5))
    assert "out belongs to a sweep of 'ctr' with other seed; choose another --out" in said


def test_folder_that_is_a_file_or_holds_something_else_is_refused(
    made: tuple[RunConfig, Prepared], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "file is a file, a folder is needed" in refused(sweep(made, tmp_path / "file"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert "is not empty and holds no sweep" in refused(sweep(made, tmp_path / "mine"))


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9, "config": {}}', '{"format": 1, "config": {}}'])
def test_damaged_record_is_named(made: tuple[RunConfig, Prepared], tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert "sweep.json" in refused(sweep(made, tmp_path))


def test_other_prepared_data_are_refused(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    with sweep(made, tmp_path).held():
        pass
    path = tmp_path / "sweep.json"
    path.write_text(path.read_text().replace(made[1].content_hash, "0" * 64))
    assert "was swept on other prepared data" in refused(sweep(made, tmp_path))


def test_outcome_of_other_settings_is_refused(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    of = sweep(made, tmp_path)
    finished(0.7, config_hash="another").save(tmp_path / "cells" / f"{of.cells[0].name}.json")
    with pytest.raises(ConfigError, match=r"seed1\.json is of other settings of 'dense'; remove it to run it again"):
        of.outcomes()


def test_two_sweeps_do_not_share_a_folder(made: tuple[RunConfig, Prepared], tmp_path: Path) -> None:
    of = sweep(made, tmp_path)
    with of.held():
        assert "another sweep is at work in" in refused(sweep(made, tmp_path))
    with sweep(made, tmp_path).held():
        pass

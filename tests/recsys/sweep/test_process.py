"""A cell in a process of its own: however it ends, the sweep knows why and goes on."""

import re
from pathlib import Path

import pytest

from features.prepared import Prepared
from recsys.config import RunConfig
from recsys.sweep.cell import Task, run_task
from recsys.sweep.outcome import Outcome
from recsys.sweep.process import CellFailed, Tell, run_in_process
from tests.recsys.sweep.small_sweep import faulty, small_sweep, write_faulty

Made = tuple[RunConfig, Prepared, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("processes")
    write_faulty(folder)
    return *small_sweep(folder), folder


def log_of(made: Made, name: str) -> Path:
    return made[2] / "logs" / f"{name}.log"


def run(made: Made, config: RunConfig, name: str, tell: Tell = lambda _: None) -> Outcome:
    sweep_config, prepared, folder = made
    task = Task(
        config=config.to_json(), sweep_config=sweep_config.to_json(), prepared=str(prepared.path),
        folder=str(folder / "runs" / name),
    )  # fmt: skip
    return run_in_process(run_task, task, log_of(made, name), tell)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("kill", CellFailed, r"^the process ended by signal 9, as when the memory of the machine ran out$"),
        ("raise", CellFailed, r"^RuntimeError: it broke \(see .*raise\.log\)$"),
        ("value", CellFailed, r"^it broke$"),
        ("os", OSError, r"^it broke$"),
    ],
)
def test_end_of_a_cell_has_a_reason(
    made: Made, monkeypatch: pytest.MonkeyPatch, fault: str, error: type[Exception], says: str
) -> None:
    monkeypatch.syspath_prepend(str(made[2]))
    with pytest.raises(error) as ended:
        run(made, faulty(made[0], fault), fault)
    assert re.search(says, str(ended.value))
    assert "a line of the table" in log_of(made, fault).read_text()


def test_cell_that_cannot_be_built_is_an_outcome(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(made[2]))
    outcome = run(made, faulty(made[0], "build"), "build")
    assert (outcome.status, outcome.reason) == ("unreachable", "this cannot be built")


def test_cell_that_finishes_tells_and_logs(made: Made) -> None:
    told: list[str] = []
    outcome = run(made, made[0], "whole", told.append)
    assert outcome.status == "finished"
    assert outcome.peak_bytes is not None
    assert told[0].startswith("epoch 1, ")
    assert log_of(made, "whole").read_text().startswith("phase 1, epoch 1: auc ")

"""How answers are judged, and what is left out or a fault where packages are missing or broken."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from recsys.doctor import diagnosis
from recsys.doctor.cells import LEFT_OUT, Cell
from recsys.doctor.diagnosis import (
    AS_EXPECTED,
    CHANGED,
    EQUAL,
    FAILED,
    REFUSED,
    Diagnosis,
    check_versions,
    examine,
    judge_cell,
    judge_fact,
)
from recsys.doctor.facts import FACTS, Fact
from recsys.doctor.isolation import ImportFailedError, Job, Lost
from recsys.doctor.versions import Version

CELL = Cell(
    method="dense", backend="sharded", num_ranks=2, sharding="row_wise", optimizer="adagrad", precision="float32"
)
RAN = {"difference": 1e-7, "where": "losses", "served": 0.0, "note": "", "one_rank": ""}
ADAM = {"refused": "backend 'sharded' has no Adam; use SGD", "one_rank": ""}


@pytest.mark.parametrize(
    ("cell", "answer", "verdict", "says"),
    [
        (CELL, RAN, EQUAL, ""),
        (CELL, RAN | {"difference": 2e-5}, FAILED, "losses off by 2e-05"),
        (CELL, RAN | {"difference": float("nan")}, FAILED, "losses off by nan"),
        (CELL, Lost("rank 0: killed by SIGSEGV"), FAILED, "SIGSEGV"),
        (CELL, ADAM, FAILED, "refused, which the committed list does not say"),
        (replace(CELL, optimizer="adam"), ADAM, REFUSED, "has no Adam"),
        (replace(CELL, optimizer="adam"), ADAM | {"refused": "no"}, FAILED, "does not say: no"),
        (replace(CELL, optimizer="adam"), RAN, FAILED, "ran, but is listed as refused"),
        (CELL, RAN | {"one_rank": "all rows at once"}, FAILED, "ran, but is listed as refused"),
    ],
)
def test_diagnosis_judges_cells(cell: Cell, answer: Any, verdict: str, says: str) -> None:
    judged = judge_cell(cell, answer)
    assert judged.verdict == verdict
    assert says in judged.text


def test_diagnosis_judges_facts() -> None:
    fact = Fact(statement="so it is")
    assert judge_fact(fact, {"seen": "it", "expected": True}).verdict == AS_EXPECTED
    assert judge_fact(fact, {"seen": "not it", "expected": False}).verdict == CHANGED
    assert judge_fact(fact, Lost("rank 0: killed by SIGSEGV")).seen == "the probe died: rank 0: killed by SIGSEGV"


def test_diagnosis_is_sound_unless_something_is_wrong() -> None:
    def sound(**found: Any) -> bool:
        return Diagnosis(**({"versions": [], "conflicts": []} | found)).sound

    wrong = Version(package="torch", installed="", wanted="2.13.0", verdict="MISSING")
    other = replace(wrong, installed="2.14.0", verdict="not the tested one")
    assert sound(versions=[other], cells=[judge_cell(CELL, RAN)], left_out=["torchrec"])
    assert not sound(versions=[wrong])
    assert not sound(cells=[judge_cell(CELL, Lost("gone"))])
    assert not sound(facts=[judge_fact(Fact(statement=""), Lost("gone"))])
    assert not sound(faults=["torchrec does not import"])


def test_diagnosis_counts_methods_that_are_equal_on_two_ranks() -> None:
    cells = [
        judge_cell(CELL, RAN),
        judge_cell(replace(CELL, optimizer="adam"), ADAM),
        judge_cell(replace(CELL, method="hash"), Lost("gone")),
        judge_cell(replace(CELL, method="hash", optimizer="sgd"), RAN),
        judge_cell(replace(CELL, method="compo", num_ranks=1), RAN),
    ]
    found = Diagnosis(versions=[], conflicts=[], cells=cells)
    assert found.methods_on_ranks(2) == ["dense"]
    assert found.counts() == {EQUAL: 3, REFUSED: 1, FAILED: 1}


# --- with packages missing or broken ---


class Runs:
    """Stands in for `run_jobs`: everything is equal, unless an import that is named fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.jobs: list[Job] = []

    def __call__(self, jobs: Sequence[Job], imports: Sequence[str]) -> Iterator[Any]:
        if self.broken in imports:
            raise ImportFailedError("killed by SIGSEGV")
        self.jobs = list(jobs)
        for job in jobs:
            yield {"seen": "it", "expected": True} if job.work.endswith(":probe") else RAN


def examined(monkeypatch: pytest.MonkeyPatch, runs: Runs, *absent: str) -> Diagnosis:
    monkeypatch.setattr(diagnosis, "run_jobs", runs)
    found = check_versions()
    found.versions = [line for line in found.versions if line.package not in absent]
    examine(found, lambda *shown: None, quick=True)
    return found


def test_diagnosis_without_torchrec_looks_at_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(monkeypatch, Runs(), "torchrec")
    assert {judged.cell.backend for judged in found.cells} == {"plain", "fused"}
    assert found.left_out[1] == "backend 'sharded', facts of torchrec: torchrec is not installed"
    assert (found.facts, found.faults) == ([], [])


def test_diagnosis_without_fbgemm_looks_at_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(monkeypatch, Runs(), "torchrec", "fbgemm-gpu-cpu")
    assert {judged.cell.backend for judged in found.cells} == {"plain"}
    assert "fbgemm is not installed" in found.left_out[1]


def test_diagnosis_of_a_torchrec_that_crashes_on_import(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(monkeypatch, Runs(broken="recsys.embedding.sharded"))
    assert {judged.cell.backend for judged in found.cells} == {"plain", "fused"}
    assert found.faults == ["backend 'sharded' is installed but cannot be imported: killed by SIGSEGV"]
    assert not found.sound


def test_diagnosis_runs_every_fact_on_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs()
    found = examined(monkeypatch, runs)
    asked = {job.argument: job.num_ranks for job in runs.jobs if job.work.endswith(":probe")}
    assert asked == {name: fact.num_ranks for name, fact in FACTS.items()}
    assert len(found.facts) == len(FACTS)
    assert found.left_out == [f"cells (--quick): {LEFT_OUT}"]

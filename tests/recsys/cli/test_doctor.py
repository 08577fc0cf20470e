"""`recsys doctor`: the whole of it once, in its short form, and how what it finds is shown."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from recsys.cli import app
from recsys.cli import doctor as command
from recsys.compression import COMPRESSIONS
from recsys.doctor.cells import all_cells, is_quick, refusals_of
from recsys.doctor.diagnosis import Diagnosis, Verdict, judge_cell, judge_fact
from recsys.doctor.facts import FACTS
from recsys.doctor.isolation import Lost
from recsys.doctor.parity import one_rank
from recsys.doctor.versions import conflicts

RAN = {"difference": 1e-7, "where": "losses", "served": 0.0, "note": "", "one_rank": ""}


# --- run ---


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    ended = CliRunner().invoke(app, ["doctor", "--quick", "--json"])
    lines = ended.stdout.splitlines()
    assert len(lines) == 1, ended.output
    return dict(json.loads(lines[0])) | {"exit_code": ended.exit_code}


def test_doctor_finds_this_installation_sound(found: dict[str, Any]) -> None:
    failed = [cell for cell in found["cells"] if cell["verdict"] == "FAILED"]
    assert failed == []
    assert (found["sound"], found["exit_code"], found["faults"], found["conflicts"]) == (True, 0, [], [])


def test_doctor_sees_every_fact_of_torchrec(found: dict[str, Any]) -> None:
    assert [fact["verdict"] for fact in found["facts"]] == ["as expected"] * len(FACTS), found["facts"]


def test_doctor_refuses_exactly_what_the_committed_list_says(found: dict[str, Any]) -> None:
    quick = [cell for cell in all_cells(list(COMPRESSIONS), ["plain", "fused", "sharded"]) if is_quick(cell)]
    reasons = {method: one_rank(method) for method in COMPRESSIONS}
    listed = [cell.to_json() for cell in quick if refusals_of(cell, reasons[cell.method])]
    refused = [cell for cell in found["cells"] if cell["verdict"] == "refused"]
    assert [{name: cell[name] for name in listed[0]} for cell in refused] == listed
    assert len(found["cells"]) == len(quick)


def test_doctor_finds_eight_methods_equal_on_two_ranks(found: dict[str, Any]) -> None:
    assert len(found["methods_equal_on_2_ranks"]) >= 8


# --- shown ---


def judged(text: str = "") -> Iterator[Verdict]:
    """Every quick cell equal, but for Adam, which is refused, and with a text what row-wise Adagrad does on 2 ranks."""
    for cell in all_cells(["dense", "hash"], ["plain", "fused", "sharded"]):
        if is_quick(cell):
            refused = [refusal.says for refusal in refusals_of(cell, "")]
            fails = text and cell.num_ranks == 2 and cell.method == "hash" and not refused
            yield judge_cell(cell, Lost(text) if fails else {"refused": refused[0], "one_rank": ""} if refused else RAN)


def shown(monkeypatch: pytest.MonkeyPatch, diagnosis: Diagnosis, *options: str) -> Result:
    monkeypatch.setattr(command, "check_versions", lambda: diagnosis)
    monkeypatch.setattr(command, "examine", lambda diagnosis, progress, quick: None)
    return CliRunner().invoke(app, ["doctor", *options])


def diagnosis(**given: Any) -> Diagnosis:
    return Diagnosis(**({"versions": [], "conflicts": []} | given))


def test_doctor_shows_the_matrix_in_120_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    every = all_cells(list(COMPRESSIONS), ["plain", "fused", "sharded"])
    ended = shown(monkeypatch, diagnosis(cells=[judge_cell(cell, RAN) for cell in every]))
    assert max(map(len, ended.stdout.splitlines())) <= 120 or "FAILED" in ended.stdout
    rows = [line.split()[1] for line in ended.stdout.splitlines() if line.startswith("│")]
    assert rows == list(COMPRESSIONS)


def test_doctor_marks_what_is_equal_refused_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = shown(monkeypatch, diagnosis(cells=list(judged())))
    row = next(line for line in ended.stdout.splitlines() if line.startswith("│ dense"))
    assert [mark.strip() for mark in row.split("│")[2:8]] == ["====", "===-", "===-", "===-", "==--", "===="]
    assert "refused, 8 cells: fbgemm has no fused Adam" in ended.stdout
    assert "2 methods equal the oracle at 2 ranks: dense, hash" in ended.stdout
    assert (ended.exit_code, ended.stdout.splitlines()[-1]) == (0, "sound")


def test_doctor_tells_failures_together_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = shown(monkeypatch, diagnosis(cells=list(judged("rank 1: killed by SIGSEGV"))))
    assert "XXX-" in next(line for line in ended.stdout.splitlines() if line.startswith("│ hash"))
    failures = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    assert failures == [
        "FAILED hash, 8 cells, the first: hash sharded row_wise 2 ranks sgd float32: rank 1: killed by SIGSEGV"
    ]
    assert (ended.exit_code, ended.stdout.splitlines()[-1]) == (1, "NOT SOUND")


def test_doctor_names_conflicts_changes_faults_and_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = conflicts({"sqlglot": "30.0.0", "ibis-framework": "12.0.0"})
    changed = judge_fact(FACTS["no_fused_adam"], {"seen": "adam runs", "expected": False})
    ended = shown(
        monkeypatch, diagnosis(conflicts=known, facts=[changed], faults=["a fault"], left_out=["sharded: no torchrec"])
    )
    for text in ("KNOWN BAD: sqlglot + ibis-framework", "adam runs", "CHANGED", "FAULT: a fault", "left out: sharded"):
        assert text in ended.stdout
    assert ended.exit_code == 1


def test_doctor_json_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = shown(monkeypatch, diagnosis(cells=list(judged())), "--json")
    values = json.loads(ended.stdout)
    assert values["sound"]
    assert values["counts"]["FAILED"] == 0

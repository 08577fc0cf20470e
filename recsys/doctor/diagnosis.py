"""Everything the doctor looks at, in one call, judged: versions, facts of torchrec, the parity matrix.

Sound is an installation without a known-bad combination in which every fact is seen as expected and every cell is equal
to its oracle or refused as the committed list says. Where torchrec or fbgemm is missing, what needs it is left out, and
said to be; where one is installed but does not import, that is a fault.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys.compression import COMPRESSIONS
from recsys.doctor.cells import LEFT_OUT, Cell, all_cells, is_quick, refusals_of
from recsys.doctor.facts import FACTS, Fact
from recsys.doctor.isolation import ImportFailedError, Job, Lost, run_jobs
from recsys.doctor.parity import CLOSE
from recsys.doctor.versions import (
    BROKEN,
    FBGEMM,
    MISSING,
    Conflict,
    Version,
    conflicts,
    installed_versions,
    version_table,
)

EQUAL, REFUSED, FAILED = "equal", "refused", "FAILED"
AS_EXPECTED, CHANGED = "as expected", "CHANGED"
PROBES = "recsys.doctor.probes"

Progress = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A cell, judged.

    text: why it is refused, what failed, or what to know of an equal one. difference: from the oracle. served: by how
    much what is served is off, as a share of the largest value.
    """

    cell: Cell
    verdict: str
    text: str = ""
    difference: float = 0.0
    served: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Flat, for one line of JSON."""
        own = {"verdict": self.verdict, "text": self.text, "difference": self.difference, "served": self.served}
        return self.cell.to_json() | own


@dataclass(frozen=True, kw_only=True)
class FactSeen:
    """A fact of torchrec, and what was seen of it."""

    statement: str
    seen: str
    verdict: str


@dataclass(kw_only=True)
class Diagnosis:
    """What was found. left_out: what was not looked at, each with the reason. faults: what else is wrong."""

    versions: Sequence[Version]
    conflicts: Sequence[Conflict]
    facts: list[FactSeen] = field(default_factory=list)
    cells: list[Verdict] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        wrong = [line for line in self.versions if line.verdict in (MISSING, BROKEN)]
        changed = [fact for fact in self.facts if fact.verdict == CHANGED]
        return not (wrong or changed or self.faults or self.counts()[FAILED])

    def counts(self) -> dict[str, int]:
        """Verdict -> number of cells."""
        verdicts = [cell.verdict for cell in self.cells]
        return {verdict: verdicts.count(verdict) for verdict in (EQUAL, REFUSED, FAILED)}

    def methods_on_ranks(self, num_ranks: int) -> list[str]:
        """The methods that equal the oracle on so many ranks, in all cells that are not refused."""
        found: dict[str, set[str]] = {}
        for judged in self.cells:
            if judged.cell.num_ranks == num_ranks:
                found.setdefault(judged.cell.method, set()).add(judged.verdict)
        return [method for method, verdicts in found.items() if EQUAL in verdicts and FAILED not in verdicts]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "sound": self.sound,
            "versions": [vars(line) for line in self.versions],
            "conflicts": [vars(conflict) for conflict in self.conflicts],
            "facts": [vars(fact) for fact in self.facts],
            "counts": self.counts(),
            "methods_equal_on_2_ranks": self.methods_on_ranks(2),
            "left_out": self.left_out,
            "faults": self.faults,
            "cells": [cell.to_json() for cell in self.cells],
        }


def check_versions() -> Diagnosis:
    """The versions alone, with nothing imported yet that they could break."""
    installed = installed_versions()
    return Diagnosis(versions=version_table(installed), conflicts=conflicts(installed))


def examine(diagnosis: Diagnosis, progress: Progress, *, quick: bool = False) -> None:
    """Run the facts and the matrix, each in processes that may die, and add what they show to the diagnosis.

    progress(stage, done, total, note) is told of each. quick: some cells are left out (cells.LEFT_OUT).
    """
    if quick:
        diagnosis.left_out.append(f"cells (--quick): {LEFT_OUT}")
    backends = _installed_backends(diagnosis)
    for count in range(len(backends), 0, -1):
        try:
            _run(diagnosis, backends[:count], progress, quick)
        except ImportFailedError as failed:
            diagnosis.faults.append(f"backend {backends[count - 1]!r} is installed but cannot be imported: {failed}")
        else:
            return


def _installed_backends(diagnosis: Diagnosis) -> list[str]:
    installed = {line.package for line in diagnosis.versions if line.installed}
    if not installed & set(FBGEMM):
        diagnosis.left_out.append("backends 'fused' and 'sharded', facts of torchrec: fbgemm is not installed")
        return ["plain"]
    if "torchrec" not in installed:
        diagnosis.left_out.append("backend 'sharded', facts of torchrec: torchrec is not installed")
        return ["plain", "fused"]
    return ["plain", "fused", "sharded"]


IMPORTS: Mapping[str, tuple[str, ...]] = {
    "plain": ("recsys.doctor.parity",),
    "fused": ("recsys.embedding.fused",),
    "sharded": ("recsys.embedding.sharded", PROBES),
}


def _run(diagnosis: Diagnosis, backends: Sequence[str], progress: Progress, quick: bool) -> None:
    imports = [module for backend in backends for module in IMPORTS[backend]]
    facts = FACTS if "sharded" in backends else {}
    cells = [cell for cell in all_cells(list(COMPRESSIONS), backends) if not quick or is_quick(cell)]
    with tempfile.TemporaryDirectory() as folder:
        fact_jobs = [Job(f"{PROBES}:probe", name, fact.num_ranks) for name, fact in facts.items()]
        answers = run_jobs([*fact_jobs, *(_cell_job(cell, folder) for cell in cells)], imports)
        for done, (fact, answer) in enumerate(zip(facts.values(), answers, strict=False), 1):
            diagnosis.facts.append(judge_fact(fact, answer))
            progress("facts of torchrec", done, len(facts), fact.statement)
        for done, (cell, answer) in enumerate(zip(cells, answers, strict=True), 1):
            diagnosis.cells.append(judge_cell(cell, answer))
            progress("parity matrix", done, len(cells), str(cell))


def _cell_job(cell: Cell, folder: str) -> Job:
    argument = json.dumps({"cell": cell.to_json(), "folder": folder})
    return Job("recsys.doctor.parity:measure", argument, cell.num_ranks)


# --- judging ---


def judge_fact(fact: Fact, answer: Mapping[str, Any] | Lost) -> FactSeen:
    """A probe that dies has not seen what it should."""
    if isinstance(answer, Lost):
        return FactSeen(statement=fact.statement, seen=f"the probe died: {answer.reason}", verdict=CHANGED)
    verdict = AS_EXPECTED if answer["expected"] else CHANGED
    return FactSeen(statement=fact.statement, seen=answer["seen"], verdict=verdict)


def judge_cell(cell: Cell, answer: Mapping[str, Any] | Lost) -> Verdict:
    """Equal, refused as the committed list says, or failed: that list is wrong in either direction, too."""
    if isinstance(answer, Lost):
        return Verdict(cell=cell, verdict=FAILED, text=answer.reason)
    listed = refusals_of(cell, answer["one_rank"])
    if "refused" in answer:
        text = answer["refused"]
        known = any(refusal.says in text for refusal in listed)
        said = text if known else f"refused, which the committed list does not say: {text}"
        return Verdict(cell=cell, verdict=REFUSED if known else FAILED, text=said)
    measured = {"difference": answer["difference"], "served": answer["served"]}
    if listed:
        return Verdict(cell=cell, verdict=FAILED, text=f"ran, but is listed as refused: {listed[0].reason}", **measured)
    if not answer["difference"] <= CLOSE:
        text = f"{answer['where']} off by {answer['difference']:.2g}"
        return Verdict(cell=cell, verdict=FAILED, text=text, **measured)
    return Verdict(cell=cell, verdict=EQUAL, text=answer["note"], **measured)

"""`recsys doctor`: versions, facts of torchrec, and the parity matrix, shown."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys.cli.console import meter, print_json
from recsys.cli.data import JsonOption
from recsys.doctor.cells import LAYOUTS, REFUSALS, Cell
from recsys.doctor.diagnosis import AS_EXPECTED, EQUAL, FAILED, REFUSED, Diagnosis, Verdict, check_versions, examine
from recsys.doctor.versions import ABSENT, TESTED
from recsys.embedding.optimizers import OPTIMIZERS
from recsys.embedding.precision import PRECISIONS

WIDTH = 120
UNSOUND = 1
MARKS = {FAILED: "X", EQUAL: "=", REFUSED: "-"}
LEGEND = (
    f"A mark per optimizer: {', '.join(OPTIMIZERS)}; under served, per precision: {', '.join(PRECISIONS)}.",
    "= equal to the oracle, - refused for a listed reason, X FAILED, . not run. row x2: sharded row-wise over 2 ranks.",
    "max off: the largest difference from the oracle after training, relative to 1 + the value;",
    "int8, int4 off: that of served vectors from those in float32, as a share of the largest value.",
)
STYLES = {"X": "bold red", "=": "green", "-": "dim", ".": "dim"}


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute: some cells are left out.")] = False,
    json: JsonOption = False,
) -> None:
    """Check this installation: versions, what torchrec really does here, and every table against its definition.

    The matrix runs each table method on each backend, at 1 and 2 ranks, in each kind of sharding, with each optimizer
    and served precision: equal to its oracle, refused for a listed reason, or FAILED. All of it runs on the CPU, in
    processes that may die. It ends with exit code 1 when something failed, a known-bad combination is installed, or a
    fact or a refusal is not as listed.
    """
    diagnosis = check_versions()
    screen = Console(highlight=False)
    out = screen if screen.is_terminal else Console(highlight=False, width=WIDTH)
    if not json:
        _print_versions(out, diagnosis)
    with meter() as progress:
        examine(diagnosis, progress, quick=quick)
    if json:
        print_json(diagnosis.to_json())
    else:
        _print_facts(out, diagnosis)
        _print_matrix(out, diagnosis)
        _print_rest(out, diagnosis)
    if not diagnosis.sound:
        raise typer.Exit(UNSOUND)


def _print_versions(out: Console, diagnosis: Diagnosis) -> None:
    shown = _table("Versions", ("package", "installed", "tested", "verdict"))
    for line in diagnosis.versions:
        style = "" if line.verdict in (TESTED, ABSENT) else "bold red"
        shown.add_row(line.package, line.installed or "-", line.wanted, Text(line.verdict, style))
    out.print(shown)
    for conflict in diagnosis.conflicts:
        _say(out, f"KNOWN BAD: {' + '.join(conflict.packages)}: {conflict.breaks}. Do: {conflict.remedy}")


def _print_facts(out: Console, diagnosis: Diagnosis) -> None:
    if not diagnosis.facts:
        return
    shown = _table("Facts of torchrec and fbgemm, run", ("fact", "seen", "verdict"))
    for fact in diagnosis.facts:
        style = "green" if fact.verdict == AS_EXPECTED else "bold red"
        shown.add_row(Text(fact.statement), Text(fact.seen), Text(fact.verdict, style))
    out.print(shown)


def _print_matrix(out: Console, diagnosis: Diagnosis) -> None:
    layouts = [layout for layout in LAYOUTS if any(_in_layout(cell, layout) for cell in diagnosis.cells)]
    names = ("method", *map(_heading, layouts), "served", "max\noff", "int8\noff", "int4\noff")
    shown = _table("Parity with the oracle", names)
    for method in dict.fromkeys(judged.cell.method for judged in diagnosis.cells):
        mine = [judged for judged in diagnosis.cells if judged.cell.method == method]
        shown.add_row(method, *(_optimizer_marks(mine, layout) for layout in layouts), *_served(mine))
    out.print(shown)
    for line in LEGEND:
        _say(out, line)


def _table(title: str, names: Sequence[str]) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in names:
        shown.add_column(name, no_wrap=len(names) > 4)
    return shown


def _heading(layout: tuple[str, int, str]) -> str:
    backend, num_ranks, sharding = layout
    return f"{sharding.removesuffix('_wise')}\nx{num_ranks}" if sharding else backend


def _in_layout(judged: Verdict, layout: tuple[str, int, str]) -> bool:
    return (judged.cell.backend, judged.cell.num_ranks, judged.cell.sharding) == layout


def _optimizer_marks(judged: Sequence[Verdict], layout: tuple[str, int, str]) -> Text:
    mine = [one for one in judged if _in_layout(one, layout)]
    return _marks([one.verdict for one in mine if one.cell.optimizer == optimizer] for optimizer in OPTIMIZERS)


def _served(judged: Sequence[Verdict]) -> tuple[Any, ...]:
    """Marks per precision, the largest difference, and what rounding costs."""
    by_precision = {name: [one for one in judged if one.cell.precision == name] for name in PRECISIONS}
    ran = {name: [one.served for one in found if one.verdict == EQUAL] for name, found in by_precision.items()}
    off = {name: f"{max(served):.1%}" if served else "-" for name, served in ran.items()}
    largest = max((one.difference for one in judged), default=0.0)
    marks = _marks([one.verdict for one in found] for found in by_precision.values())
    return marks, f"{largest:.1e}", off["int8"], off["int4"]


def _marks(groups: Iterable[Sequence[str]]) -> Text:
    """A mark for each group of verdicts: the worst thing that happened in it."""
    shown = Text()
    for verdicts in groups:
        mark = next((mark for verdict, mark in MARKS.items() if verdict in verdicts), ".")
        shown.append(mark, STYLES[mark])
    return shown


def _print_rest(out: Console, diagnosis: Diagnosis) -> None:
    """Refusals, failures, what was left out, and the sum of it."""
    for reason, count in _reasons(diagnosis).items():
        _say(out, f"refused, {count} cells: {reason}")
    notes = {(judged.cell.method, judged.text) for judged in diagnosis.cells if judged.verdict == EQUAL and judged.text}
    for method, note in sorted(notes):
        _say(out, f"{method}, column-wise: {note}")
    for (method, text), cells in _failures(diagnosis).items():
        _say(out, f"FAILED {method}, {len(cells)} cells, the first: {cells[0]}: {text}")
    for fault in diagnosis.faults:
        _say(out, f"FAULT: {fault}")
    for left_out in diagnosis.left_out:
        _say(out, f"left out: {left_out}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in diagnosis.counts().items())
    _say(out, f"{len(diagnosis.cells)} cells: {counts}")
    if any(judged.cell.num_ranks == 2 for judged in diagnosis.cells):
        equal = diagnosis.methods_on_ranks(2)
        _say(out, f"{len(equal)} methods equal the oracle at 2 ranks: {', '.join(equal) or 'none'}")
    _say(out, "sound" if diagnosis.sound else "NOT SOUND")


def _reasons(diagnosis: Diagnosis) -> dict[str, int]:
    """Why cells are refused, as the committed list has it or as a table says of itself, and how many."""
    found: dict[str, int] = {}
    for judged in diagnosis.cells:
        if judged.verdict == REFUSED:
            refusal = next(refusal for refusal in REFUSALS if refusal.says in judged.text)
            own = f"{judged.cell.method}: {judged.text.partition(f'{refusal.says}: ')[2]}"
            reason = f"one rank: {own}" if refusal.one_rank else refusal.reason
            found[reason] = found.get(reason, 0) + 1
    return found


def _failures(diagnosis: Diagnosis) -> dict[tuple[str, str], list[Cell]]:
    """Failed cells by method and what was said of them."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for judged in diagnosis.cells:
        if judged.verdict == FAILED:
            found.setdefault((judged.cell.method, judged.text), []).append(judged.cell)
    return found


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)

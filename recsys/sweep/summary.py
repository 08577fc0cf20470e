"""What the outcomes say together: means and spreads over seeds, what is on a front, and what to take.

Recommended is the best mean validation metric among the rows that satisfy the limits. Rows that the seeds do not tell
apart from it are named: the interval of the difference, paired by seed, is mean +- t * s / sqrt(n) with Student's t for
n - 1 degrees of freedom; with one seed nothing is told apart. Lookup times are ratios to collisionless float32 rows,
times the least time of those over all cells, so that they can be compared across cells.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, stdev

from scipy.stats import t as student

from recsys.sweep.outcome import Outcome, Sizes
from recsys.sweep.plan import DENSE, Cell

CONFIDENCE = 0.95
SAME_BYTES = 0.05  # sizes closer than this are called the same
Kind = tuple[str, str, str]


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and, from two on, the sample standard deviation (0 with one)."""

    mean: float
    deviation: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Of one value a seed."""
        return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.deviation:.4f}" if self.count > 1 else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A method at a budget and a precision: what its finished seeds found, and the reasons of those that are not.

    lookup_us: microseconds per id. What is averaged over seeds can be asked of rows with a finished one.
    """

    method: str
    budget: str
    precision: str
    metric: str
    finished: Mapping[int, Outcome]
    reasons: Mapping[int, tuple[str, str]]
    lookup_us: float = math.nan

    @property
    def name(self) -> str:
        """The method in words."""
        return "collisionless" if self.method == DENSE else self.method

    @property
    def title(self) -> str:
        """Method, budget and precision in words."""
        asked = f" at {self.budget}" if self.budget else ""
        return f"{self.name}{asked}, {self.precision}"

    @property
    def is_reference(self) -> bool:
        """Whether these are the collisionless float32 rows."""
        return (self.method, self.precision) == (DENSE, "float32")

    @property
    def test(self) -> Spread:
        """The metric on test."""
        return Spread.of([outcome.test[self.metric] for outcome in self.finished.values()])

    @property
    def validation(self) -> Spread:
        """The metric on validation, by which is chosen."""
        return Spread.of([outcome.validation[self.metric] for outcome in self.finished.values()])

    @property
    def seconds(self) -> float:
        """Of training, the mean over seeds."""
        return fmean(outcome.seconds for outcome in self.finished.values())

    def largest(self, size: Callable[[Sizes], int]) -> int:
        """The most bytes of a kind over the seeds."""
        return max(size(outcome.sizes) for outcome in self.finished.values() if outcome.sizes is not None)

    @property
    def served(self) -> int:
        """Bytes of the tables' file."""
        return self.largest(lambda sizes: sizes.served)

    @property
    def tensors(self) -> int:
        """Bytes of the values in it."""
        return self.largest(lambda sizes: sizes.tensors)

    @property
    def training(self) -> int:
        """Bytes of weights and optimizer state in training."""
        return self.largest(lambda sizes: sizes.training + sizes.optimizer)

    @property
    def peak(self) -> int | None:
        """Peak memory of the process that trained, where it was measured."""
        found = [outcome.peak_bytes for outcome in self.finished.values() if outcome.peak_bytes is not None]
        return max(found, default=None)


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """Seeds of a row that did not finish, for one reason."""

    row: Row
    seeds: tuple[int, ...]
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What must hold beside a budget; None does not bind. bytes: of the served values; lookup_us: per id."""

    bytes: int | None = None
    lookup_us: float | None = None
    training_bytes: int | None = None

    def admit(self, row: Row) -> bool:
        """Whether a row satisfies them."""
        bounds = ((row.tensors, self.bytes), (row.lookup_us, self.lookup_us), (row.training, self.training_bytes))
        return all(most is None or value <= most for value, most in bounds)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """For what (a budget, or the limits), the best row or None, the rows not told apart from it, and all in words."""

    what: str
    best: Row | None
    alike: tuple[Row, ...]
    words: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All rows of a sweep. dense_bytes: what collisionless float32 tables take. missing: cells that have not ended."""

    metric: str
    higher_is_better: bool
    dense_bytes: int
    rows: tuple[Row, ...]
    missing: int

    @staticmethod
    def of(
        outcomes: Mapping[Cell, Outcome], cells: Sequence[Cell], metric: str, higher_is_better: bool, dense_bytes: int
    ) -> "Summary":
        """The rows in the order of the cells."""
        lookups = [found.lookup.dense_us_per_id for found in outcomes.values() if found.lookup is not None]
        dense_us = min(lookups, default=math.nan)
        kinds = dict.fromkeys((cell.method, cell.budget, cell.precision) for cell in cells)
        rows = tuple(_row(kind, outcomes, metric, dense_us) for kind in kinds)
        return Summary(
            metric=metric, higher_is_better=higher_is_better, dense_bytes=dense_bytes, rows=rows,
            missing=len(cells) - len(outcomes),
        )  # fmt: skip

    @cached_property
    def finished(self) -> tuple[Row, ...]:
        """The rows with at least one finished seed."""
        return tuple(row for row in self.rows if row.finished)

    @cached_property
    def unfinished(self) -> tuple[Unfinished, ...]:
        """What failed or cannot be, each row once for each reason."""
        found: dict[tuple[Row, str, str], list[int]] = {}
        for row in self.rows:
            for seed, why in sorted(row.reasons.items()):
                found.setdefault((row, *why), []).append(seed)
        return tuple(
            Unfinished(row=row, seeds=tuple(seeds), status=status, reason=reason)
            for (row, status, reason), seeds in found.items()
        )

    @property
    def reference(self) -> Row | None:
        """The collisionless float32 rows, when they are finished."""
        return next((row for row in self.finished if row.is_reference), None)

    def front(self, cost: Callable[[Row], float]) -> list[Row]:
        """The rows that no other one beats in both, from the cheapest on: each has a better mean test metric."""
        found: list[Row] = []
        for row in sorted(self.finished, key=lambda row: (cost(row), -self.better(row.test.mean))):
            if not found or self.better(row.test.mean) > self.better(found[-1].test.mean):
                found.append(row)
        return found

    def advise(self, what: str, limits: Limits) -> Advice:
        """What to take within limits."""
        admitted = [row for row in self.finished if limits.admit(row)]
        if not admitted:
            return Advice(what=what, best=None, alike=(), words=f"{what}: nothing that finished satisfies this.")
        best = max(admitted, key=lambda row: self.better(row.validation.mean))
        alike = tuple(row for row in admitted if row is not best and not told_apart(best, row))
        return Advice(what=what, best=best, alike=alike, words=f"{what}: {self._words(best, alike)}")

    def better(self, value: float) -> float:
        """The metric with the sign that makes more better."""
        return value if self.higher_is_better else -value

    def _words(self, best: Row, alike: Sequence[Row]) -> str:
        seeds = f"{best.validation.count} seed{'s' if best.validation.count > 1 else ''}"
        words = f"{best.title}: validation {self.metric} {best.validation} ({seeds})."
        if best.validation.count == 1:
            return f"{words} One seed tells nothing apart: run more before you rely on the order of close methods."
        if not alike:
            return f"{words} The seeds tell it apart from everything else here."
        others = ", ".join(row.title for row in alike)
        words = f"{words} The seeds do not tell it apart ({CONFIDENCE:.0%}, paired) from {others}."
        simplest = min((best, *alike), key=lambda row: row.tensors)
        about = [row for row in (best, *alike) if row.tensors <= (1 + SAME_BYTES) * simplest.tensors]
        fastest = min(about, key=lambda row: row.lookup_us)
        if fastest is best:
            return f"{words} It is the smallest of these, or as small and the fastest to look up."
        return f"{words} Of these {fastest.title} is the smallest, or as small and faster to look up."


def told_apart(one: Row, other: Row) -> bool:
    """Whether the interval of the difference of two rows' validation metrics, paired by seed, leaves 0 out."""
    seeds = sorted(one.finished.keys() & other.finished.keys())
    if len(seeds) < 2:
        return False
    metric = one.metric
    found = Spread.of([one.finished[s].validation[metric] - other.finished[s].validation[metric] for s in seeds])
    reach = float(student.ppf((1 + CONFIDENCE) / 2, found.count - 1)) * found.deviation / math.sqrt(found.count)
    return abs(found.mean) > reach


def _row(kind: Kind, outcomes: Mapping[Cell, Outcome], metric: str, dense_us: float) -> Row:
    method, budget, precision = kind
    own = {cell.seed: found for cell, found in outcomes.items() if (cell.method, cell.budget, cell.precision) == kind}
    finished = {seed: outcome for seed, outcome in own.items() if outcome.status == "finished"}
    ratios = [outcome.lookup.ratio for outcome in finished.values() if outcome.lookup is not None]
    return Row(
        method=method, budget=budget, precision=precision, metric=metric, finished=finished,
        reasons={seed: (found.status, found.reason) for seed, found in own.items() if seed not in finished},
        lookup_us=median(ratios) * dense_us if ratios else math.nan,
    )  # fmt: skip

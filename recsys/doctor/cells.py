"""The parity matrix: every way in which a table may be trained and served, and those that are refused, with reasons.

A cell is a table method, a backend, a number of ranks, a kind of sharding, an optimizer and a served precision. Plain
and fused tables belong to one process; several ranks train sharded ones. `REFUSALS` is the committed list: a cell is
refused exactly when it says so, and with those words. Nothing is run here (parity.py does).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recsys.embedding.optimizers import OPTIMIZERS
from recsys.embedding.placement import COLUMN_WISE, ROW_WISE, TABLE_WISE
from recsys.embedding.precision import PRECISIONS

SHARDINGS = (ROW_WISE, TABLE_WISE, COLUMN_WISE)
LAYOUTS: tuple[tuple[str, int, str], ...] = (
    ("plain", 1, ""),
    ("fused", 1, ""),
    *(("sharded", num_ranks, kind) for num_ranks in (1, 2) for kind in SHARDINGS),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way to train and serve one table; sharding is "" for plain and fused."""

    method: str
    backend: str
    num_ranks: int
    sharding: str
    optimizer: str
    precision: str

    def __str__(self) -> str:
        ranks = "1 rank" if self.num_ranks == 1 else f"{self.num_ranks} ranks"
        parts = (self.method, self.backend, self.sharding, ranks, self.optimizer, self.precision)
        return " ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Cells that are refused: those that agree with every field that is given.

    one_rank: only tables that say of themselves why they train on one rank (`EmbeddingTable.one_rank`). says: words of
    the error, for such a table those of its own. reason: why we refuse.
    """

    says: str
    reason: str
    methods: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    num_ranks: int = 0
    shardings: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    one_rank: bool = False

    def covers(self, cell: Cell, one_rank: str) -> bool:
        """Whether it refuses this cell, of a table that gives this reason to train on one rank ("" = none)."""
        fields = (
            (self.methods, cell.method),
            (self.backends, cell.backend),
            (self.shardings, cell.sharding),
            (self.optimizers, cell.optimizer),
            (self.precisions, cell.precision),
        )
        agrees = all(not accepted or value in accepted for accepted, value in fields)
        return agrees and self.num_ranks in (0, cell.num_ranks) and (bool(one_rank) or not self.one_rank)


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        backends=("fused", "sharded"),
        optimizers=("adam",),
        says="has no Adam",
        reason="fbgemm has no fused Adam on CPU, nor has torchrec",
    ),
    Refusal(
        backends=("sharded",),
        shardings=(COLUMN_WISE,),
        optimizers=("rowwise_adagrad",),
        says="'column_wise' under RowWiseAdagrad",
        reason="each block of columns would average over its own: torchrec updates it wrongly",
    ),
    Refusal(
        methods=("deeplight",),
        precisions=("int8", "int4"),
        says="pruned rows cannot be served in",
        reason="what pruning leaves are single values, and a scale for each would take more than it saves",
    ),
    Refusal(
        num_ranks=2,
        one_rank=True,
        says="does not train over several ranks",
        reason="the table's own: it says why it trains on one rank",
    ),
)


def refusals_of(cell: Cell, one_rank: str) -> list[Refusal]:
    """The entries of the committed list that cover a cell."""
    return [refusal for refusal in REFUSALS if refusal.covers(cell, one_rank)]


def all_cells(methods: Sequence[str], backends: Sequence[str]) -> list[Cell]:
    """The matrix over some methods and backends, ordered by ranks, and each oracle before what it judges."""
    layouts = [layout for layout in LAYOUTS if layout[0] in backends]
    return [
        Cell(
            method=method,
            backend=backend,
            num_ranks=num_ranks,
            sharding=sharding,
            optimizer=optimizer,
            precision=precision,
        )
        for backend, num_ranks, sharding in layouts
        for method in methods
        for optimizer in OPTIMIZERS
        for precision in PRECISIONS
    ]


LEFT_OUT = (
    "sharded on 1 rank, and every precision but float32 (these are served from plain tables under row-wise Adagrad)"
)


def is_quick(cell: Cell) -> bool:
    """Whether the short form runs a cell; LEFT_OUT says in words which it leaves out."""
    if cell.precision != "float32":
        return cell.backend == "plain" and cell.optimizer == "rowwise_adagrad"
    return cell.backend != "sharded" or cell.num_ranks == 2

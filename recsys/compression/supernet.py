"""A supernet of rows and widths: `SearchedTable`, OptEmbed (Lyu et al. 2022, "OptEmbed: Learning Optimal Embedding
Table for Click-through Rate Prediction", arXiv 2208.04482).

    vector(x) = E_f[x] * [x is kept] * [1, ..., 1, 0, ..., 0]          d_f ones, E_f: [n_f, D]

Three stages:

    supernet    an id is kept iff |E_f[x]|_1 > t_f, t_f learned; each looked-up id gets a width drawn from 1..D;
                the loss has + alpha sum over f of exp(-t_f). The step of |e|_1 - t has the derivative
                2 - 4 |x| where |x| <= .4, .4 where |x| <= 1, 0 beyond
    evolution   which ids are kept is settled; the widths d_f are evolved by the metric on validation
    (last)      all starts again from its initial values and trains with both fixed

Shapes: N flat ids, n ids of a vocabulary, D width in training, d the width that is served, m ids kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from features.hashes import hash64
from recsys.compression.evolution import Evolution
from recsys.compression.marks import Marks
from recsys.compression.selection import counts_within, frequency, largest
from recsys.compression.stages import searching, telling
from recsys.embedding.budget import Budget, budget_bytes
from recsys.embedding.precision import Precision, row_bytes
from recsys.embedding.store import Init, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, Search, TableSpec, known_num_embeddings
from recsys.phases import Phase

SUPERNET, RETRAIN = "supernet", "retrain"


class SearchedTable(TableSpec):
    """Float tables of every id while training; which ids and how many columns of each are served is searched.

    Without `budget`, what is reached follows from alpha, as in the paper: a larger one keeps fewer ids. With a budget
    the search holds to it: ids are kept by |e|_1 - t_f, the largest of all vocabularies, as many as fit at the widths
    that are being tried; so widths and ids are weighed against each other. supernet_epochs: of that stage.
    threshold_speed: t_f = threshold_speed x a parameter of the model, so that an optimizer that takes steps of its
    learning rate (Adam) moves t_f by so many times that. evolution: sizes of the search; each candidate is one
    evaluation on validation.

    Memory, served: sum over f of (1 + m_f) row_bytes(d_f, precision) and the bytes that say which ids these are (about
    m + n / 64, see `Marks`), or of n rows where they take no more. In training: 4 n D, a byte an id, and 4 n D x what
    the optimizer keeps.

    What differs from the paper and its code:
    - t_f has no optimizer of its own (there Adam, learning rate 1e-4, over many more steps), but the factor above.
    - Widths are drawn for every looked-up id; in a list the ids of one row of the batch have widths of their own.
    - The code's search changes candidates in place, which alters their parents, and cuts two parents at one of D
      places instead of one of the fields; candidates here are values, cut between fields.
    - The budget, and that the best candidate of all generations is taken, the full widths among them.
    - The authors say that their published numbers may not be reached again; ours stand with the config that gave them.

        SearchedTable(embedding_dim=16, budget="25%")
    """

    embedding_dim: int = Field(ge=1)
    budget: Budget | None = None
    alpha: float = Field(default=1e-3, ge=0)
    threshold_speed: float = Field(default=10.0, gt=0)
    supernet_epochs: int = Field(default=2, ge=1)
    evolution: Evolution = Evolution()
    init: Init = Uniform()

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader; ValueError naming the minimum when the budget is below it."""
        most = self.max_bytes(name, readers)
        tables = {reader.name: self._table(name, reader, seed) for reader in readers}
        if most is not None:
            seen = {reader.name: frequency(reader, tables[reader.name].kept.shape) for reader in readers}
            keep(tables, seen, most, f"table {name!r}: budget {self.budget}")
        for table in tables.values():
            table.most = most
        return dict(tables)

    def _table(self, name: str, reader: Reader, seed: int) -> "SupernetRows":
        store = Store(
            name=f"{name}.{reader.name}",
            num_embeddings=known_num_embeddings(name, "optembed", reader),
            embedding_dim=self.embedding_dim,
            init=self.init,
            training_only=True,
        )
        table = SupernetRows(reader.salt, store, self.precision)
        table.alpha, table.speed = self.alpha, self.threshold_speed
        table.seed.fill_(seed)
        return table

    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int | None:
        """The budget, if there is one."""
        widths = dict.fromkeys(readers, self.embedding_dim)
        return None if self.budget is None else budget_bytes(self.budget, name, widths)

    def schedule(self, phases: Sequence[Phase], search: Search) -> list[Phase]:
        """The supernet, with the evolution at its end, before the phases themselves."""
        tables = {name: table for name, table in search.tables.items() if isinstance(table, SupernetRows)}
        if search.evaluate is None:
            search.score()  # says what is missing

        def tell(stage: str) -> None:
            for table in tables.values():
                table.stage = stage

        def settled() -> None:
            self._evolve(tables, search)
            search.restart()

        return [
            *searching(phases, SUPERNET, self.supernet_epochs, before=lambda: tell(SUPERNET), after=settled),
            *telling(phases, lambda: tell(RETRAIN)),
        ]

    def _evolve(self, tables: Mapping[str, "SupernetRows"], search: Search) -> None:
        """Try widths, each with the ids that are kept at them, and leave the tables as the best ones say."""
        weights, names = search.weights(), sorted(tables)
        margins = {name: tables[name].margins(weights[tables[name].store]) for name in names}

        def settle(widths: Sequence[int]) -> None:
            for name, width in zip(names, widths, strict=True):
                tables[name].width.fill_(width)
            most = tables[names[0]].most
            if most is not None:
                keep(tables, margins, most, "budget")

        def score(widths: Sequence[int]) -> float:
            settle(widths)
            return search.score()

        if tables[names[0]].most is None:
            for name in names:
                tables[name].kept.copy_(margins[name] > 0)
        start = [int(tables[name].stores[0].embedding_dim) for name in names]
        settle(self.evolution.run(score, start, hash64("/".join(names), salt=f"evolution#{search.seed}")))


class SupernetRows(EmbeddingTable):
    """A row per id, of which `kept` and `width` say what is served. stage: said by the phases.

    most, alpha, speed: of the search, set by the specification; none of them matters to what is served.
    """

    one_rank: ClassVar[str] = "which rows are kept and how wide they are is searched over all rows at once"
    kept: Tensor
    width: Tensor
    step: Tensor
    seed: Tensor

    def __init__(self, name: str, store: Store, precision: Precision) -> None:
        """precision: of the served rows."""
        super().__init__(name, [store], store.embedding_dim, store.num_embeddings)
        self.store = store.name
        self.precision = precision
        self.stage = SUPERNET
        self.most: int | None = None
        self.alpha, self.speed = 0.0, 1.0
        self.raised = nn.Parameter(torch.zeros(1))  # t_f / speed
        self.register_buffer("kept", torch.ones(store.num_embeddings, dtype=torch.bool))  # [n]
        self.register_buffer("width", torch.tensor(store.embedding_dim))  # d
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))  # of the drawn widths
        self._cost: Tensor | None = None

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids, one access each."""
        return {self.store: ids.unsqueeze(1)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """In the supernet, rows above the threshold at widths drawn anew each step; else what is kept, at its width."""
        found = vectors[self.store].squeeze(1)  # [N, D]
        columns = torch.arange(self.embedding_dim, device=ids.device)
        if not self.training or self.stage == RETRAIN:
            return found * (self.kept[ids].unsqueeze(1) & (columns < self.width))
        self._cost = self.alpha * torch.exp(-self.speed * self.raised).sum()
        above: Tensor = BinaryStep.apply(self.margins(found))  # type: ignore[no-untyped-call]
        return found * above.unsqueeze(1) * (columns < self._drawn_widths(ids).unsqueeze(1))

    def margins(self, values: Tensor) -> Tensor:
        """|e|_1 - t of rows [N, D]; [N]."""
        return values.abs().sum(1) - self.speed * self.raised

    def _drawn_widths(self, ids: Tensor) -> Tensor:
        """[N] in 1..D, a function of (seed, name, step, place): the same again for another look within a step."""
        generator = torch.Generator().manual_seed(
            hash64(f"{self.name}#{int(self.step)}", salt=f"widths#{int(self.seed)}")
        )
        return torch.randint(1, self.embedding_dim + 1, ids.shape, generator=generator).to(ids.device)

    def penalty(self) -> Tensor | None:
        """What raises the threshold: alpha exp(-t)."""
        found, self._cost = self._cost, None
        return found

    def on_step(self, weights: Mapping[str, Tensor], touched: Mapping[str, Tensor]) -> None:
        """In the supernet: note which of the rows just read are above the threshold, so that evaluation knows."""
        self.step += 1
        if self.stage == SUPERNET and self.most is None:
            rows = touched[self.store]
            self.kept[rows] = self.margins(weights[self.store][rows]) > 0

    def num_bytes(self, kept: int) -> int:
        """Served bytes if so many ids are kept, at the width as it is."""
        rows, row = len(self.kept), row_bytes(int(self.width), self.precision)
        return min((1 + kept) * row + Marks.num_bytes(rows, 1, kept), rows * row)

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple[EmbeddingTable, dict[str, Tensor]]:
        """The rows that are kept, after one of zeros, at their width; or all rows where they take no more."""
        (rows,), kept, width = self.kept.shape, int(self.kept.sum()), int(self.width)
        values = stores[self.store].detach()[:, :width] * self.kept.unsqueeze(1)
        marks = None if self.num_bytes(kept) == rows * row_bytes(width, self.precision) else Marks.of(self._mask())
        if marks is not None:
            values = torch.cat([values.new_zeros(1, width), values[self.kept]])
        name = f"{self.store}.served"
        store = Store(name=name, num_embeddings=len(values), embedding_dim=width, precision=self.precision)
        return KeptRows(self.name, store, self.embedding_dim, rows, marks), {name: values.contiguous()}

    def _mask(self) -> Tensor:
        return self.kept.unsqueeze(1)  # [n, 1]

    def settings(self) -> dict[str, Any]:
        """Its store and the precision of what is served."""
        return {"name": self.name, "store": self.store, "precision": self.precision}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, with its masks to be loaded."""
        return cls(settings["name"], stores[settings["store"]], settings["precision"])


class KeptRows(EmbeddingTable):
    """The rows that are kept, d wide, in vectors of D: the serving form.

    With marks the store holds a row of zeros, which every other id reads, and then the kept ids' rows in their order;
    without, a row per id.
    """

    def __init__(self, name: str, store: Store, embedding_dim: int, num_embeddings: int, marks: Marks | None) -> None:
        super().__init__(name, [store], embedding_dim, num_embeddings)
        self.store = store.name
        self.marks = marks

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The place of an id's row."""
        return {self.store: ids.unsqueeze(1) if self.marks is None else self.marks.find(ids)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The rows, with zeros up to D."""
        found = vectors[self.store].squeeze(1)  # [N, d]
        return F.pad(found, (0, self.embedding_dim - found.shape[1]))

    def settings(self) -> dict[str, Any]:
        """Its store and sizes."""
        sizes = {"embedding_dim": self.embedding_dim, "num_embeddings": self.num_embeddings}
        marks = None if self.marks is None else self.marks.settings()
        return {"name": self.name, "store": self.store, "marks": marks} | sizes

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its marks to be loaded."""
        marks = None if settings["marks"] is None else Marks.from_settings(settings["marks"])
        store, sizes = stores[settings["store"]], (settings["embedding_dim"], settings["num_embeddings"])
        return cls(settings["name"], store, *sizes, marks)


class BinaryStep(torch.autograd.Function):
    """1 where x > 0, else 0; the gradient is that of a smoother step, see above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """[*] -> [*]."""
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient times 2 - 4 |x|, .4 or 0."""
        size = ctx.saved_tensors[0].abs()
        return grad * torch.where(size <= 0.4, 2 - 4 * size, torch.where(size <= 1, 0.4, 0.0))


def keep(tables: Mapping[str, SupernetRows], scores: Mapping[str, Tensor], most: int, what: str) -> None:
    """Keep the ids of the largest scores [n] of all tables, as many as `most` bytes pay for at the tables' widths."""
    counts = counts_within(scores, lambda name, kept: tables[name].num_bytes(kept), most, what)
    for name, table in tables.items():
        table.kept.copy_(largest(scores[name], counts[name]))

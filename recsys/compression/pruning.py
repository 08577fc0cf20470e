"""Pruning: `PrunedTable`, DeepLight (Deng et al. 2021, "DeepLight: Deep Lightweight Feature Interactions for
Accelerating CTR Predictions in Ad Serving", arXiv 2002.06987), on the embeddings.

    vector(x) = E[x] * M[x]          E: [n, D] float store, only while training; M: [n, D] mask of k entries

Three stages, one after the other, optimizers going on as they are:

    warm-up   E trains whole
    prune     every 10 updates the smallest entries of E become 0, at update t of T so many that a share
              s (1 - .01^(t / T)) / .99 of them is 0, s = 1 - k / (n D); entries may grow again in between
    (last)    M is fixed; best weights are chosen in this stage alone, so that only the target rate counts

Evaluation at any time shows what would be served: E at its k largest entries.

Shapes: N flat ids, n ids of a vocabulary, D width, k entries that stay.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from recsys.compression.budgeted import BudgetedTable
from recsys.compression.marks import Marks
from recsys.compression.selection import counts_within, frequency, largest
from recsys.compression.stages import searching, telling
from recsys.embedding.dense import RowPerId
from recsys.embedding.precision import Precision, row_bytes
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader, Search, known_num_embeddings
from recsys.phases import Phase

WARM_UP, PRUNE, FIXED = "warm-up", "prune", "fixed"
EVERY = 10


class PrunedTable(BudgetedTable):
    """Float tables of every id while training, of which the largest entries are served.

    budget: what is served, "158kB" or "10%" of collisionless float32 rows; k is the largest for which values, marks and
    all fit. warmup_epochs, prune_epochs: of these stages; the training's own epochs are those of the last.
    One threshold holds for all vocabularies: after the warm-up each gets as many entries as it has among the k largest
    of all; until then, those of the most frequent ids. precision: of the values, "float32" or "float16".

    Memory, served: 1 + k values of 4 bytes (float16: 2), and for their places the smaller of a byte a value and a bit
    an entry, with 4 bytes for 256 entries (`Marks`); or all rows with zeros in them, where they take no more. At
    D = 16, 10 % of the bytes pay for 8 % of the entries in float32, 13 % in float16; 50 % for 46 % and 93 %. In
    training: 4 n D, n D for the mask, and the optimizer's state.
    Time: a served id costs some 0.7 microseconds on one thread, thirty times a row that lies together; in training,
    every 10 updates the largest of all entries are selected, once or twice.

    What differs from the paper and its code: the curve there is s (1 - .99^(t / 100)), which is within 1 % of s after
    45,821 updates; ours is the same curve, run through in the T updates there are, and ends at s exactly. s is what the
    served bytes allow, not a setting. Each vocabulary's own k is settled after the warm-up, so that pruning needs one
    vocabulary at a time. The weights of the network, which the paper prunes too, are left alone.

        PrunedTable(embedding_dim=16, budget="50%", precision="float16")
    """

    embedding_dim: int = Field(ge=1, le=256)
    warmup_epochs: int = Field(default=1, ge=0)
    prune_epochs: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _values_stand_alone(self) -> Self:
        if self.precision not in ("float32", "float16"):
            raise ValueError(
                f"pruned rows cannot be served in {self.precision}: values stand alone, and a scale for each would "
                "take more than it saves; take 'float16'"
            )
        return self

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader; ValueError naming the minimum when the budget is below it."""
        most = self.max_bytes(name, readers)
        tables = {reader.name: self._table(name, reader, most) for reader in readers}
        seen = {reader.name: frequency(reader, tables[reader.name].kept.shape) for reader in readers}
        deal(tables, seen, f"table {name!r}: budget {self.budget}")
        return dict(tables)

    def _table(self, name: str, reader: Reader, most: int) -> "PrunedRows":
        store = Store(
            name=f"{name}.{reader.name}",
            num_embeddings=known_num_embeddings(name, "deeplight", reader),
            embedding_dim=self.embedding_dim,
            init=self.init,
            training_only=True,
        )
        return PrunedRows(reader.salt, store, self.precision, most)

    def schedule(self, phases: Sequence[Phase], search: Search) -> list[Phase]:
        """Warm-up and pruning before the phases themselves."""
        tables = {name: table for name, table in search.tables.items() if isinstance(table, PrunedRows)}
        updates = self.prune_epochs * sum(phase.num_batches for phase in phases)

        def tell(stage: str) -> None:
            for table in tables.values():
                table.stage, table.updates = stage, updates

        def shared() -> None:
            weights = search.weights()
            deal(tables, {name: weights[table.store].abs() for name, table in tables.items()}, "the budget")

        def pruned() -> None:
            weights = search.weights()
            for table in tables.values():
                table.prune(weights[table.store], share=1.0)

        return [
            *searching(phases, WARM_UP, self.warmup_epochs, before=lambda: tell(WARM_UP), after=shared),
            *searching(phases, PRUNE, self.prune_epochs, before=lambda: tell(PRUNE), after=pruned),
            *telling(phases, lambda: tell(FIXED)),
        ]


class PrunedRows(EmbeddingTable):
    """A row per id, of which `kept` says what is served. stage, updates: which one it is, and T; said by the phases.

    Without phases that say so it is in its warm-up, and what is served is the largest entries as they stand.
    """

    one_rank: ClassVar[str] = "the threshold of the pruning is one of all rows"
    kept: Tensor
    quota: Tensor
    step: Tensor

    def __init__(self, name: str, store: Store, precision: Precision, most: int) -> None:
        """precision: of the served values. most: bytes that the tables of the specification may take together."""
        super().__init__(name, [store], store.embedding_dim, store.num_embeddings)
        self.store = store.name
        self.precision = precision
        self.most = most
        self.stage, self.updates = WARM_UP, 1
        shape = (store.num_embeddings, store.embedding_dim)
        self.register_buffer("kept", torch.zeros(shape, dtype=torch.bool))  # [n, D]
        self.register_buffer("quota", torch.zeros((), dtype=torch.int64))  # k
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # of the stage

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids, one access each."""
        return {self.store: ids.unsqueeze(1)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The rows, without what is not served; in training only once the mask is fixed."""
        found = vectors[self.store].squeeze(1)  # [N, D]
        return found if self.training and self.stage != FIXED else found * self.kept[ids]

    def on_step(self, weights: Mapping[str, Tensor], touched: Mapping[str, Tensor]) -> None:
        """Every 10 updates: what would be served is chosen anew, and in the prune stage the smallest become 0."""
        if self.stage == FIXED:
            return
        if int(self.step) % EVERY == 0:
            done = min(1.0, int(self.step) / self.updates)
            self.prune(weights[self.store], share=pruned_share(done) if self.stage == PRUNE else 0.0)
        self.step += 1

    def prune(self, values: Tensor, share: float) -> None:
        """Set the smallest entries of the store to 0, this share of those that are not to be served; choose these."""
        size = values.abs()
        quota, total = int(self.quota), size.numel()
        self.kept.copy_(largest(size, quota))
        if share == 1.0:
            values.masked_fill_(~self.kept, 0.0)
        elif share > 0:
            values.masked_fill_(~largest(size, total - round((total - quota) * share)), 0.0)

    def num_bytes(self, kept: int) -> int:
        """Served bytes if so many entries are kept."""
        rows, width = self.kept.shape
        some = (1 + kept) * row_bytes(1, self.precision) + Marks.num_bytes(rows, width, kept)
        return min(some, rows * row_bytes(width, self.precision))

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple[EmbeddingTable, dict[str, Tensor]]:
        """The kept values and their marks, or all rows where they take no more."""
        (rows, width), kept = self.kept.shape, int(self.kept.sum())
        values, name = stores[self.store].detach(), f"{self.store}.served"
        if self.num_bytes(kept) == rows * row_bytes(width, self.precision):
            whole = Store(name=name, num_embeddings=rows, embedding_dim=width, precision=self.precision)
            return RowPerId(self.name, whole), {name: values * self.kept}
        store = Store(name=name, num_embeddings=1 + kept, embedding_dim=1, precision=self.precision)
        single = torch.cat([values.new_zeros(1), values[self.kept]]).unsqueeze(1)  # [1 + k, 1]
        return SparseRows(self.name, store, Marks.of(self.kept)), {name: single}

    def settings(self) -> dict[str, Any]:
        """Its store, the precision of what is served, and the budget."""
        return {"name": self.name, "store": self.store, "precision": self.precision, "most": self.most}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table."""
        return cls(settings["name"], stores[settings["store"]], settings["precision"], settings["most"])


class SparseRows(EmbeddingTable):
    """Rows of which only some entries are stored: the serving form.

    The store [1 + k, 1] holds a 0, and then the values in the order of their ids and columns; `marks` says where they
    stand. An entry that is not stored reads the 0.
    """

    def __init__(self, name: str, store: Store, marks: Marks) -> None:
        super().__init__(name, [store], marks.width, marks.num_rows)
        self.store = store.name
        self.marks = marks

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The place of each entry among the values."""
        return {self.store: self.marks.find(ids)}  # [N, D]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The entries as they were read."""
        return vectors[self.store].squeeze(2)  # [N, D]

    def settings(self) -> dict[str, Any]:
        """Its store, and the sizes of the marks."""
        return {"name": self.name, "store": self.store, "marks": self.marks.settings()}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its marks to be loaded."""
        return cls(settings["name"], stores[settings["store"]], Marks.from_settings(settings["marks"]))


def pruned_share(done: float) -> float:
    """Of what is to be pruned, the share that is, after a share `done` of the updates: (1 - .01^done) / .99."""
    return (1.0 - math.pow(0.01, done)) / 0.99


def deal(tables: Mapping[str, PrunedRows], scores: Mapping[str, Tensor], what: str) -> None:
    """Give each table as many entries as it has among the best of all; a new stage begins for it."""
    most = next(iter(tables.values())).most
    quotas = counts_within(scores, lambda name, kept: tables[name].num_bytes(kept), most, what)
    for name, table in tables.items():
        table.quota.fill_(quotas[name])
        table.kept.copy_(largest(scores[name], quotas[name]))
        table.step.zero_()

"""Dedup: `DedupTable`, a trained table whose similar blocks of rows are merged, then trained on (Zhou et al. 2022,
"Serving Deep Learning Models with Deduplication from Relational Databases"; the search is merging.py).

    row(x) = remap[x div b] b + x mod b          vector(x) = E[row(x)]          b rows a block, E: [n, D]

Three stages: the model's phases train all rows, remap being the identity; at their end blocks are merged, which changes
remap alone; then the phases are repeated, and blocks that are one block are trained as one. E keeps its n rows all the
while. What is served has the kept blocks alone, and a remap of their new numbers.

The rows of an id are a function of a buffer, so this trains in every backend and over ranks, before and after merging.
All ranks get the remap that rank 0 found.

Shapes: N flat ids, n ids of a vocabulary, D width, b block_rows, B = ceil(n / b) blocks of which K are kept.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from recsys import distributed
from recsys.compression.merging import Blocks, Likeness, Merging, number_type
from recsys.embedding.budget import Budget, allowed_bytes
from recsys.embedding.dense import RowPerId
from recsys.embedding.precision import row_bytes
from recsys.embedding.store import Init, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, Search, TableSpec, known_num_embeddings
from recsys.phases import Phase, Until

MERGED = "merged"
logger = logging.getLogger(__name__)


class DedupTable(TableSpec):
    """Rows for every id while training, distinct blocks of rows when served; stores "<specification>.<vocabulary>".

    Memory, served, of a vocabulary with K of its B blocks kept: K b x row_bytes(D, precision) + i B, where i is 1, 2 or
    4, the bytes of an integer that counts to K; or whole rows without remap where these are smaller. In training: the
    whole table, 4 n D, and 4 B at most.

    tolerance, similarity: two blocks are merged when at least that share of their floats differ by at most tolerance.
    budget: None merges what is similar, and the served bytes are what they then are. With one, the tolerance given is
    where the search starts: it grows until the tables fit, and a small budget is kept by merging what is not alike; the
    search ends once they do. No `max_bytes` is promised: before the merging nothing is merged.
    block_rows: a remap costs i / b bytes an id, a larger block must agree in more floats at once. Of 10 % budgets on
    the demo world, blocks of 1, 2 and 4 rows kept .776, .764 and .750 of an AUC of .776 before fine-tuning; 1 row pays
    twice for its remap, so it is 2. The published code has blocks of 10,000 floats, 625 rows of 16, for tables of
    millions: vocabularies of thousands have too few of these.
    finetune_epochs: of the repeated phases, at most, with their own patience.

        DedupTable(embedding_dim=16, budget="50%", precision="int8")
    """

    embedding_dim: int = Field(ge=1)
    budget: Budget | None = None
    block_rows: int = Field(default=2, ge=1)
    tolerance: float = Field(default=0.01, gt=0)
    similarity: float = Field(default=0.7, gt=0, le=1)
    finetune_epochs: int = Field(default=1, ge=1)
    init: Init = Uniform()

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader, nothing merged; ValueError naming the minimum when the budget is below it."""
        tables = {reader.name: self._table(name, reader) for reader in readers}
        most = self._most(tables.values())
        least = sum(table.blocks.least_bytes for table in tables.values())
        if most is not None and least > most:
            raise ValueError(f"table {name!r}: budget {self.budget} is too small, the minimum is {least}B")
        return dict(tables)

    def _table(self, name: str, reader: Reader) -> "MergedRows":
        store = Store(
            name=f"{name}.{reader.name}",
            num_embeddings=known_num_embeddings(name, "dedup", reader),
            embedding_dim=self.embedding_dim,
            init=self.init,
            precision=self.precision,
        )
        return MergedRows(reader.salt, store, store.num_embeddings, self.block_rows)

    def _most(self, tables: Iterable["MergedRows"]) -> int | None:
        """The budget in bytes."""
        if self.budget is None:
            return None
        return allowed_bytes(self.budget, sum(4 * table.blocks.num_rows * self.embedding_dim for table in tables))

    def schedule(self, phases: Sequence[Phase], search: Search) -> list[Phase]:
        """The phases, merging at their end, and all of them again under names of their own."""
        *before, last = phases
        end = partial(self._merge, search, last.on_end)
        scheduled = [*before, replace(last, on_end=end)]
        taken = {phase.name for phase in phases}
        for phase in phases:
            name = phase.name
            while name in taken:
                name = f"{name}, {MERGED}"
            taken.add(name)
            until = Until(max_epochs=self.finetune_epochs, patience=phase.until.patience)
            scheduled.append(replace(phase, name=name, until=until, on_end=None))
        return scheduled

    def _merge(self, search: Search, on_end: Callable[[], None] | None) -> None:
        """End the phase, then find the remaps on rank 0, from the weights alone: repeated, it finds the same."""
        if on_end is not None:
            on_end()
        tables = {name: table for name, table in search.tables.items() if isinstance(table, MergedRows)}
        weights = search.weights()
        values = {name: whole_weight(weights[table.store]) for name, table in tables.items()}
        (remaps, *_) = distributed.together(
            lambda: self._found(tables, values, search.seed) if distributed.rank() == 0 else {}
        )
        for name, table in tables.items():
            table.remap.copy_(remaps[name])

    def _found(self, tables: Mapping[str, "MergedRows"], values: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        blocks = {name: table.blocks for name, table in tables.items()}
        alike = Likeness(tolerance=self.tolerance, similarity=self.similarity)
        merging = Merging(values, blocks, alike, self._most(tables.values()), seed)
        found = merging.run()
        kept = {name: f"{len(remap.unique())} of {len(remap)}" for name, remap in found.items()}
        logger.info("blocks kept %s, %d bytes at tolerance %.3g", kept, merging.num_bytes(), merging.alike.tolerance)
        return found


class MergedRows(EmbeddingTable):
    """A row per id, by way of a remap of blocks: the identity at first, later whatever `remap` holds.

    num_embeddings: n ids. The store has n rows in training, the kept ones when served, in their order. The shorter last
    block, if there is one, is kept, so that it stays the last.
    """

    remap: Tensor

    def __init__(self, name: str, store: Store, num_embeddings: int, block_rows: int) -> None:
        super().__init__(name, [store], store.embedding_dim, num_embeddings)
        self.store = store.name
        row = row_bytes(store.embedding_dim, store.precision)
        self.blocks = Blocks(num_rows=num_embeddings, block_rows=block_rows, row_bytes=row)
        kept = -(-store.num_embeddings // block_rows)
        identity = torch.arange(self.blocks.count).clamp_(max=kept - 1)
        self.register_buffer("remap", identity.to(number_type(kept)))

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """One row per id."""
        size = self.blocks.block_rows
        rows = self.remap[ids.div(size, rounding_mode="floor")].long().mul_(size).add_(ids.remainder(size))
        return {self.store: rows.unsqueeze(1)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The one vector of each id."""
        return vectors[self.store].squeeze(1)  # [N, D]

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple[EmbeddingTable, dict[str, Tensor]]:
        """The kept blocks and a remap of their new numbers; rows of all ids where these take no more bytes."""
        kept, numbers = self.remap.long().unique(return_inverse=True)
        if self.blocks.num_bytes(self.blocks.count - len(kept)) == self.blocks.num_rows * self.blocks.row_bytes:
            rows = self.rows(torch.arange(self.blocks.num_rows, device=self.remap.device))[self.store].squeeze(1)
            served = replace(self.stores[0], num_embeddings=len(rows))
            return RowPerId(self.name, served), {self.store: stores[self.store][rows]}
        size = self.blocks.block_rows
        rows = (kept.unsqueeze(1) * size + torch.arange(size, device=kept.device)).flatten()
        rows = rows[rows < self.stores[0].num_embeddings]
        table = MergedRows(self.name, replace(self.stores[0], num_embeddings=len(rows)), self.blocks.num_rows, size).to(
            self.remap.device
        )
        table.remap.copy_(numbers)
        return table, {self.store: stores[self.store][rows]}

    def settings(self) -> dict[str, Any]:
        """All that it is made of but the remap, which is a buffer."""
        return {
            "name": self.name,
            "store": self.store,
            "num_embeddings": self.num_embeddings,
            "block_rows": self.blocks.block_rows,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its remap to be loaded."""
        store = stores[settings["store"]]
        return cls(settings["name"], store, settings["num_embeddings"], settings["block_rows"])


def whole_weight(weight: Tensor) -> Tensor:
    """All of a store [n, d] on the CPU, on every rank, also where its parts are spread over ranks."""
    if not isinstance(weight, DTensor):
        return weight.detach().cpu()
    (placement,) = weight.placements
    assert isinstance(placement, Shard)
    parts = distributed.gather_objects(weight.to_local().detach().cpu().clone())
    return torch.cat([parts[rank] for rank in weight.device_mesh.mesh.tolist()], dim=placement.dim)

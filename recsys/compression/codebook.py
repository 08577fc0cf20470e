"""Codebooks: `CodebookTable`, MGQE (Kang et al. 2020, "Learning Multi-granular Quantized Embeddings for Large-Vocab
Categorical Features in Recommender Systems", arXiv 2002.08530), on DPQ (Chen et al. 2020, arXiv 1908.09756).

    code(x, p)   = argmin over j of |e_p(x) - C[p, j]|^2     e: [n, D] float store, only while training, in P parts
    vector(x)    = [ C[0, code(x, 0)], ..., C[P - 1, code(x, P - 1)] ]          C: [P, K, D / P], the codebook

j ranges over all K centroids for frequent ids, over the first K_rare for the others. In training the vector is
e + sg(c - e), c the vector above: its value is c, its gradient goes to e. The centroids learn from a penalty, the mean
of (c - sg(e))^2; there is no commitment term. sg stops the gradient.

Shapes: N flat ids, U distinct ones, n ids of a vocabulary, D width, P parts, d = D / P, K centroids.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from features.hashes import hash64
from recsys.compression.stages import searching, telling
from recsys.embedding.budget import Budget, budget_bytes, share
from recsys.embedding.dense import RowPerId
from recsys.embedding.precision import Precision, row_bytes
from recsys.embedding.store import BLOCK_ROWS, Init, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, Search, TableSpec, known_num_embeddings
from recsys.phases import Phase

WARM_UP, QUANTISED = "warm-up", "quantised"
ROUNDS = 10


class CodebookTable(TableSpec):
    """A byte per id and part, and a codebook per vocabulary; a row per id where that is no larger.

    Give the number of `parts` (a divisor of embedding_dim) or a `budget`, of which each vocabulary gets its share and
    takes as many parts as it pays for: bytes go in steps of n, so what is served may be well below the budget.
    num_centroids K, rare_centroids K_rare; frequent: the share of the ids, by their counts in train, that may use all.
    warmup_epochs: without quantisation, before the codebook is fitted.

    Memory, served: n P + P K row_bytes(D / P, precision); 2 bytes an id and 16 kB at P = 2, D = 16, K = 256. A code is
    a byte also where 6 bits would do: packing those would save n P / 4 bytes and cost a shift per access. Which ids
    are frequent is not served, as their codes say all. In training: 4 n D, the codebook, and its optimizer state.
    precision: of the codebook's rows, which are short: in 8 bits a row of d takes d + 8 bytes, float16 2 d.

    What differs from the papers and their code:
    - Codes are those of the nearest centroid. DPQ standardises distances over the batch first (BatchNorm), against
      centroids that nobody chooses; but then the code of an id depends on the batch, or on averages that lag behind
      the weights. Centroids that start among the rows, which is what it is for, need no such thing.
    - A warm-up trains the rows as they are; then ten rounds of k-means, ids weighted by their counts, make the
      codebook. With warmup_epochs = 0 it starts with rows' initial values.
    - Distances are compared in float64 and once per distinct id, so that an id has one code whatever the batch.

        CodebookTable(embedding_dim=16, budget="10%")
    """

    embedding_dim: int = Field(ge=1)
    parts: int | None = Field(default=None, ge=1)
    budget: Budget | None = None
    num_centroids: int = Field(default=256, ge=1, le=256)
    rare_centroids: int = Field(default=64, ge=1)
    frequent: float = Field(default=0.1, ge=0, le=1)
    warmup_epochs: int = Field(default=1, ge=0)
    init: Init = Uniform()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if (self.budget is None) == (self.parts is None):
            raise ValueError("a codebook table takes exactly one of budget and parts")
        if self.parts is not None and self.embedding_dim % self.parts:
            raise ValueError(f"parts = {self.parts} must divide embedding_dim = {self.embedding_dim}")
        if self.rare_centroids > self.num_centroids:
            few, all_ = self.rare_centroids, self.num_centroids
            raise ValueError(f"rare_centroids = {few} must be at most num_centroids = {all_}")
        return self

    def build(self, name: str, readers: Sequence[Reader], seed: int = 0) -> dict[str, EmbeddingTable]:
        """One table per reader; ValueError naming the minimum when the budget is below it."""
        parts = self._parts(name, readers)
        return {reader.name: self._table(name, reader, parts[reader.name], seed) for reader in readers}

    def max_bytes(self, name: str, readers: Sequence[Reader]) -> int | None:
        """The budget; with `parts` nothing is promised."""
        widths = dict.fromkeys(readers, self.embedding_dim)
        return None if self.budget is None else budget_bytes(self.budget, name, widths)

    def _parts(self, name: str, readers: Sequence[Reader]) -> dict[str, int]:
        """Of each reader; 0 where a row per id is no larger."""
        sizes = {reader.name: self._sizes(known_num_embeddings(name, "mgqe", reader)) for reader in readers}
        if self.parts is not None:
            given = self.parts
            return {reader: given if size[given] < size[0] else 0 for reader, size in sizes.items()}
        full = {reader: size[0] for reader, size in sizes.items()}
        least = {reader: min(size.values()) for reader, size in sizes.items()}
        most = self.max_bytes(name, readers)
        assert most is not None
        shares = share(most, full, least, f"table {name!r}: budget {self.budget}")
        return {
            reader: 0 if shares[reader] >= full[reader] else max(p for p in size if size[p] <= shares[reader])
            for reader, size in sizes.items()
        }

    def _sizes(self, n: int) -> dict[int, int]:
        """Served bytes for each number of parts, 0 for a row per id."""
        width, centroids = self.embedding_dim, self.num_centroids
        divisors = [parts for parts in range(1, width + 1) if width % parts == 0]
        coded = {p: n * p + p * centroids * row_bytes(width // p, self.precision) for p in divisors}
        return {0: n * row_bytes(width, self.precision)} | coded

    def _table(self, name: str, reader: Reader, parts: int, seed: int) -> EmbeddingTable:
        store = Store(
            name=f"{name}.{reader.name}",
            num_embeddings=known_num_embeddings(name, "mgqe", reader),
            embedding_dim=self.embedding_dim,
            init=self.init,
            training_only=parts > 0,
            precision="float32" if parts else self.precision,
        )
        if not parts:
            return RowPerId(reader.salt, store)
        if reader.counts is None:
            raise ValueError(f"table {name!r} (mgqe) needs to know how often the ids of {reader.name!r} are in train")
        limits = torch.full((store.num_embeddings,), self.rare_centroids)
        most_frequent = reader.counts.argsort(descending=True, stable=True)
        limits[most_frequent[: round(self.frequent * store.num_embeddings)]] = self.num_centroids
        table = QuantisedRows(reader.salt, store, parts, self.num_centroids, self.precision)
        table.begin(limits, reader.counts, seed)
        return table

    def schedule(self, phases: Sequence[Phase], search: Search) -> list[Phase]:
        """A warm-up before the phases themselves, at the end of which the codebooks are fitted to the rows."""
        tables = {name: table for name, table in search.tables.items() if isinstance(table, QuantisedRows)}

        def tell(stage: str) -> None:
            for table in tables.values():
                table.stage = stage

        def fitted() -> None:
            weights = search.weights()
            for name, table in tables.items():
                generator = torch.Generator().manual_seed(hash64(name, salt=f"codebook#{search.seed}"))
                table.fit(weights[table.store], generator)

        if not tables:
            return list(phases)
        warming = searching(phases, WARM_UP, self.warmup_epochs, before=lambda: tell(WARM_UP), after=fitted)
        return [*warming, *telling(phases, lambda: tell(QUANTISED))]


class QuantisedRows(EmbeddingTable):
    """A row per id, of whose parts the nearest centroids are what the model sees. stage: said by the phases."""

    one_rank: ClassVar[str] = "its codebook is fitted to all rows at once"
    limits: Tensor
    counts: Tensor

    def __init__(self, name: str, store: Store, parts: int, num_centroids: int, precision: Precision) -> None:
        """precision: of the served codebook."""
        super().__init__(name, [store], store.embedding_dim, store.num_embeddings)
        self.store = store.name
        self.precision = precision
        self.stage = QUANTISED
        self.codebook = nn.Parameter(torch.zeros(parts, num_centroids, store.embedding_dim // parts))  # [P, K, d]
        self.register_buffer("limits", torch.full((store.num_embeddings,), num_centroids))  # [n]
        self.register_buffer("counts", torch.ones(store.num_embeddings, dtype=torch.int64))  # [n]
        self._distance: Tensor | None = None

    def begin(self, limits: Tensor, counts: Tensor, seed: int) -> None:
        """Say how many centroids each id may use and how often it is in train; start with rows as centroids."""
        self.limits.copy_(limits)
        self.counts.copy_(counts)
        parts, num_centroids, width = self.codebook.shape
        store = self.stores[0]
        rows = torch.empty(min(store.num_embeddings, num_centroids), store.embedding_dim)
        store.initialise(rows, seed)
        chosen = torch.arange(num_centroids) % len(rows)
        self.codebook.data.copy_(rows.view(-1, parts, width)[chosen].transpose(0, 1))

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids, one access each."""
        return {self.store: ids.unsqueeze(1)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The nearest centroids; in training with the gradient of the row itself, which in the warm-up it also is."""
        rows = vectors[self.store].squeeze(1)  # [N, D]
        nearest = self._vectors(self._codes_of(ids, rows.detach()))  # [N, D]
        if not self.training:
            return nearest
        self._distance = (nearest - rows.detach()).square().mean() if len(ids) else None
        return rows if self.stage == WARM_UP else rows + (nearest - rows).detach()

    def penalty(self) -> Tensor | None:
        """The mean square distance of the last rows to their centroids, which moves the centroids alone."""
        found, self._distance = self._distance, None
        return found

    def _codes_of(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Codes [N, P] of ids [N] with these rows [N, D], each distinct id coded once."""
        distinct, back = ids.unique(return_inverse=True)  # [U], [N]
        first = torch.empty_like(distinct)
        first[back] = torch.arange(len(ids), device=ids.device)  # any of its places: their rows are the same
        return self.codes(rows[first], self.limits[distinct])[back]

    def codes(self, rows: Tensor, limits: Tensor) -> Tensor:
        """The nearest centroid of every part of rows [U, D]; [U, P] int64. limits: [U], the first how many may be."""
        found = torch.empty(len(rows), len(self.codebook), dtype=torch.int64, device=rows.device)
        for limit in limits.unique().tolist():
            mine = (limits == limit).nonzero().squeeze(1)
            for block in mine.split(BLOCK_ROWS):
                found[block] = self._nearest(rows[block], limit)
        return found

    def _nearest(self, rows: Tensor, limit: int) -> Tensor:
        centroids = self.codebook[:, :limit].detach().double()  # [P, K, d]
        parts = rows.double().reshape(len(rows), len(centroids), -1).transpose(0, 1)  # [P, U, d]
        square = centroids.square().sum(2).unsqueeze(1)  # [P, 1, K]
        distance = torch.baddbmm(square, parts, centroids.transpose(1, 2), alpha=-2)  # [P, U, K], less |e|^2
        return distance.argmin(2).T

    def _vectors(self, codes: Tensor) -> Tensor:
        parts = torch.arange(codes.shape[1], device=codes.device)
        return self.codebook[parts, codes].flatten(1)  # [N, D]

    @torch.no_grad()
    def fit(self, values: Tensor, generator: torch.Generator) -> None:
        """Make the codebook by k-means over the rows [n, D] of the store; an id counts as often as it is in train.

        Centroids start at rows drawn by these counts, those that only frequent ids may use at rows of such. One that
        no row chooses stays where it is.
        """
        (parts, num_centroids, width), weights = self.codebook.shape, self.counts.double() + 1
        few = int(self.limits.min())
        everyone = _drawn(weights, few, generator)
        frequent = _drawn(weights * (self.limits > few), num_centroids - few, generator)
        centroids = values[torch.cat([everyone, frequent])].reshape(num_centroids, parts, width)
        self.codebook.copy_(centroids.transpose(0, 1))
        for _ in range(ROUNDS):
            codes = self.codes(values, self.limits)  # [n, P]
            for part in range(parts):
                held = weights.new_zeros(num_centroids).index_add_(0, codes[:, part], weights)
                weighted = values[:, part * width : (part + 1) * width] * weights.unsqueeze(1)
                sums = weights.new_zeros(num_centroids, width).index_add_(0, codes[:, part], weighted)
                means = (sums / held.unsqueeze(1)).float()
                self.codebook[part] = torch.where(held.unsqueeze(1) > 0, means, self.codebook[part])

    def freeze(self, stores: Mapping[str, Tensor]) -> tuple[EmbeddingTable, dict[str, Tensor]]:
        """The codes, and the codebook as a store; the rows themselves are left behind."""
        parts, num_centroids, width = self.codebook.shape
        store = Store(
            name=f"{self.store}.codebook",
            num_embeddings=parts * num_centroids,
            embedding_dim=width,
            precision=self.precision,
        )
        table = CodedRows(self.name, store, len(self.limits), parts).to(self.codebook.device)
        table.codes.copy_(self.codes(stores[self.store].detach(), self.limits))
        return table, {store.name: self.codebook.detach().flatten(0, 1).clone()}

    def settings(self) -> dict[str, Any]:
        """Its store and its sizes."""
        parts, num_centroids, _ = self.codebook.shape
        sizes = {"parts": parts, "num_centroids": num_centroids, "precision": self.precision}
        return {"name": self.name, "store": self.store} | sizes

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its codebook and buffers to be loaded."""
        sizes = (settings["parts"], settings["num_centroids"], settings["precision"])
        return cls(settings["name"], stores[settings["store"]], *sizes)


class CodedRows(EmbeddingTable):
    """Codes [n, P] in uint8, and a codebook [P K, d] as the store they read: the serving form."""

    codes: Tensor
    first: Tensor

    def __init__(self, name: str, store: Store, num_embeddings: int, parts: int) -> None:
        super().__init__(name, [store], parts * store.embedding_dim, num_embeddings)
        self.store = store.name
        codes = torch.zeros(num_embeddings, parts, dtype=torch.uint8)
        self.register_buffer("codes", codes)
        first = torch.arange(parts) * (store.num_embeddings // parts)
        self.register_buffer("first", first, persistent=False)  # [P], of each part's centroids

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """A centroid for each part."""
        return {self.store: self.codes[ids] + self.first}  # [N, P]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The centroids, side by side."""
        return vectors[self.store].flatten(1)  # [N, D]

    def settings(self) -> dict[str, Any]:
        """Its store and its sizes."""
        return {"name": self.name, "store": self.store, "codes": list(self.codes.shape)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its codes to be loaded."""
        num_embeddings, parts = settings["codes"]
        return cls(settings["name"], stores[settings["store"]], num_embeddings, parts)


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """So many rows, each the more likely the greater its weight [n] and none with weight 0, repeated only for want.

    The largest of -Exp(1) / weight, which is drawing one after the other without putting back.
    """
    keys = (
        -torch.empty(len(weights), dtype=weights.dtype).exponential_(generator=generator).to(weights.device) / weights
    )
    order = keys.topk(min(max(count, 1), int((weights > 0).sum()) or 1)).indices
    return order[torch.arange(count, device=order.device) % len(order)]

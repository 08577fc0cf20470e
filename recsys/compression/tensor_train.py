"""Tensor-train tables: `TensorTrainTable`, TT-Rec (Yin et al. 2021, "TT-Rec: Tensor Train Compression for Deep Learning
Recommendation Models", arXiv 2101.11714).

An id is three digits x = (x1 n2 + x2) n3 + x3, a column of its vector three digits too, D = d1 d2 d3, and

    vector(x)[j1, j2, j3] = sum_{a < R1, b < R2}  G1[x1][j1, a]  G2[x2][a, j2, b]  G3[x3][b, j3]

    G1: [n1, d1 R1]     G2: [n2, R1 d2 R2]     G3: [n3, R2 d3]          n <= n1 n2 n3

Every id has a vector of its own, made by two small matrix products; ids with equal leading digits, neighbours in the
vocabulary, share cores. It is the heaviest to look up: d2 R1 R2 floats are read, and 2 d1 d2 R2 (R1 + d3) operations
done per id, whatever the budget saves.

Shapes: N flat ids, n ids of a vocabulary, D width, n1 n2 n3 rows and d1 d2 d3 columns of the cores, R1 R2 ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isqrt, prod
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from recsys.compression.budgeted import DealtTable
from recsys.compression.factorized import centred, check_spread, root_mean_square
from recsys.embedding.budget import solve
from recsys.embedding.precision import Precision, row_bytes
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader, known_num_embeddings

Triple = tuple[int, int, int]


class TensorTrainTable(DealtTable):
    """Three cores per vocabulary, "<specification>.<vocabulary>.core1" to ".core3"; ranks follow from the budget.

    D is split as evenly as its divisors allow, the smallest in the middle (16 = 2 x 2 x 4, 30 = 3 x 2 x 5); a prime D
    is 1 x 1 x D, which leaves the width to the last core. n is split into about cube roots. Then R, the rank of both
    sides, is the largest that the share of the budget pays for, up to max_rank; what is left of it buys rows of the
    middle core, n1 and n3 becoming sqrt(n / n2). R1 <= n1 d1 and R2 <= n3 d3, above which nothing is gained.
    Memory: n1 row_bytes(d1 R1) + n2 row_bytes(R1 d2 R2) + n3 row_bytes(R2 d3).

    What differs from the paper and from the published benchmark: there n1, n2, n3 are near cube roots whatever the
    budget. The rank would have to grow without a bound, and with it a lookup: 10 % of a million rows of 64 is rank 120,
    230 kB read per id. The cores start uniform, at the scale where a vector has the mean square of `init`; the paper
    draws normal numbers without those near 0, for the same reason: a product of three has too many near 0.

        TensorTrainTable(embedding_dim=16, budget="1%")
    """

    max_rank: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _starts_alive(self) -> Self:
        check_spread(self.init)
        return self

    def least_bytes(self, num_embeddings: int) -> int:
        """Rank 1."""
        middle = cube_root(num_embeddings)
        return shape_of(num_embeddings, self.embedding_dim, 1, middle).num_bytes(self.precision)

    def compressed(self, name: str, reader: Reader, most: int, seed: int) -> EmbeddingTable:
        """With the largest rank, and then the most rows of the middle core, that fit."""
        n, what = known_num_embeddings(name, "ttrec", reader), f"table {name!r}: budget {self.budget}"
        shape = self._shape(n, most, what)
        init = centred((root_mean_square(self.init) / prod(shape.ranks) ** 0.5) ** (1 / 3))
        stores = [
            replace(self.store(name, reader, rows, f"core{number}", width), init=init)
            for number, (rows, width) in enumerate(zip(shape.rows, shape.widths, strict=True), 1)
        ]
        return TensorTrain(reader.salt, stores, n, shape)

    def _shape(self, n: int, most: int, what: str) -> "Shape":
        least = cube_root(n)

        def num_bytes(rank: int, middle: int = least) -> int:
            return shape_of(n, self.embedding_dim, rank, middle).num_bytes(self.precision)

        rank = solve(num_bytes, most, range(1, self.max_rank + 1), what)
        middle = solve(lambda middle: num_bytes(rank, middle), most, range(least, n + 1), what)
        return shape_of(n, self.embedding_dim, rank, middle)


@dataclass(frozen=True)
class Shape:
    """rows: n1 n2 n3. dims: d1 d2 d3. ranks: R1 R2."""

    rows: Triple
    dims: Triple
    ranks: tuple[int, int]

    @property
    def widths(self) -> Triple:
        """Floats of a row of each core."""
        (first, middle, last), (left, right) = self.dims, self.ranks
        return first * left, left * middle * right, right * last

    def num_bytes(self, precision: Precision) -> int:
        """Of the served cores."""
        return sum(rows * row_bytes(width, precision) for rows, width in zip(self.rows, self.widths, strict=True))


def shape_of(n: int, embedding_dim: int, rank: int, middle: int) -> Shape:
    """The shape for n ids with `middle` rows of the middle core, the other two as even as can be."""
    pairs = -(-n // middle)
    first = isqrt(pairs - 1) + 1
    last = -(-pairs // first)
    dims = split_width(embedding_dim)
    return Shape((first, middle, last), dims, (min(rank, first * dims[0]), min(rank, last * dims[2])))


@cache
def split_width(embedding_dim: int) -> Triple:
    """D = d1 d2 d3 with the least sum, and d2 <= d1 <= d3."""
    found = [
        (first, middle, embedding_dim // (first * middle))
        for middle in range(1, cube_root(embedding_dim) + 1)
        for first in range(middle, isqrt(embedding_dim // middle) + 1)
        if embedding_dim % (first * middle) == 0
    ]
    return min(found, key=sum)


def cube_root(number: int) -> int:
    """The largest whole r with r * r * r <= number."""
    root: int = round(number ** (1 / 3)) + 1
    while root * root * root > number:
        root -= 1
    return root


class TensorTrain(EmbeddingTable):
    """One row of each of three stores, multiplied as matrices, once per distinct id; ids lie in [0, n)."""

    distinct_ids: ClassVar[bool] = True

    def __init__(self, name: str, stores: Sequence[Store], num_embeddings: int, shape: Shape) -> None:
        """stores: the first, the middle and the last core."""
        super().__init__(name, stores, prod(shape.dims), num_embeddings)
        self.cores = tuple(store.name for store in stores)
        self.shape = shape

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The three digits of each id."""
        _, middle, last = self.shape.rows
        column = ids.unsqueeze(1)
        above = column.div(last, rounding_mode="floor")
        first = above.div(middle, rounding_mode="floor")
        digits = (first, above.sub(first, alpha=middle), column.sub(above, alpha=last))  # [N, 1] each
        return dict(zip(self.cores, digits, strict=True))

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Two products of small matrices per id, the first core from the left."""
        (d1, d2, d3), (r1, r2), count = self.shape.dims, self.shape.ranks, len(ids)
        first, middle, last = (vectors[core] for core in self.cores)
        left = torch.bmm(first.view(count, d1, r1), middle.view(count, r1, d2 * r2))  # [N, d1, d2 R2]
        whole = torch.bmm(left.view(count, d1 * d2, r2), last.view(count, r2, d3))  # [N, d1 d2, d3]
        return whole.view(count, self.embedding_dim)

    def settings(self) -> dict[str, Any]:
        """All that it is made of."""
        return {
            "name": self.name,
            "stores": list(self.cores),
            "num_embeddings": self.num_embeddings,
            "rows": list(self.shape.rows),
            "dims": list(self.shape.dims),
            "ranks": list(self.shape.ranks),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table."""
        (n1, n2, n3), (d1, d2, d3), (r1, r2) = (settings[key] for key in ("rows", "dims", "ranks"))
        shape = Shape((n1, n2, n3), (d1, d2, d3), (r1, r2))
        return cls(settings["name"], [stores[store] for store in settings["stores"]], settings["num_embeddings"], shape)

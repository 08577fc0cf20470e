"""The search of Dedup: which blocks of rows are so alike that one may stand for both (Zhou et al. 2022, section 4).

    alike(u, v)     = share of floats i with |u_i - v_i| <= tolerance, at least `similarity`
    bucket(v)       = ( floor((a_j . v) / r + s_j) )_{j < 8}          a_j normal, s_j uniform in [0, 1): L2-LSH

Blocks stand in the order of their 75th percentile. In each of 12 hash tables a block is compared with the first of its
bucket, and if they are alike it is merged into it: from then on the two are one, with the values of the first.

What differs from the published code (1 hash in each of 90 tables, r = .09, a block merges into the most similar one of
all that share any bucket): with one hash nearly all blocks of a trained table share one, and the search is quadratic.
Eight hashes propose few pairs, and in whole tensors. r follows the tolerance and the size of a block: it is 4 times the
distance of blocks that differ by the tolerance in every float.

Shapes: n rows of a table, D width, b rows a block, q = b D floats a block, B blocks, K of them left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor

from features.hashes import hash64

HASHES, HASH_TABLES, WIDTHS = 8, 12, 4.0
PERCENTILE = 0.75
GROWTH = 1.25


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A table of n rows as blocks of b; the last one may be shorter, and then is never merged."""

    num_rows: int
    block_rows: int
    row_bytes: int

    @property
    def count(self) -> int:
        """B."""
        return ceil(self.num_rows / self.block_rows)

    @property
    def complete(self) -> int:
        """Blocks that may be merged."""
        return self.num_rows // self.block_rows

    def num_bytes(self, removed: int) -> int:
        """Served bytes when so many blocks are merged into others: kept rows and remap, or all rows without one."""
        kept = (self.num_rows - removed * self.block_rows) * self.row_bytes
        return min(self.num_rows * self.row_bytes, kept + self.count * number_type(self.count - removed).itemsize)

    @property
    def least_bytes(self) -> int:
        """Served bytes when all that may be is merged into one."""
        return self.num_bytes(max(self.complete - 1, 0))


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """When two blocks are alike: at least `similarity` of their floats differ by at most `tolerance`."""

    tolerance: float
    similarity: float

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """Blocks [K, q] and [K, q] -> [K] bool."""
        close = (one - other).abs_() <= self.tolerance
        return close.sum(1) >= self.similarity * one.shape[1]

    def loosened(self) -> "Likeness":
        """With a greater tolerance."""
        return Likeness(tolerance=self.tolerance * GROWTH, similarity=self.similarity)


def number_type(count: int) -> torch.dtype:
    """The smallest integer that numbers `count` things from 0."""
    if count <= 1 << 8:
        return torch.uint8
    return torch.int16 if count <= 1 << 15 else torch.int32


class Merging:
    """The search over several tables at once, which share a budget. remaps: name -> [B] int64, block -> block kept.

    values: name -> rows [n, D]. most: served bytes of all tables together at which the search ends; None: one round.
    A pure function of its arguments. Raises ValueError for values that are not finite, which are never alike.
    """

    def __init__(
        self, values: Mapping[str, Tensor], blocks: Mapping[str, Blocks], alike: Likeness, most: int | None, seed: int
    ) -> None:
        self.blocks = {name: blocks[name] for name in sorted(values)}
        self.alike = alike
        self.most = most
        self.seed = seed
        self.remaps = {name: torch.arange(part.count) for name, part in self.blocks.items()}
        self._floats = {
            name: values[name][: part.complete * part.block_rows]
            .unflatten(0, (part.complete, part.block_rows))
            .flatten(1)
            for name, part in self.blocks.items()
        }  # [B, q]
        for name, floats in self._floats.items():
            if not bool(torch.isfinite(floats).all()):
                raise ValueError(f"table {name!r} holds values that are not finite and cannot be merged")

    def run(self) -> dict[str, Tensor]:
        """The remaps; with a budget, rounds of growing tolerance until it is kept."""
        self._round()
        while self._excess() > 0:
            self.alike = self.alike.loosened()
            self._round()
        return self.remaps

    def num_bytes(self) -> int:
        """Served bytes as it stands."""
        return sum(part.num_bytes(part.count - len(self.remaps[name].unique())) for name, part in self.blocks.items())

    def _excess(self) -> int:
        return 0 if self.most is None else self.num_bytes() - self.most

    def _round(self) -> None:
        for number in range(HASH_TABLES):
            for name, part in self.blocks.items():
                limit = part.count
                if self.most is not None:
                    limit = ceil(self._excess() / (part.block_rows * part.row_bytes))
                if limit > 0 and part.complete > 1:
                    self._merge(name, number, limit)

    def _merge(self, name: str, number: int, limit: int) -> None:
        """Merge at most `limit` pairs that a hash table proposes."""
        kept = self.remaps[name][: self.blocks[name].complete].unique()
        floats = self._floats[name][kept]  # [K, q]
        order = floats.kthvalue(ceil(PERCENTILE * floats.shape[1]), 1).values.argsort(stable=True)
        kept, floats = kept[order], floats[order]
        first = first_of_bucket(self._buckets(floats, f"{name}#{number}"))
        merged = self.alike(floats, floats[first]) & (first != torch.arange(len(first)))
        merged &= merged.cumsum(0) <= limit
        goes_to = torch.arange(self.blocks[name].count)
        goes_to[kept[merged]] = kept[first[merged]]
        self.remaps[name] = goes_to[self.remaps[name]]

    def _buckets(self, floats: Tensor, name: str) -> Tensor:
        """The bucket of each block in a hash table of that name: [K] int64, a mix of its hashes."""
        generator = torch.Generator().manual_seed(hash64(name, salt=f"merging#{self.seed}"))
        size = floats.shape[1]
        directions = torch.randn(size, HASHES, generator=generator)
        shifts = torch.rand(HASHES, generator=generator)
        factors = torch.randint(1 << 62, (HASHES,), generator=generator)
        width = WIDTHS * self.alike.tolerance * sqrt(size)
        return ((floats @ directions / width + shifts).floor().long() * factors).sum(1)


def first_of_bucket(buckets: Tensor) -> Tensor:
    """[K] -> [K]: the place of the first with the same bucket."""
    found, numbers = buckets.unique(return_inverse=True)
    places = torch.arange(len(buckets))
    firsts = torch.full((len(found),), len(buckets)).scatter_reduce_(0, numbers, places, "amin")
    return firsts[numbers]

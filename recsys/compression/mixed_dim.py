"""MDE: `MixedDimTable`, the larger a vocabulary, the fewer its dimensions (Ginart et al. 2019, "Mixed Dimension
Embeddings with Application to Memory-Efficient Recommendation Systems", arXiv 1909.11810).

    d_f = D (n_min / n_f)^alpha, at least 1, rounded        the power rule: D for the smallest vocabulary
    vector_f(x) = E_f[x] P_f                                E_f: [n_f, d_f], P_f: [d_f, D], only where d_f < D

An id of a large vocabulary is rare on average and supports fewer parameters. A vocabulary of the paper is that of a
field; here it is that of a reader, so features that share ids share rows and projection. Not built: the paper's blocks
by frequency within one vocabulary, each of its own width. They need one store per block and a lookup in each.

Shapes: N flat ids, n_f ids and d_f width of a vocabulary's rows, D width of its vectors.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log, sqrt
from typing import Any, Self

import torch
from torch import Tensor, nn

from features.hashes import hash64
from recsys.compression.budgeted import DealtTable
from recsys.embedding.budget import solve
from recsys.embedding.precision import row_bytes
from recsys.embedding.store import Store
from recsys.embedding.table import EmbeddingTable, Reader, known_num_embeddings


class MixedDimTable(DealtTable):
    """The smallest alpha that the budget allows decides every width.

    Memory: sum over f of n_f x row_bytes(d_f, precision) + 4 d_f D [d_f < D]: projections are float32, are served, and
    are counted. The minimum is alpha without bound: width 1 for all but the smallest vocabularies, about 1 / D of the
    collisionless bytes, so 1 % is out of reach below D = 100; and one vocabulary alone, or several of one size, cannot
    be compressed. A vocabulary keeps D where projection and narrow rows together would take as much.
    Packed rows pay for scale and offset whatever their width: one float is 4 bytes, 9 in int8 and 5 in int4.

    Widths are rounded to the nearest power of two on a logarithmic scale, as in the paper's code, which also rounds D
    itself (30 to 32); here the largest width is D. Projections start as there, Xavier uniform without bias; rows start
    with `init`, as those of every method do, where the code has Xavier uniform for them too.

        MixedDimTable(embedding_dim=16, budget="50%")
    """

    def least_bytes(self, num_embeddings: int) -> int:
        """Rows of width 1 and their projection."""
        return self._bytes(num_embeddings, 1)

    def compressed(self, name: str, reader: Reader, most: int, seed: int) -> EmbeddingTable:
        """The widest rows that fit."""
        n = known_num_embeddings(name, "mde", reader)
        width = max(width for width in widths_below(self.embedding_dim) if self._bytes(n, width) <= most)
        store = self.store(name, reader, n, width=width)
        generator = torch.Generator().manual_seed(hash64(store.name, salt=f"projection#{seed}"))
        projection = nn.init.xavier_uniform_(torch.empty(width, self.embedding_dim), generator=generator)
        return ProjectedRows(reader.salt, store, projection)

    def _shares(self, name: str, readers: Sequence[Reader]) -> dict[str, int]:
        """The budget dealt by the power rule instead of in proportion: what each vocabulary takes at the alpha."""
        sizes = {reader.name: known_num_embeddings(name, f"budget {self.budget}", reader) for reader in readers}
        steps = [
            {reader: self._bytes(sizes[reader], width) for reader, width in widths.items()}
            for widths in power_rule(sizes, self.embedding_dim)
        ]
        step = solve(
            lambda knob: sum(steps[knob].values()),
            self.max_bytes(name, readers),
            range(len(steps)),
            f"table {name!r}: budget {self.budget}",
        )
        return steps[step]

    def _bytes(self, num_embeddings: int, width: int) -> int:
        """Served bytes of rows of that width, or of whole ones where the projection would eat the gain."""
        full = num_embeddings * row_bytes(self.embedding_dim, self.precision)
        if width == self.embedding_dim:
            return full
        return min(full, num_embeddings * row_bytes(width, self.precision) + 4 * width * self.embedding_dim)


class ProjectedRows(EmbeddingTable):
    """A narrow row per id, times a projection that all ids share: [n, d] rows, [d, D] float32 trained parameter."""

    def __init__(self, name: str, store: Store, projection: Tensor) -> None:
        super().__init__(name, [store], projection.shape[1], store.num_embeddings)
        self.store = store.name
        self.projection = nn.Parameter(projection)

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The ids, one access each."""
        return {self.store: ids.unsqueeze(1)}  # [N, 1]

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """Rows [N, d] times projection [d, D]."""
        return vectors[self.store].squeeze(1) @ self.projection  # [N, D]

    def settings(self) -> dict[str, Any]:
        """Its name, its store and D."""
        return {"name": self.name, "store": self.store, "embedding_dim": self.embedding_dim}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table, its projection to be loaded."""
        store = stores[settings["store"]]
        return cls(settings["name"], store, torch.zeros(store.embedding_dim, settings["embedding_dim"]))


def widths_below(embedding_dim: int) -> list[int]:
    """The powers of two below D, rising."""
    return [1 << power for power in range((embedding_dim - 1).bit_length())]


def power_rule(sizes: Mapping[str, int], embedding_dim: int) -> list[dict[str, int]]:
    """Every choice of widths that some alpha >= 0 gives, vocabulary -> width, from the largest alpha to 0.

    A width changes where the ideal one passes the geometric mean of two that are allowed; between two such alphas
    nothing does, so one from each gap stands for it.
    """
    smallest = min(sizes.values())
    ratios = {name: log(size / smallest) for name, size in sizes.items()}
    allowed = [*widths_below(embedding_dim), embedding_dim]
    means = [sqrt(low * high) for low, high in pairwise(allowed)]
    changes = sorted({log(embedding_dim / mean) / ratio for ratio in ratios.values() if ratio for mean in means})
    alphas = [0.0, *((low + high) / 2 for low, high in pairwise(changes)), *(change + 1 for change in changes[-1:])]
    return [
        {name: _nearest(log(embedding_dim) - alpha * ratio, allowed) for name, ratio in ratios.items()}
        for alpha in reversed(alphas)
    ]


def _nearest(ideal: float, allowed: Sequence[int]) -> int:
    """The allowed width whose logarithm is the nearest."""
    return min(allowed, key=lambda width: abs(log(width) - ideal))

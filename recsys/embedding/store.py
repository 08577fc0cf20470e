"""What is stored: `Store`, a named physical table of rows, and how its rows begin.

No more than a description: weights are kept by a backend (`stores`), what rows mean is a table's matter (`table`).

Shapes: n rows, d width of a store.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from features.hashes import hash64
from features.values import Value
from recsys.embedding.precision import Precision, row_bytes

BLOCK_ROWS = 4096


class Uniform(Value):
    """Initial values uniform in [low, high)."""

    kind: Literal["uniform"] = "uniform"
    low: float = -0.05
    high: float = 0.05

    def fill(self, values: Tensor, generator: torch.Generator) -> None:
        """Overwrite `values` from the generator."""
        values.uniform_(self.low, self.high, generator=generator)


class Normal(Value):
    """Initial values normal with mean 0."""

    kind: Literal["normal"] = "normal"
    std: float = Field(default=0.01, ge=0)

    def fill(self, values: Tensor, generator: torch.Generator) -> None:
        """Overwrite `values` from the generator."""
        values.normal_(0.0, self.std, generator=generator)


class Constant(Value):
    """One initial value everywhere, for instance 1 for the factor of a product."""

    kind: Literal["constant"] = "constant"
    value: float = 0.0

    def fill(self, values: Tensor, generator: torch.Generator) -> None:
        """Overwrite `values`; the generator is not drawn from."""
        values.fill_(self.value)


Init = Annotated[Uniform | Normal | Constant, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class Store:
    """A physical table of rows, owned by the collection and read by one table or by many.

    It trains in float32; precision is that of the rows that are served. training_only: what a method needs while it
    trains but does not serve; no frozen table may read it.
    Memory: num_embeddings x embedding_dim x 4 bytes in training, num_embeddings x row_bytes(...) when served.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    init: Uniform | Normal | Constant = field(default_factory=Uniform)
    training_only: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.num_embeddings < 1 or self.embedding_dim < 1:
            shape = (self.num_embeddings, self.embedding_dim)
            raise ValueError(f"store {self.name!r} needs at least one row and one column, got {shape}")

    @property
    def num_bytes(self) -> int:
        """Bytes of its rows as they are served."""
        return self.num_embeddings * row_bytes(self.embedding_dim, self.precision)

    def initialise(self, rows: Tensor, seed: int, start: int = 0) -> None:
        """Write the initial values of rows start, start + 1, ... into `rows` [n, d], a view of any layout.

        A value depends on (seed, store name, row, column) alone: equal in every backend, for any part of the store that
        a rank holds, and unchanged when the store gets more rows. A block of BLOCK_ROWS rows is drawn at a time.
        """
        stop = start + len(rows)
        with torch.no_grad():
            for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
                first = block * BLOCK_ROWS
                low, high = max(first, start), min(first + BLOCK_ROWS, stop)
                rows[low - start : high - start] = self._block(block, seed)[low - first : high - first].to(rows.device)

    def _block(self, block: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash64(f"{self.name}#{block}", salt=f"init#{seed}"))
        values = torch.empty(BLOCK_ROWS, self.embedding_dim, device="cpu")
        self.init.fill(values, generator)
        return values

"""Quotient and remainder: `CompositionalTable`, CompoEmb (Shi et al. 2020, "Compositional Embeddings Using
Complementary Partitions for Memory-Efficient Recommendation Systems", arXiv 1909.02107).

    vector(x) = Q[x // c] * R[x % c]          Q: [ceil(n / c), D], R: [c, D], * element by element, or + by choice

No two ids have both rows in common, so every id has a vector of its own, unlike under a hash; but an id shares its row
of Q with c - 1 neighbours and its row of R with n / c others, and whoever of them is frequent moves it along.
Vocabularies stand in the order of their raw ids, so frequent ids are spread over both. Were ids ordered by frequency,
the c most frequent would share one row of Q and be told apart by R alone. Where raw ids rise with time, a row of Q is
an age, and an id without a past has that of its contemporaries.

Shapes: N flat ids, n ids of a vocabulary, c the divisor, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any, Literal, Self

from pydantic import model_validator
from torch import Tensor

from recsys.compression.budgeted import DealtTable
from recsys.embedding.budget import solve
from recsys.embedding.precision import row_bytes
from recsys.embedding.store import Init, Normal, Store, Uniform
from recsys.embedding.table import EmbeddingTable, Reader, known_num_embeddings

Operation = Literal["product", "sum"]


class CompositionalTable(DealtTable):
    """Two small tables per vocabulary, "<specification>.<vocabulary>.quotient" and ".remainder"; c follows from budget.

    c is the smallest divisor up to sqrt(n) that the share of the budget pays for; the floor is ceil(2 sqrt(n)) rows.
    operation: "product" as in the paper, or "sum". Memory: (ceil(n / c) + c) x row_bytes(D, precision).

    What differs from the authors' code, where both factors start uniform in (sqrt(1 / n), 1) and so all vectors alike,
    near 1/4: here both are uniform around 0, at the scale where the vectors have the mean square of `init`. (`init`
    itself for both would start dead: the product of two numbers near .03 is near .001, and so are its gradients.)

        CompositionalTable(embedding_dim=16, budget="10%")
    """

    operation: Operation = "product"

    @model_validator(mode="after")
    def _starts_alive(self) -> Self:
        if self.operation == "product":
            check_spread(self.init)
        return self

    def least_bytes(self, num_embeddings: int) -> int:
        """ceil(2 sqrt(n)) rows."""
        return self._num_bytes(num_embeddings, isqrt(num_embeddings))

    def compressed(self, name: str, reader: Reader, most: int, seed: int) -> EmbeddingTable:
        """With the smallest divisor, and so the most rows, that fit."""
        n = known_num_embeddings(name, "compo", reader)
        largest, what = isqrt(n), f"table {name!r}: budget {self.budget}"
        divisor = largest - solve(lambda less: self._num_bytes(n, largest - less), most, range(largest), what)
        whole = root_mean_square(self.init)
        init = centred(whole**0.5 if self.operation == "product" else whole / 2**0.5)
        stores = [
            replace(self.store(name, reader, count, part), init=init)
            for part, count in (("quotient", -(-n // divisor)), ("remainder", divisor))
        ]
        return QuotientRemainder(reader.salt, stores, n, divisor, self.operation)

    def _num_bytes(self, n: int, divisor: int) -> int:
        """Falls as the divisor rises up to sqrt(n)."""
        return (-(-n // divisor) + divisor) * row_bytes(self.embedding_dim, self.precision)


class QuotientRemainder(EmbeddingTable):
    """One row of each of two stores, multiplied or added; ids lie in [0, n)."""

    def __init__(
        self, name: str, stores: Sequence[Store], num_embeddings: int, divisor: int, operation: Operation
    ) -> None:
        """stores: of quotients, then of remainders."""
        super().__init__(name, stores, stores[0].embedding_dim, num_embeddings)
        self.quotients, self.remainders = (store.name for store in stores)
        self.divisor = divisor
        self.operation = operation

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The quotient and the remainder of each id, out of one division."""
        column = ids.unsqueeze(1)
        quotients = column.div(self.divisor, rounding_mode="floor")
        return {self.quotients: quotients, self.remainders: column.sub(quotients, alpha=self.divisor)}  # [N, 1] each

    def combine(self, vectors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        """The product or the sum of both."""
        quotients, remainders = vectors[self.quotients].squeeze(1), vectors[self.remainders].squeeze(1)
        return quotients * remainders if self.operation == "product" else quotients + remainders  # [N, D]

    def settings(self) -> dict[str, Any]:
        """All that it is made of."""
        return {
            "name": self.name,
            "stores": [self.quotients, self.remainders],
            "num_embeddings": self.num_embeddings,
            "divisor": self.divisor,
            "operation": self.operation,
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stores: Mapping[str, Store]) -> Self:
        """The same table."""
        given = dict(settings)
        return cls(stores=[stores[store] for store in given.pop("stores")], **given)


# --- initial values of factors ---


def root_mean_square(init: Init) -> float:
    """Of the initial values, over their distribution."""
    if isinstance(init, Uniform):
        return float(((init.low**2 + init.low * init.high + init.high**2) / 3) ** 0.5)
    return init.std if isinstance(init, Normal) else abs(init.value)


def centred(root_mean_square: float) -> Uniform:
    """Uniform around 0 with that root mean square."""
    bound = 3**0.5 * root_mean_square
    return Uniform(low=-bound, high=bound)


def check_spread(init: Init) -> None:
    """ValueError for an `init` that is zero everywhere: factors at zero would never leave it."""
    if not root_mean_square(init):
        raise ValueError(f"init {init} is zero everywhere: a product of zeros has no gradient, give it a spread")

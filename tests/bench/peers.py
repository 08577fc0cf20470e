"""What both benchmarks of the tables share: the features, and the peer that torch alone offers."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from features.spec import FeatureSchema, FeatureSpec

Step = Callable[[], object]


class Ids:
    """An encoder's answers for features f0, f1, ... of `rows` ids each."""

    def __init__(self, tables: int, rows: int, chunks: int = 1) -> None:
        features = tuple(FeatureSpec(name=f"f{t}", table="ids", chunks=chunks) for t in range(tables))
        self.schema = FeatureSchema(name="bench", features=features)
        self.rows = rows

    def num_embeddings(self, feature: str) -> int:
        """The same for each."""
        return self.rows

    def counts(self, feature: str) -> None:
        """Not counted."""


def bags_step(rows: int, dim: int, columns: Mapping[str, Tensor], grads: list[Tensor], device: str = "cpu") -> Step:
    """What torch alone offers: a bag per feature, sparse gradients, Adagrad."""
    bags = [nn.EmbeddingBag(rows, dim, mode="sum", sparse=True, device=device) for _ in columns]
    optimizer = torch.optim.Adagrad([bag.weight for bag in bags], lr=0.01)
    offsets = torch.arange(len(grads[0]), device=device)

    def step() -> None:
        vectors = [bag(column, offsets) for bag, column in zip(bags, columns.values(), strict=True)]
        torch.autograd.backward(vectors, grads)
        optimizer.step()
        optimizer.zero_grad()

    return step

"""What benchmarks share: features, the peer that torch alone offers for tables, and the clock."""

import time
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


def least_ms(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """CPU milliseconds of the fastest run of each, in turns."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats + 2):
        for name, step in steps.items():
            start = time.process_time()
            step()
            best[name] = min(best[name], (time.process_time() - start) * 1e3)
    return best

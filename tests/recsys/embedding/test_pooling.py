"""Pooling of lists, against a loop over rows."""

import pytest
import torch

from features.batch import Jagged
from recsys.embedding.pooling import pool

LISTS = Jagged.from_lists([[0, 1, 2], [], [3], [4, 5]])
WEIGHTS = torch.tensor([0.5, 2.0, -1.0, 3.0, 1.0, -1.0])


def column(weighted: bool) -> Jagged:
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return Jagged(values=values, offsets=LISTS.offsets, weights=WEIGHTS if weighted else None)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_pool_equals_a_loop(pooling: str, weighted: bool) -> None:
    given = column(weighted)
    weights = given.weights if given.weights is not None else torch.ones(6)
    expected = torch.zeros(4, 3)
    for row in range(4):
        members = range(int(given.offsets[row]), int(given.offsets[row + 1]))
        total = sum(float(weights[member]) for member in members)
        for member in members:
            expected[row] += given.values[member].detach() * weights[member]
        if pooling == "mean" and members:
            expected[row] = expected[row] / total if total else 0.0
    torch.testing.assert_close(pool(given, pooling).detach(), expected)  # type: ignore[arg-type]


def test_pool_of_no_values_is_zero_and_has_a_gradient() -> None:
    empty = Jagged(values=torch.empty(0, 3, requires_grad=True), offsets=torch.zeros(3, dtype=torch.int64))
    pooled = pool(empty, "mean")
    assert torch.equal(pooled, torch.zeros(2, 3))
    pooled.sum().backward()


def test_pool_mean_gives_each_value_its_share_of_the_gradient() -> None:
    given = column(weighted=False)
    pool(given, "mean").sum().backward()
    assert given.values.grad is not None
    torch.testing.assert_close(given.values.grad[:, 0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0, 0.5, 0.5]))

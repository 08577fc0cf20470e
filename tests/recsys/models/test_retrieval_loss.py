"""The loss of a retriever's step against loops over users and items."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import Batch
from recsys.laws.checkerboard import INPUTS, NUM_ITEMS, Checkerboard
from recsys.laws.model import Case
from recsys.models.interface import Retriever
from recsys.models.retrieval_loss import Gather, ItemShares, RetrievalLoss, scores_of
from recsys.models.sampling import uniform
from recsys.phases import Step

STEP = Step(seed=5, phase="train", epoch=1, index=2)


def retriever(
    name: str = "mf", inputs: Sequence[str] = ("user", "item"), **options: object
) -> tuple[Retriever, Checkerboard]:
    case = Case(name=name, options=options, inputs=inputs)
    model = case.build(case.world())
    assert isinstance(model, Retriever)
    return model, case.world()


def rows(world: Checkerboard, size: int = 12) -> Batch:
    """Every tenth row: users and items both repeat."""
    chosen = torch.arange(0, 10 * size, 10) % len(world.users)
    return world.batch(world.users[chosen], world.items[chosen])


def pairwise(model: Retriever, world: Checkerboard) -> Tensor:
    """Scores of all users and items over the temperature, in float64."""
    users = torch.arange(int(world.users.max()) + 1)
    return (model.scores(world, users) / model.config.temperature).double()


def has(world: Checkerboard, user: int, item: int) -> bool:
    return bool(((world.users == user) & (world.items == item)).any())


def naive(model: Retriever, world: Checkerboard, batch: Batch) -> list[float]:
    """The losses of the rows by loops, from the definition in the module's docstring."""
    config, scores = model.config, pairwise(model, world)
    users, items = (batch.ids("user") - 1).tolist(), (batch.ids("item") - 1).tolist()
    drawn = uniform(NUM_ITEMS, (config.num_negatives,), STEP.generator()).tolist()
    pool = items + drawn if config.loss == "in_batch" else drawn
    corrected = config.loss == "in_batch" and config.log_q is not False
    counts = world.items.bincount(minlength=NUM_ITEMS).clamp(min=1).tolist()

    def score(user: int, item: int) -> float:
        expected = len(items) * counts[item] / sum(counts) + len(drawn) / NUM_ITEMS
        return float(scores[user, item]) - (log(expected) if corrected else 0.0)

    losses = []
    for user, item in zip(users, items, strict=True):
        known = [config.mask_known and has(world, user, other) for other in pool]
        others = [score(user, other) for other, off in zip(pool, known, strict=True) if other != item and not off]
        own = score(user, item)
        if config.loss == "bpr":
            losses.append(sum(-log(1 / (1 + exp(other - own))) for other in others) / len(others))
        else:
            losses.append(-log(exp(own) / (exp(own) + sum(exp(other) for other in others))))
    return losses


SETTINGS: list[dict[str, Any]] = [
    {"loss": "sampled_softmax", "num_negatives": 10},
    {"loss": "sampled_softmax", "num_negatives": 10, "mask_known": True},
    {"loss": "bpr", "num_negatives": 10, "similarity": "dot", "temperature": 1.0},
    {"loss": "in_batch", "num_negatives": 0},
    {"loss": "in_batch", "num_negatives": 0, "log_q": False},
    {"loss": "in_batch", "num_negatives": 6, "mask_known": True},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_row_losses_equal_loops(options: dict[str, Any]) -> None:
    model, world = retriever(**options)
    batch = rows(world)
    losses = RetrievalLoss(model, world)(batch, STEP)
    assert_close(losses, torch.tensor(naive(model, world, batch)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_negatives", [0, 6])
def test_in_batch_losses_do_not_depend_on_the_number_of_ranks(num_negatives: int) -> None:
    model, world = retriever(loss="in_batch", num_negatives=num_negatives)
    batch = rows(world, 11)
    whole = RetrievalLoss(model, world)(batch, STEP)
    for rank in range(2):
        mine = torch.arange(rank, 11, 2)
        alone = RetrievalLoss(model, world, gather=all_rows_of(model, batch))(batch.select(mine), STEP)
        assert_close(alone, whole[mine])


def all_rows_of(model: Retriever, batch: Batch) -> Gather:
    """A gather that returns what all ranks together would send."""
    vectors, ids = model.item_vectors(batch), batch.ids("item")

    def gather(part: Tensor, row_ids: Tensor | None) -> Tensor:
        expected = ids if part.dim() == 1 else vectors
        assert row_ids is not None
        assert_close(part, expected[row_ids])
        return expected

    return gather


def test_step_looks_everything_up_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, world = retriever("twotower", INPUTS[:4], num_negatives=4)
    lookup = Mock(wraps=model.collection.backend.lookup)
    monkeypatch.setattr(model.collection.backend, "lookup", lookup)
    RetrievalLoss(model, world)(rows(world), STEP)
    assert lookup.call_count == 1


def test_negatives_change_with_the_step_only() -> None:
    model, world = retriever(num_negatives=3)
    loss, batch = RetrievalLoss(model, world), rows(world)
    assert torch.equal(loss(batch, STEP), loss(batch, STEP))
    assert not torch.equal(loss(batch, STEP), loss(batch, replace(STEP, index=3)))


def test_item_shares_sum_to_one_and_count_the_unseen_once() -> None:
    _, world = retriever()
    shares = ItemShares(world.rows(world.items != 4), "item")
    counts = world.items.bincount().double()
    counts[4] = 1
    assert_close(shares.shares, counts / counts.sum())
    ids = torch.tensor([5, 1])  # items 4 and 0
    expected = (8 * (counts / counts.sum())[[4, 0]] + 2 / NUM_ITEMS).log()
    assert_close(shares.log_q(ids, 8, 2).double(), expected, atol=1e-6, rtol=0)


def test_scores_are_the_best_of_several_user_vectors() -> None:
    users = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-1.0, -1.0], [0.5, 0.5]]])
    items = torch.tensor([[3.0, 1.0], [-2.0, 4.0], [-1.0, -3.0]])
    assert scores_of(users, items).tolist() == [[3.0, 8.0, -1.0], [2.0, 1.0, 4.0]]


def test_rows_that_are_no_positives_are_refused() -> None:
    model, world = retriever()
    everything = Checkerboard.of(("user", "item"))
    with pytest.raises(ValueError, match="label 'liked' is 0 in some: prepare the data with examples = 'positive'"):
        RetrievalLoss(model, world)(rows(everything), STEP)

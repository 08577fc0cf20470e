"""The losses against double loops over plain numbers."""

from collections.abc import Callable
from math import exp, log

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from recsys.models.losses import bpr, sampled_softmax

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Naive = Callable[[list[float], list[list[float]], list[list[bool]]], list[float]]


def scores(rows: int = 5, negatives: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    positive = torch.randn(rows, generator=generator, dtype=torch.float64)
    others = torch.randn(rows, negatives, generator=generator, dtype=torch.float64) * 3
    return positive, others, torch.rand(rows, negatives, generator=generator) < 0.3


def naive_bpr(positive: list[float], negatives: list[list[float]], masked: list[list[bool]]) -> list[float]:
    losses = []
    for own, others, hidden in zip(positive, negatives, masked, strict=True):
        terms = [-log(1 / (1 + exp(other - own))) for other, off in zip(others, hidden, strict=True) if not off]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


def naive_softmax(positive: list[float], negatives: list[list[float]], masked: list[list[bool]]) -> list[float]:
    losses = []
    for own, others, hidden in zip(positive, negatives, masked, strict=True):
        total = exp(own) + sum(exp(other) for other, off in zip(others, hidden, strict=True) if not off)
        losses.append(-log(exp(own) / total))
    return losses


@pytest.mark.parametrize(("loss", "naive"), [(bpr, naive_bpr), (sampled_softmax, naive_softmax)])
def test_loss_equals_a_double_loop(loss: Loss, naive: Naive) -> None:
    positive, negatives, masked = scores()
    expected = naive(positive.tolist(), negatives.tolist(), masked.tolist())
    assert_close(loss(positive, negatives, masked), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("loss", [bpr, sampled_softmax])
def test_loss_gradient_is_right(loss: Loss) -> None:
    positive, negatives, masked = scores()
    inputs = (positive.requires_grad_(), negatives.requires_grad_(), masked)
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("loss", [bpr, sampled_softmax])
def test_loss_without_negatives_is_zero_with_zero_gradient(loss: Loss) -> None:
    positive, negatives = (tensor.float().requires_grad_() for tensor in scores()[:2])
    losses = loss(positive, negatives, torch.ones(5, 7, dtype=torch.bool))
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros(5))
    assert positive.grad is not None
    assert negatives.grad is not None
    assert not positive.grad.any()
    assert not negatives.grad.any()


@pytest.mark.parametrize("loss", [bpr, sampled_softmax])
def test_loss_is_finite_at_huge_scores(loss: Loss) -> None:
    positive = torch.tensor([1e4, -1e4])
    negatives = torch.tensor([[-1e4, 1e4], [3e4, -3e4]]).requires_grad_()
    masked = torch.tensor([[False, True], [True, False]])
    losses = loss(positive, negatives, masked)
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert negatives.grad is not None
    assert negatives.grad.isfinite().all()


def test_sampled_softmax_ignores_a_common_shift() -> None:
    positive, negatives, masked = scores()
    assert_close(sampled_softmax(positive + 2, negatives + 2, masked), sampled_softmax(positive, negatives, masked))


def test_losses_leave_their_inputs_alone() -> None:
    positive, negatives, masked = scores()
    before = negatives.clone()
    sampled_softmax(positive, negatives, masked)
    bpr(positive, negatives, masked)
    assert torch.equal(negatives, before)

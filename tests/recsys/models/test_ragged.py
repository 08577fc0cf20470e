import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import offsets_of
from recsys.models.ragged import (
    _sorted_mask,
    chosen,
    last_k,
    owners_of,
    segment_softmax,
    segment_sum,
    spread,
    top_k,
    weighted_sum,
)

LENGTHS = (3, 0, 5, 1, 0, 7, 0)
OFFSETS = offsets_of(torch.tensor(LENGTHS))
OWNERS = owners_of(OFFSETS, sum(LENGTHS))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_owners_are_the_rows_of_the_values() -> None:
    assert OWNERS.tolist() == [row for row, length in enumerate(LENGTHS) for _ in range(length)]
    assert owners_of(torch.tensor([0]), 0).tolist() == []


def test_sums_and_softmax_are_those_of_each_row() -> None:
    values, scores = normal(16, 4), normal(16) * 30
    parts, shares = values.split(LENGTHS), torch.cat([part.softmax(0) for part in scores.split(LENGTHS)])
    assert_close(segment_sum(values, OWNERS, 7), torch.stack([part.sum(0) for part in parts]))
    assert_close(segment_softmax(scores, OWNERS, 7), shares)
    naive = [(part * w[:, None]).sum(0) for part, w in zip(parts, shares.split(LENGTHS), strict=True)]
    assert_close(weighted_sum(shares, values, OWNERS, 7), torch.stack(naive))
    assert torch.equal(spread(values[:7], OWNERS), values[OWNERS])


def test_softmax_of_huge_scores_is_finite_and_its_gradient_is_right() -> None:
    assert segment_softmax(torch.tensor([1e4, 0.0, -1e4]), torch.tensor([0, 0, 1]), 2).tolist() == [1.0, 0.0, 1.0]
    scores = normal(16).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: segment_softmax(s, OWNERS, 7), scores)


def test_softmax_of_bfloat16_scores_sums_to_one_over_long_rows() -> None:
    shares = segment_softmax(torch.zeros(5000, dtype=torch.bfloat16), torch.zeros(5000, dtype=torch.int64), 1)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-4)


def naive_top_k(scores: list[float], k: int) -> list[int]:
    """Of equal scores the later, in the order of the list."""
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], -i))[:k]
    return sorted(best)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 50])
@pytest.mark.parametrize(
    "scores", [normal(16), normal(16).round(), normal(16) * 0 - torch.inf], ids=["", "ties", "inf"]
)
def test_top_k_is_sorting_each_row(scores: Tensor, k: int) -> None:
    indices, offsets = top_k(scores, OFFSETS, k)
    kept = indices.split(offsets.diff().tolist())
    starts = OFFSETS[:-1].tolist()
    assert torch.equal(_sorted_mask(scores, OFFSETS, OWNERS, k).nonzero()[:, 0], indices)
    for row, part in enumerate(scores.split(LENGTHS)):
        assert (kept[row] - starts[row]).tolist() == naive_top_k(part.tolist(), k)


def test_top_k_does_not_depend_on_the_other_rows() -> None:
    scores = normal(16).round()
    alone, _ = top_k(scores[8:9], torch.tensor([0, 1]), 3)
    both, offsets = top_k(scores, OFFSETS, 3)
    assert (alone + 8).tolist() == both[offsets[3] : offsets[4]].tolist()
    assert [part.tolist() for part in top_k(scores[:0], torch.tensor([0, 0]), 3)] == [[], [0, 0]]
    with pytest.raises(ValueError, match="k, the values to keep of each row, must be at least 1, got 0"):
        top_k(scores, OFFSETS, 0)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_last_k_are_the_last_that_the_mask_names(k: int) -> None:
    mask = normal(16) > -0.5
    indices, offsets = last_k(mask, OFFSETS, k)
    naive = [part[keep][-k:] for part, keep in zip(torch.arange(16).split(LENGTHS), mask.split(LENGTHS), strict=True)]
    assert torch.equal(indices, torch.cat(naive))
    assert offsets.diff().tolist() == [len(part) for part in naive]


def test_chosen_keeps_what_the_mask_says_of_each_row() -> None:
    mask = normal(16) > 0
    indices, offsets = chosen(mask, OFFSETS)
    naive = [part[keep] for part, keep in zip(torch.arange(16).split(LENGTHS), mask.split(LENGTHS), strict=True)]
    assert torch.equal(indices, torch.cat(naive))
    assert offsets.diff().tolist() == [len(part) for part in naive]

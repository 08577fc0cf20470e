from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation import sorted_runs
from recsys.evaluation.sorted_runs import Block, group_keys, groups_of, merged, score_keys, scores_of

row = st.tuples(st.integers(-3, 3), st.integers(0, 3), st.integers(0, 3))


def block(rows: list[tuple[int, int, int]]) -> Block:
    keys = torch.tensor([key for key, _, _ in rows], dtype=torch.int64)
    weights = (torch.tensor([r[place] for r in rows], dtype=torch.float64) for place in (1, 2))
    return Block.of(keys, *weights)


@pytest.mark.parametrize("stride", [1, 2, 5])
@given(blocks=st.lists(st.lists(row, max_size=12), max_size=5), rows_at_once=st.integers(1, 20))
def test_merged_blocks_are_the_sums_by_key(
    blocks: list[list[tuple[int, int, int]]], rows_at_once: int, stride: int
) -> None:
    expected: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for key, positive, negative in (r for rows in blocks for r in rows):
        expected[key][0] += positive
        expected[key][1] += negative
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "STRIDE", stride)
        found = list(merged(map(block, blocks), rows_at_once))
    keys = [key for part in found for key in part.keys.tolist()]
    weights = [pair for part in found for pair in zip(part.positives.tolist(), part.negatives.tolist(), strict=True)]
    assert keys == sorted(expected)
    assert weights == [tuple(expected[key]) for key in keys]


def test_merged_pieces_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_runs, "STRIDE", 8)
    ones = torch.ones(1000, dtype=torch.float64)
    blocks = [Block.of(torch.arange(1000) * 5 + run, ones, ones) for run in range(5)]
    pieces = list(merged(blocks, rows_at_once=200))
    assert max(map(len, pieces)) <= 200
    assert torch.equal(torch.cat([piece.keys for piece in pieces]), torch.arange(5000))


def test_merging_leaves_no_file(tmp_path: Path) -> None:
    pieces = merged([block([(1, 1, 1)]), block([(2, 1, 0)])], scratch=tmp_path)
    assert [piece.keys.tolist() for piece in pieces] == [[1, 2]]
    assert list(tmp_path.iterdir()) == []


def test_score_keys_rise_with_the_scores_and_give_them_back() -> None:
    scores = torch.tensor([-3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 2.0, 2.0000002, 3e38])
    keys = score_keys(scores)
    assert bool((keys.diff() >= 0).all())
    assert torch.equal(keys.diff() > 0, scores.diff() > 0)
    assert torch.equal(scores_of(keys), scores)
    assert 0 <= int(keys.min()) <= int(keys.max()) < 1 << 32
    random = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(score_keys(random).argsort(), random.argsort())


def test_group_keys_rise_by_group_first() -> None:
    group, scores = torch.tensor([0, 0, 7, (1 << 31) - 1]), torch.tensor([-1.0, 5.0, -9.0, -10.0])
    keys = group_keys(scores, group)
    assert bool((keys.diff() > 0).all())
    assert torch.equal(groups_of(keys), group)
    assert torch.equal(scores_of(keys), scores)

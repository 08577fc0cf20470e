import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.retrieval.topk import top_k

SCORE = st.sampled_from([-float("inf"), -1.0, -0.0, 0.0, 1.0, 2.0])
scores_and_k = st.integers(1, 12).flatmap(
    lambda n: st.tuples(st.lists(st.lists(SCORE, min_size=n, max_size=n), max_size=6), st.integers(1, 14), st.just(n))
)


@given(scores_and_k)
def test_top_k_equals_sorting_by_score_then_column(case: tuple[list[list[float]], int, int]) -> None:
    rows, k, width = case
    values, columns = top_k(torch.tensor(rows, dtype=torch.float32).view(-1, width), k)
    expected = [sorted(range(width), key=lambda column: (-row[column], column))[:k] for row in rows]
    assert columns.tolist() == expected
    assert values.tolist() == [[row[column] for column in best] for row, best in zip(rows, expected, strict=True)]


def test_top_k_of_many_columns_equals_a_stable_sort() -> None:
    scores = torch.randint(0, 40, (30, 3000), generator=torch.Generator().manual_seed(0)).float()
    values, columns = top_k(scores, 100)
    expected, order = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(columns, order[:, :100])
    assert torch.equal(values, expected[:, :100])


def test_top_k_refuses_what_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k(torch.zeros(1, 3), 0)
    with pytest.raises(ValueError, match="row 1 contain NaN"):
        top_k(torch.tensor([[1.0, 2.0, 3.0], [float("inf"), 2.0, float("nan")]]), 1)


def test_top_k_of_no_columns_is_empty() -> None:
    values, columns = top_k(torch.zeros(2, 0), 3)
    assert list(values.shape) == list(columns.shape) == [2, 0]

import pytest
import torch
from torch import Tensor

from recsys.models import event_search
from recsys.models.event_search import BLOCK, search_shared

K = 3


def naive(scores: Tensor, k: int) -> list[list[int]]:
    """Of each column [L, C]: by score, equal ones the later first, then in order."""
    best = (sorted(range(len(column)), key=lambda at: (-column[at], -at))[:k] for column in scores.t().tolist())
    return [sorted(events) for events in best]


def whole_numbers(*shape: int) -> Tensor:
    """Few different ones, so that scores are exact and often equal."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("num_events", [0, 1, 2, 3, 4, 59, 60, 61, 629, 6007])
def test_the_highest_are_found_and_of_equal_ones_the_later(num_events: int) -> None:
    queries, keys = whole_numbers(5, 4), whole_numbers(num_events, 4)
    found = search_shared(queries, keys, K)
    assert found.shape == (5, min(K, num_events))
    assert found.tolist() == naive(keys @ queries.t(), K)


def test_what_is_added_counts() -> None:
    queries, keys, added = whole_numbers(5, 4), whole_numbers(700, 4), whole_numbers(700)
    found = search_shared(queries, keys, K, added)
    assert found.tolist() == naive(keys @ queries.t() + added.unsqueeze(1), K)
    nothing = search_shared(queries[:, :0], keys[:, :0], K, added)
    assert nothing.tolist() == naive(added.unsqueeze(1).expand(-1, 5), K)


def test_zeros_of_either_sign_are_equal() -> None:
    keys = torch.tensor([[0.0], [-0.0], [-1.0], [0.0], [-0.0]])
    assert search_shared(torch.ones(1, 1), keys, 2).tolist() == [[3, 4]]


def test_one_score_above_all_is_found_wherever_it_is() -> None:
    keys = whole_numbers(BLOCK**3 + 7, 2)
    for place in range(0, len(keys), 37):
        keys[place] = 100.0
        assert search_shared(torch.ones(1, 2), keys, 1).tolist() == [[place]]
        keys[place] = 0.0


def test_slices_of_candidates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = whole_numbers(11, 4), whole_numbers(100, 4)
    whole = search_shared(queries, keys, K)
    for limit in (1, 150, 300):
        monkeypatch.setattr(event_search, "SCORES_AT_ONCE", limit)
        assert torch.equal(search_shared(queries, keys, K), whole)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        search_shared(whole_numbers(1, 2), whole_numbers(3, 2), 0)

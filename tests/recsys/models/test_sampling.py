import pytest
import torch
from scipy.sparse import random as random_matrix
from torch import Tensor
from torch.testing import assert_close

from recsys.models.sampling import KnownPairs, Numbering, by_popularity, uniform


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_pairs() -> tuple[KnownPairs, set[tuple[int, int]]]:
    matrix = random_matrix(6, 9, density=0.3, format="csr", rng=1)
    at = matrix.tocoo()
    return KnownPairs.of(matrix), set(zip(at.row.tolist(), at.col.tolist(), strict=True))


def test_draws_are_functions_of_the_generator() -> None:
    counts = torch.tensor([5, 0, 1])
    assert torch.equal(uniform(50, (3, 4), seeded()), uniform(50, (3, 4), seeded()))
    assert torch.equal(by_popularity(counts, (20,), seeded()), by_popularity(counts, (20,), seeded()))


def test_uniform_reaches_every_item_about_equally() -> None:
    shares = uniform(10, (100_000,), seeded()).bincount() / 100_000
    assert_close(shares, torch.full((10,), 0.1), atol=0.005, rtol=0)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_by_popularity_is_in_proportion(power: float) -> None:
    counts = torch.tensor([4, 0, 1, 16, 0])
    shares = by_popularity(counts, (100_000,), seeded(), power).bincount(minlength=5) / 100_000
    expected = torch.where(counts > 0, counts.float() ** power, 0)
    assert_close(shares, expected / expected.sum(), atol=0.006, rtol=0)


def test_by_popularity_refuses_all_zero_counts() -> None:
    with pytest.raises(ValueError, match="every count is 0"):
        by_popularity(torch.zeros(3), (2,), seeded())


def test_numbering_finds_ids_and_marks_strangers() -> None:
    numbering = Numbering(torch.tensor([7, -3, 7, 50]))
    assert numbering.numbers(torch.tensor([[50, 8], [-3, 99]])).tolist() == [[2, 3], [0, 3]]
    assert numbering.of_position.tolist() == [1, 0, 1, 2]


def test_known_pairs_contains_equals_a_set() -> None:
    known, pairs = some_pairs()
    grid = known.contains(torch.arange(6)[:, None], torch.arange(9))
    assert {(user, item) for user in range(6) for item in range(9) if grid[user, item]} == pairs


def test_known_pairs_mask_equals_a_double_loop() -> None:
    known, pairs = some_pairs()
    users, items = torch.tensor([3, 0, 3, 6]), torch.tensor([8, 1, 1, 9, 4, 0])  # 6 and 9 are unknown
    expected = [[(user, item) in pairs for item in items.tolist()] for user in users.tolist()]
    assert known.mask(users, items).tolist() == expected


def test_known_pairs_may_be_empty() -> None:
    none = KnownPairs(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 2, 3)
    assert not none.contains(torch.tensor([0]), torch.tensor([1])).any()
    assert not none.mask(torch.tensor([0, 1]), torch.tensor([1, 2])).any()


def test_draw_unknown_avoids_what_users_have() -> None:
    known, pairs = some_pairs()
    users = torch.arange(6).repeat(50)
    drawn = known.draw_unknown(users, 3, seeded())
    assert not known.contains(users[:, None], drawn).any()
    assert {(user, item) for user in range(6) for item in range(9)} - pairs == pairs_of(users, drawn)


def test_draw_unknown_gives_up_on_a_user_who_has_everything() -> None:
    known = KnownPairs(torch.zeros(3, dtype=torch.int64), torch.arange(3), 1, 3)
    assert known.draw_unknown(torch.tensor([0]), 5, seeded()).shape == (1, 5)


def pairs_of(users: Tensor, items: Tensor) -> set[tuple[int, int]]:
    return {(user, item) for user, row in zip(users.tolist(), items.tolist(), strict=True) for item in row}

"""One threshold over several tables, and as much kept as the bytes allow."""

import pytest
import torch

from recsys.compression.selection import counts_within, frequency, largest
from recsys.embedding.table import Reader

SCORES = {"a": torch.tensor([[9.0, 1.0], [8.0, 2.0]]), "b": torch.tensor([7.0, 3.0, 6.0])}


def test_counts_follow_one_threshold_over_all_tables() -> None:
    found = {most: counts_within(SCORES, lambda _, kept: kept, most, "it") for most in (0, 3, 4, 7)}
    assert found == {0: {"a": 0, "b": 0}, 3: {"a": 2, "b": 1}, 4: {"a": 2, "b": 2}, 7: {"a": 4, "b": 3}}


def test_counts_keep_everything_where_it_costs_no_more() -> None:
    def size(name: str, kept: int) -> int:
        return min(kept, 2) if name == "a" else kept

    assert counts_within(SCORES, size, 3, "it") == {"a": 4, "b": 1}


def test_counts_name_the_least_bytes_when_nothing_fits() -> None:
    with pytest.raises(ValueError, match="table 'ids' is too small, the minimum is 10B"):
        counts_within(SCORES, lambda _, kept: 5 + kept, 9, "table 'ids'")


def test_largest_marks_exactly_so_many_even_of_equals() -> None:
    scores = torch.tensor([[1.0, 3.0], [2.0, 4.0]])
    assert torch.equal(largest(scores, 2), scores > 2)
    assert [int(largest(torch.zeros(5), count).sum()) for count in range(6)] == [0, 1, 2, 3, 4, 5]


def test_frequency_is_the_count_in_train_for_every_entry() -> None:
    counted = Reader(name="x", salt="x", num_embeddings=3, counts=torch.tensor([0, 5, 2]))
    assert frequency(counted, [3]).tolist() == [0, 5, 2]
    assert frequency(counted, [3, 2]).tolist() == [[0, 0], [5, 5], [2, 2]]
    assert frequency(Reader(name="x", salt="x", num_embeddings=3), [3]).tolist() == [3, 2, 1]

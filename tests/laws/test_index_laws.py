from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys.laws import index as laws
from recsys.laws.index import LawBroken, check_index
from recsys.retrieval import INDEXES, ExactIndex, Hits, Index, load_index


@pytest.mark.parametrize("kind", INDEXES)
def test_index_keeps_every_law(kind: str) -> None:
    check_index(INDEXES[kind])


@pytest.mark.parametrize("kind", INDEXES)
def test_index_loads_under_its_kind(kind: str, tmp_path: Path) -> None:
    build: Callable[[Tensor], Index] = INDEXES[kind]
    build(torch.eye(3)).save(tmp_path)
    assert type(load_index(tmp_path)) is INDEXES[kind]


class _Spoiled(ExactIndex):
    """An exact index whose results a subclass spoils."""

    def _search(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._spoil(*super()._search(queries, k, allowed))

    def _spoil(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return scores, rows


class Unsorted(_Spoiled):
    def _spoil(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return scores.flip(1), rows.flip(1)


class Repeating(_Spoiled):
    def _spoil(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return scores[:, :1].expand_as(scores), rows[:, :1].expand_as(rows)


class Unfiltered(_Spoiled):
    def _search(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        return super()._search(queries, k, None)


class Lossy(_Spoiled):
    def _spoil(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        padding = torch.full_like(scores[:, :1], -torch.inf), torch.full_like(rows[:, :1], -1)
        return torch.cat([scores[:, 1:], padding[0]], 1), torch.cat([rows[:, 1:], padding[1]], 1)


class Rescored(_Spoiled):
    def _spoil(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return scores + 1, rows


class Forgetful(_Spoiled):
    @classmethod
    def _from_tensors(cls, tensors: dict[str, Tensor], num_positions: int) -> "Forgetful":
        return cls(-tensors["vectors"], tensors["positions"], num_positions=num_positions)


@pytest.mark.parametrize(
    ("build", "law"),
    [
        (Unsorted, laws.hits_are_sorted_unique_and_padded),
        (Repeating, laws.hits_are_sorted_unique_and_padded),
        (Unfiltered, laws.nothing_outside_allowed),
        (Lossy, laws.recall_reaches_its_floor),
        (Lossy, laws.several_vectors_score_by_their_best),
        (Lossy, laws.equal_scores_rank_by_position),
        (Lossy, laws.more_than_there_is_is_padded),
        (Rescored, laws.scores_are_inner_products),
        (Forgetful, laws.saving_changes_nothing),
    ],
)
def test_law_notices_an_index_that_breaks_it(build: type[Index], law: Callable[..., None]) -> None:
    with pytest.raises(LawBroken):
        law(build)


def test_index_recall_counts_found_hits() -> None:
    truth = Hits(torch.tensor([[1, 2, 3], [4, -1, -1]]), torch.zeros(2, 3))
    hits = Hits(torch.tensor([[3, 9, 1], [5, -1, -1]]), torch.zeros(2, 3))
    assert laws.index_recall(hits, truth) == 0.5

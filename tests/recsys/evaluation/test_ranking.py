import gzip
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, diags
from torch import Tensor

from features.batch import Jagged
from recsys.evaluation.ranking import METRICS, RankingProtocol, rank_users, ranking_metrics

ALL = tuple(METRICS)


def relevance(text: str) -> Tensor:
    """The list "x..x" has hits at ranks 1 and 4."""
    return torch.tensor([[mark == "x" for mark in text]])


def measured(text: str, num_relevant: int, k: int) -> dict[str, float]:
    protocol = RankingProtocol(ks=(k,), metrics=ALL)
    values = ranking_metrics(relevance(text), torch.tensor([num_relevant]), protocol)
    return {name.removesuffix(f"@{k}"): float(value) for name, value in values.items()}


def test_ndcg_of_one_hit_among_seven_relevant_has_two_readings() -> None:
    values = measured("x" + "." * 19, 7, 20)
    assert values["ndcg"] == pytest.approx(0.2749, abs=5e-5)
    assert values["ndcg_hits_ideal"] == 1.0


def test_metrics_of_a_list_worked_by_hand() -> None:
    values = measured(".x.x", 3, 4)
    log = math.log2
    assert values == pytest.approx(
        {
            "recall": 2 / 3,
            "precision": 2 / 4,
            "hit": 1,
            "mrr": 1 / 2,
            "map": (1 / 2 + 2 / 4) / 3,
            "ndcg": (1 / log(3) + 1 / log(5)) / (1 + 1 / log(3) + 1 / log(4)),
            "ndcg_hits_ideal": (1 / log(3) + 1 / log(5)) / (1 + 1 / log(3)),
        }
    )


def test_metrics_cut_the_list_at_k_and_the_ideal_at_k() -> None:
    values = measured("x..x", 9, 2)
    assert values["recall"] == pytest.approx(1 / 9)
    assert values["map"] == pytest.approx(1 / 2)
    assert values["ndcg"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert values["ndcg_hits_ideal"] == pytest.approx(1 / (1 + 1 / math.log2(3)))  # it knows of the hit at rank 4


def test_metrics_without_a_hit_are_zero() -> None:
    assert set(measured("....", 2, 3).values()) == {0.0}


def test_list_shorter_than_k_counts_as_followed_by_misses() -> None:
    short, padded = measured("x.", 3, 5), measured("x....", 3, 5)
    assert short == padded


# --- against a naive loop ---


def naive(scores: Sequence[float], held_out: set[int], seen: set[int], k: int, depth: int) -> dict[str, float]:
    order = sorted((i for i in range(len(scores)) if i not in seen), key=lambda i: (-scores[i], i))
    hits = [int(item in held_out) for item in order]
    gain = [1 / math.log2(rank + 2) for rank in range(max(k, depth))]
    dcg = sum(h * g for h, g in zip(hits[:k], gain, strict=False))
    ideal_hits = sorted(hits[:depth], reverse=True)[:k]
    ideal = sum(h * g for h, g in zip(ideal_hits, gain, strict=False))
    first = next((rank for rank, h in enumerate(hits[:k], 1) if h), None)
    precisions = [h * sum(hits[:rank]) / rank for rank, h in enumerate(hits[:k], 1)]
    return {
        "recall": sum(hits[:k]) / len(held_out),
        "precision": sum(hits[:k]) / k,
        "hit": float(any(hits[:k])),
        "mrr": 0.0 if first is None else 1 / first,
        "map": sum(precisions) / min(k, len(held_out)),
        "ndcg": dcg / sum(gain[: min(k, len(held_out))]),
        "ndcg_hits_ideal": dcg / ideal if ideal else 0.0,
    }


NUM_ITEMS = 9
items = st.sets(st.integers(0, NUM_ITEMS - 1))
scores_of_items = st.lists(st.integers(0, 3).map(float), min_size=NUM_ITEMS, max_size=NUM_ITEMS)
user = st.tuples(scores_of_items, items, items.filter(lambda seen: len(seen) < 7))
Case = tuple[list[float], set[int], set[int]]  # scores, held out, seen


@given(st.lists(user, min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_ranking_equals_a_loop(cases: list[Case], k: int, k2: int, chunk: int) -> None:
    protocol = RankingProtocol(ks=(k, k2), metrics=ALL, chunk=chunk, hits_depth=6)
    table = torch.tensor([scores for scores, _, _ in cases])
    truth = Jagged.from_lists([sorted(held_out) * 2 for _, held_out, _ in cases])  # repeated items count once
    seen = csr_matrix([[float(item in had) for item in range(NUM_ITEMS)] for _, _, had in cases])
    users = torch.arange(len(cases))
    kept = [case for case in cases if case[1]]
    if not kept:
        with pytest.raises(ValueError, match="nothing to measure"):
            rank_users(table.__getitem__, users, truth, NUM_ITEMS, seen=seen, protocol=protocol)
        return
    result = rank_users(table.__getitem__, users, truth, NUM_ITEMS, seen=seen, protocol=protocol)
    assert result.num_skipped == len(cases) - len(kept)
    for length in {k, k2}:
        rows = [naive(scores, held_out, had, length, max(k, k2, 6)) for scores, held_out, had in kept]
        for name in ALL:
            assert result.per_user[f"{name}@{length}"].tolist() == pytest.approx([row[name] for row in rows])


def test_masked_and_forbidden_items_are_no_hits_even_when_the_list_is_long() -> None:
    scores = torch.tensor([[3.0, 2.0, float("-inf"), 1.0]])
    seen = csr_matrix([[1.0, 0, 0, 0]])
    truth = Jagged.from_lists([[0, 2, 3]])
    protocol = RankingProtocol(ks=(4,), metrics=("recall", "precision"))
    result = rank_users(lambda users: scores, torch.tensor([0]), truth, 4, seen=seen, protocol=protocol)
    assert result.means == pytest.approx({"recall@4": 1 / 3, "precision@4": 1 / 4})


def test_masking_leaves_the_memory_of_the_model_alone() -> None:
    popularity = torch.tensor([3.0, 2.0, 1.0])
    seen = csr_matrix([[1.0, 0, 0]])
    for users in (torch.tensor([0]), torch.tensor([0, 0])):
        truth = Jagged.from_lists([[1]] * len(users))
        rank_users(lambda some: popularity.expand(len(some), -1), users, truth, 3, seen=seen)
    assert popularity.tolist() == [3.0, 2.0, 1.0]


def test_seen_items_are_those_of_the_user_not_of_the_row() -> None:
    seen = csr_matrix([[1.0, 0, 0], [0, 0, 0], [0, 1.0, 0]])
    users, truth = torch.tensor([2, 0]), Jagged.from_lists([[0], [1]])
    result = rank_users(
        lambda some: torch.tensor([[1.0, 2.0, 0.0]]).expand(len(some), -1), users, truth, 3, seen=seen,
        protocol=RankingProtocol(ks=(1,), metrics=("hit",)),
    )  # fmt: skip
    assert result.per_user["hit@1"].tolist() == [1.0, 1.0]
    assert result.users.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"ks": ()}, r"ks must be list lengths of at least 1, got \[\]"),
        ({"ks": (20, 0)}, r"got \[20, 0\]"),
        ({"metrics": ("recal",)}, r"metrics must be among \['recall', .*got \['recal'\]"),
        ({"metrics": ()}, "metrics must be among"),
        ({"chunk": 0}, "chunk must be at least 1 user, got 0"),
    ],
)
def test_protocol_names_what_it_does_not_accept(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        RankingProtocol(**arguments)


def test_rank_users_names_what_it_does_not_accept() -> None:
    users = torch.tensor([4, 7])
    truth = Jagged.from_lists([[0], [1, 3]])
    with pytest.raises(ValueError, match="held-out item 3 of user 7 is not a position of 3 items"):
        rank_users(lambda some: torch.zeros(2, 3), users, truth, 3)
    with pytest.raises(ValueError, match=r"scores must be floating point \[2, 4\], got torch.float32 \[2, 3\]"):
        rank_users(lambda some: torch.zeros(2, 3), users, truth, 4)
    with pytest.raises(ValueError, match="truth has 2 rows for 1 users"):
        rank_users(lambda some: torch.zeros(1, 4), users[:1], truth, 4)
    with pytest.raises(ValueError, match="contain NaN"):
        rank_users(lambda some: torch.full((2, 4), torch.nan), users, truth, 4)


# --- real data ---

DATA = os.environ.get("RECSYS_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="RECSYS_DATA does not name the datasets")


def adjacency(path: Path) -> list[list[int]]:
    with gzip.open(path, "rt") as lines:
        return [[int(item) for item in line.split()[1:]] for line in lines]


def interactions(rows: list[list[int]], num_items: int) -> csr_matrix:
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    columns = np.concatenate([np.array(row, dtype=np.int64) for row in rows])
    return csr_matrix((np.ones(len(columns), np.float32), (users, columns)), shape=(len(rows), num_items))


@needs_data
def test_popularity_on_gowalla_gives_the_published_numbers() -> None:
    train, test = (adjacency(Path(DATA, "gowalla", f"{part}.txt.gz")) for part in ("train", "test"))
    seen = interactions(train, 40_981)
    popularity = torch.from_numpy(np.asarray(seen.sum(0), dtype=np.float32).ravel())
    protocol = RankingProtocol(ks=(20,), metrics=("recall", "ndcg", "ndcg_hits_ideal"), hits_depth=20)
    result = rank_users(
        lambda users: popularity.expand(len(users), -1), torch.arange(len(test)), Jagged.from_lists(test), 40_981,
        seen=seen, protocol=protocol,
    )  # fmt: skip
    means = {name: round(value, 4) for name, value in result.means.items()}
    assert means == {"recall@20": 0.0416, "ndcg@20": 0.0317, "ndcg_hits_ideal@20": 0.0923}


@needs_data
def test_p3_on_amazon_beauty_gives_the_measured_numbers() -> None:
    train, test = (adjacency(Path(DATA, "amazonbeauty_m1", f"{part}.txt.gz")) for part in ("train", "test"))
    seen = interactions(train, 3_570)
    item_degree, user_degree = (np.maximum(np.asarray(seen.sum(axis), dtype=np.float64).ravel(), 1) for axis in (0, 1))
    protocol = RankingProtocol(metrics=("recall", "ndcg", "ndcg_hits_ideal"))
    paths = (diags(1 / item_degree) @ seen.T @ diags(1 / user_degree) @ seen).tocsr()
    result = rank_users(
        lambda users: torch.from_numpy((seen[users.numpy()] @ paths).toarray()), torch.arange(len(test)),
        Jagged.from_lists(test), 3_570, seen=seen, protocol=protocol,
    )  # fmt: skip
    expected = {"recall@20": 0.1576, "ndcg@20": 0.0963, "ndcg_hits_ideal@20": 0.1252}
    assert result.means == pytest.approx(expected, abs=3e-4)

"""The item-item models against their formulas on dense matrices, and against loops."""

from math import sqrt

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.testing import assert_close

from recsys.models import neighbours
from recsys.models.neighbours import P3, ItemKNN, csr_of, csr_tensors


def matrix(seed: int = 0) -> csr_matrix:
    """12 users, 9 items; the last user and the last item have nothing."""
    entries = np.random.default_rng(seed).random((12, 9)) < 0.35
    entries[-1], entries[:, -1] = False, False
    return csr_matrix(entries, dtype=np.float32)


def item_knn(**options: object) -> ItemKNN:
    return ItemKNN(ItemKNN.Config.model_validate(options))


def naive_item_knn(r: list[list[float]], history: list[float], k: int | None, prediction: str) -> list[float]:
    num_users, num_items = len(r), len(r[0])
    users = [sum(row[i] for row in r) for i in range(num_items)]

    def cosine(i: int, j: int) -> float:
        both = sum(row[i] * row[j] for row in r)
        return both / sqrt(users[i] * users[j]) if both else 0.0

    scores = []
    for i in range(num_items):
        near = sorted((-cosine(i, j), j) for j in range(num_items) if j != i and cosine(i, j) > 0)[:k]
        total = sum(-negative for negative, _ in near)
        mean = [count / num_users if prediction == "centred" else 0.0 for count in users]
        score = sum(-negative * (history[j] - mean[j]) for negative, j in near)
        if prediction != "sum":
            score = score / total if total else 0.0
        scores.append(score + mean[i])
    return scores


@pytest.mark.parametrize("prediction", ["sum", "average", "centred"])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_item_knn_equals_loops(k: int | None, prediction: str) -> None:
    train, histories = matrix(), matrix(1)
    model = item_knn(neighbours=k, prediction=prediction)
    model.fit(train)
    expected = [naive_item_knn(train.toarray().tolist(), row, k, prediction) for row in histories.toarray().tolist()]
    assert_close(model.history_scores(histories), torch.tensor(expected))


def test_item_knn_prefers_the_lowest_of_equally_near_items() -> None:
    model = item_knn(neighbours=2, prediction="sum")
    model.fit(csr_matrix(np.ones((3, 5), dtype=np.float32)))
    weights = csr_of("weights", model.tensors()).toarray()
    assert [sorted(np.flatnonzero(weights[:, item])) for item in range(5)] == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]


def test_p3_equals_the_product_of_dense_matrices() -> None:
    train = matrix()
    r = torch.from_numpy(train.toarray()).double()
    by_user, by_item = (torch.where(sums > 0, 1 / sums, 0) for sums in (r.sum(1), r.sum(0)))
    model = P3(P3.Config())
    model.fit(train)
    expected = r @ by_item.diag() @ r.T @ by_user.diag() @ r
    assert_close(model.history_scores(train), expected.float())


@pytest.mark.parametrize("model", [item_knn(neighbours=3), P3(P3.Config())])
def test_chunks_do_not_change_scores(model: ItemKNN | P3, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores() -> Tensor:
        model.fit(matrix())
        return model.history_scores(matrix(1))

    whole = scores()
    monkeypatch.setattr(neighbours, "CHUNK_SIZE", 4)
    assert_close(scores(), whole)


@pytest.mark.parametrize("model", [item_knn(prediction="sum"), P3(P3.Config())])
def test_empty_history_scores_nothing(model: ItemKNN | P3) -> None:
    model.fit(matrix())
    assert not model.history_scores(csr_matrix((2, 9), dtype=np.float32)).any()


def test_csr_tensors_come_back() -> None:
    sparse = matrix()
    tensors = csr_tensors("r", sparse)
    assert {name: tensor.dim() for name, tensor in tensors.items()} == dict.fromkeys(tensors, 1)
    assert np.array_equal(csr_of("r", tensors).toarray(), sparse.toarray())


def test_scoring_before_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="ItemKNN is not fitted"):
        item_knn().history_scores(matrix())


def test_interactions_of_another_type_are_counted_alike() -> None:
    model, other = P3(P3.Config()), P3(P3.Config())
    model.fit(matrix())
    other.fit(matrix().astype(np.int64))
    assert_close(model.history_scores(matrix(1)), other.history_scores(matrix(1)))

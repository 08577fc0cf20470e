import numpy as np
import torch
from scipy.sparse import csr_matrix

from recsys.models.popularity import Popularity


def test_popularity_counts_users_whatever_the_history() -> None:
    train = csr_matrix(np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1]], dtype=np.float32))
    model = Popularity(Popularity.Config())
    model.fit(train)
    assert model.history_scores(train[:2]).tolist() == [[3.0, 0.0, 2.0], [3.0, 0.0, 2.0]]


def test_popularity_scores_may_be_masked_in_place() -> None:
    model = Popularity(Popularity.Config())
    model.fit(csr_matrix(np.eye(3, dtype=np.float32)))
    scores = model.history_scores(csr_matrix((2, 3)))
    scores[0, 1] = -torch.inf
    assert model.history_scores(csr_matrix((2, 3))).isfinite().all()
    assert scores[1].isfinite().all()

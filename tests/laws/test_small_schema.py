"""The laws' small world holds what they need: every id, empty lists, and the same numbers at each call."""

import torch

from features.batch import Jagged
from recsys.embedding.dense import DenseTable
from recsys.laws.small_schema import FEATURES, NUM_ROWS, build, encoder, ids_of, names_of, small_batch


def test_every_id_of_every_feature_stands_in_the_batch() -> None:
    collection = build(DenseTable(embedding_dim=2))
    for name in names_of(collection):
        assert ids_of(collection, name).tolist() == list(range(encoder().num_embeddings(name) or 0))


def test_some_lists_are_empty_and_features_of_one_vocabulary_stand_side_by_side() -> None:
    batch = small_batch()
    lists = [column for column in batch.features.values() if isinstance(column, Jagged)]
    assert len(batch) == NUM_ROWS
    assert all((column.lengths == 0).any() for column in lists)
    assert {spec.vocabulary for spec in FEATURES} >= {"item", "tags"}


def test_the_batch_is_the_same_at_every_call() -> None:
    one, other = small_batch().jagged("interests"), small_batch().jagged("interests")
    assert torch.equal(one.values, other.values)
    assert one.weights is not None
    assert other.weights is not None
    assert torch.equal(one.weights, other.weights)

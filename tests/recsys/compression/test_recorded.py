"""Tables come back from their record at another precision, with the vectors that they had."""

import pytest
import torch

from recsys.compression.recorded import RecordedTables, served_in
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import SGD
from recsys.embedding.precision import PRECISIONS, Precision
from recsys.embedding.table import Reader
from recsys.laws.small_schema import build, encoder, train, vectors_of
from recsys.laws.table import CASES


def again(trained: EmbeddingCollection, precision: Precision, before: Precision) -> EmbeddingCollection:
    specs, state = served_in(precision, trained, {"ids": before})
    spec = RecordedTables.model_validate_json(specs["ids"].model_dump_json())  # as a config keeps it
    found = EmbeddingCollection(encoder(), {"ids": spec}, backend="plain")
    found.load_state_dict(state)
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_record_gives_the_vectors_of_the_trained_tables(name: str) -> None:
    trained = build(CASES[name], SGD(lr=0.5))
    train(trained, steps=1)
    expected = vectors_of(trained)
    found = again(trained, "float32", CASES[name].precision)
    assert torch.allclose(vectors_of(found), expected, atol=1e-6)
    assert torch.allclose(vectors_of(found.freeze()), expected, atol=1e-6)
    assert torch.allclose(vectors_of(found.freeze().freeze()), expected, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_record_serves_as_the_method_at_that_precision(precision: Precision) -> None:
    trained, direct = (build(DenseTable(embedding_dim=6, precision=p), SGD(lr=0.5)) for p in ("float32", precision))
    for collection in (trained, direct):
        train(collection, steps=1)
    found = again(trained, precision, "float32").freeze()
    assert torch.equal(vectors_of(found), vectors_of(direct.freeze()))
    assert found.num_bytes() == direct.num_bytes()


def test_record_changes_a_budgets_precision_not_its_rows() -> None:
    trained = build(CASES["hash"])
    found = again(trained, "int4", "float32")
    rows = {name: store.num_embeddings for name, store in trained.stores.items()}
    assert {name: store.num_embeddings for name, store in found.stores.items()} == rows
    assert {store.precision for store in found.stores.values()} == {"int4"}


def test_record_of_other_readers_is_refused() -> None:
    specs, _ = served_in("int8", build(DenseTable(embedding_dim=4)), {"ids": "float32"})
    with pytest.raises(
        ValueError, match=r"recorded are \['item', 'tags', 'user'\], the schema's readers are \['item'\]"
    ):
        specs["ids"].build("ids", [Reader(name="item", salt="item", num_embeddings=61)])

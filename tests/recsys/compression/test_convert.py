"""New tables from trained vectors: averages where these are the least squares, a fit elsewhere, refusals."""

import pytest
import torch
from torch import Tensor

from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec
from recsys.compression import convert
from recsys.compression.codebook import CodebookTable
from recsys.compression.convert import convert_tables, vectors_of
from recsys.compression.dedup import DedupTable
from recsys.compression.hashing import HashTable
from recsys.compression.tensor_train import TensorTrainTable
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import SGD
from recsys.embedding.store import Normal
from recsys.embedding.table import TableSpec
from recsys.embedding.unified import UnifiedTable
from recsys.laws.small_schema import build, encoder, train
from recsys.laws.small_schema import vectors_of as all_vectors

READERS = ("user", "item", "tags")
FEATURES = (FeatureSpec(name="user", table="ids"), FeatureSpec(name="item", table="ids"))


def trained(spec: TableSpec | None = None) -> EmbeddingCollection:
    collection = build(spec or DenseTable(embedding_dim=6, init=Normal(std=1.0)), SGD(lr=0.5))
    train(collection, steps=2)
    return collection.eval()


def two_features(spec: TableSpec, features: tuple[FeatureSpec, ...] = FEATURES) -> EmbeddingCollection:
    return EmbeddingCollection(small_encoder(features), {"ids": spec}, backend="plain")


def small_encoder(features: tuple[FeatureSpec, ...]) -> Encoder:
    counts = {spec.name: (list(range(30)), list(range(1, 31))) for spec in features}
    return Encoder.from_counts(FeatureSchema(name="small", features=features), counts)


def test_converted_rows_are_the_averages_of_a_loop() -> None:
    source = trained()
    target = build(UnifiedTable(num_embeddings=20, chunk_dim=3, chunks=2))
    initial = target.backend.weights()["ids"].clone()
    convert_tables(source, target, encoder())
    asked: dict[int, list[tuple[float, Tensor]]] = {}
    for feature in READERS:
        counts = encoder().counts(feature)
        assert counts is not None
        for one, vector in enumerate(vectors_of(source, feature, len(counts))):
            rows = target.table(feature).rows(torch.tensor([one]))["ids"][0]
            for chunk, row in enumerate(rows.tolist()):
                asked.setdefault(row, []).append((1.0 + float(counts[one]), vector[3 * chunk : 3 * chunk + 3]))
    for row, values in enumerate(target.backend.weights()["ids"]):
        weight = sum(weight for weight, _ in asked.get(row, []))
        expected = sum((w * v for w, v in asked[row]), torch.zeros(3)) / weight if row in asked else initial[row]
        assert torch.allclose(values, expected, atol=1e-5)


def test_converted_rows_are_a_minimum() -> None:
    source, target = trained(), build(UnifiedTable(num_embeddings=20, chunk_dim=6, chunks=1))
    assert all(lost > 0 for lost in convert_tables(source, target, encoder()).values())
    weights, gradient = target.backend.weights()["ids"], torch.zeros(20, 6, dtype=torch.float64)
    for feature in READERS:
        counts = encoder().counts(feature)
        assert counts is not None
        missed = (vectors_of(target, feature, len(counts)) - vectors_of(source, feature, len(counts))).double()
        rows = target.table(feature).rows(torch.arange(len(counts)))["ids"][:, 0]
        gradient.index_add_(0, rows, missed * (1.0 + counts)[:, None])
    assert gradient.abs().max() < 1e-3 * weights.abs().max()


@pytest.mark.parametrize(
    "spec",
    [
        DenseTable(embedding_dim=6),
        UnifiedTable(num_embeddings=200_000, chunk_dim=2, chunks=3),
        UnifiedTable(budget="1MB", chunk_dim=6, chunks=1, multiplexed=False),
    ],
)
def test_conversion_without_collisions_keeps_every_vector(spec: TableSpec) -> None:
    source, target = trained(), build(spec)
    assert max(convert_tables(source, target, encoder()).values()) < 1e-12
    assert torch.allclose(all_vectors(target), all_vectors(source), atol=1e-6)


def test_conversion_of_a_multiplexed_table_gives_one_row_per_id() -> None:
    source = trained(UnifiedTable(num_embeddings=30, chunk_dim=3, chunks=2))
    target = build(DenseTable(embedding_dim=6))
    assert max(convert_tables(source, target, encoder()).values()) < 1e-12


def test_conversion_into_products_is_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "STEPS", 150)
    source = build(TensorTrainTable(embedding_dim=6, budget="60%"), seed=3).eval()  # known to be representable
    target = build(TensorTrainTable(embedding_dim=6, budget="60%"), seed=4)
    before = (all_vectors(target) - all_vectors(source)).square().sum()
    lost = convert_tables(source, target, encoder())
    assert (all_vectors(target) - all_vectors(source)).square().sum() < 0.5 * before
    assert lost == convert_tables(source, build(TensorTrainTable(embedding_dim=6, budget="60%"), seed=4), encoder())


@pytest.mark.parametrize("spec", [CodebookTable(embedding_dim=6, parts=2), DedupTable(embedding_dim=6)])
def test_conversion_into_what_trains_in_stages_is_refused(spec: TableSpec) -> None:
    with pytest.raises(ValueError, match=r"table 'ids' trains in stages of its own .*; give it to `recsys train`"):
        convert_tables(trained(), build(spec), encoder())


def test_conversion_into_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="feature 'user' has vectors of 6, the new table gives 8; they must agree"):
        convert_tables(trained(), build(HashTable(embedding_dim=8, budget="50%")), encoder())


def test_conversion_of_hashed_ids_is_refused() -> None:
    schema = FeatureSchema(name="hashed", features=(FeatureSpec(name="word", table="ids", hashed=True),))
    one, other = (
        EmbeddingCollection(schema, {"ids": UnifiedTable(num_embeddings=rows, chunk_dim=4)}, backend="plain")
        for rows in (30, 20)
    )
    with pytest.raises(ValueError, match="feature 'word' is hashed: its ids are not listed"):
        convert_tables(one, other, Encoder(schema, {}))


def test_adding_a_feature_changes_no_existing_row() -> None:
    spec = UnifiedTable(num_embeddings=50, chunk_dim=4)
    before = two_features(spec)
    source = two_features(DenseTable(embedding_dim=4, init=Normal(std=1.0)))
    convert_tables(source, before, small_encoder(FEATURES))
    after = two_features(spec, (FeatureSpec(name="brand", table="ids", chunks=3), *FEATURES))
    fresh = two_features(spec).backend.weights()["ids"]
    assert torch.equal(after.backend.weights()["ids"], fresh)  # nor does it move where an untrained store begins
    after.load_state(before.state())
    ids = torch.arange(31)
    for feature in ("user", "item"):
        assert torch.equal(after.table(feature).rows(ids)["ids"], before.table(feature).rows(ids)["ids"])
        assert torch.equal(vectors_of(after, feature, 31), vectors_of(before, feature, 31))

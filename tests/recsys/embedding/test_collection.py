"""The collection is the definition in words: rows, combine, pooling; one update per step; strict state."""

from typing import Any

import pytest
import torch

from features.batch import Batch, Jagged
from features.spec import FeatureSchema, parse_schema
from recsys.embedding import (
    SGD,
    Adagrad,
    Adam,
    DenseTable,
    EmbeddingCollection,
    RowWiseAdagrad,
    TableOptimizer,
    UnifiedTable,
)
from recsys.embedding.pooling import pool
from tests.recsys.embedding.small_schema import (
    OPTIMIZERS,
    SCHEMA,
    SIZES,
    SPECS,
    Ids,
    NaiveStore,
    collection_of,
    flat,
    pull,
    small_batch,
    train,
)

BACKENDS = pytest.mark.parametrize("backend", ["plain", "fused"])


def naive_vector(collection: EmbeddingCollection, feature: str, id_: int) -> torch.Tensor:
    """One id through rows, single rows of the stores, and combine."""
    table, ids = collection.table(feature), torch.tensor([id_])
    vectors = {}
    for store, rows in table.rows(ids).items():
        weight = collection.backend.weights()[store]
        vectors[store] = torch.stack([weight[row] for row in rows[0].tolist()]).unsqueeze(0)
    return table.combine(vectors, ids)[0]


@BACKENDS
def test_vectors_equal_a_loop_over_rows(backend: str) -> None:
    collection, batch = collection_of(backend, SGD(lr=0.1)), small_batch(3)
    found = collection(batch)
    assert set(found) == {"user", "item", "tag", "score", "bias", "word", "query", "history"}
    for name in ("user", "item", "bias", "word"):
        expected = torch.stack([naive_vector(collection, name, id_) for id_ in batch.ids(name).tolist()])
        assert torch.equal(found[name], expected)
    history = [naive_vector(collection, "history", id_) for id_ in batch.jagged("history").values.tolist()]
    assert torch.equal(found["history"].values, torch.stack(history))
    for name in ("tag", "score", "query"):
        column = batch.jagged(name)
        for row in range(column.num_rows):
            members = range(int(column.offsets[row]), int(column.offsets[row + 1]))
            parts = [naive_vector(collection, name, int(column.values[member])) for member in members]
            shares = [float(column.weights[m]) if column.weights is not None else 1 / len(parts) for m in members]
            total = sum(
                (part * share for part, share in zip(parts, shares, strict=True)), torch.zeros(found[name].shape[1])
            )
            torch.testing.assert_close(found[name][row], total)


@BACKENDS
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
def test_row_read_by_many_takes_one_update_with_the_sum(backend: str, optimizer: TableOptimizer) -> None:
    collection = collection_of(backend, optimizer)
    naive = NaiveStore(collection.backend.weights()["odd.item"], optimizer)
    for step in range(3):
        batch = small_batch(step)
        vectors = collection(batch)
        at = {"item": batch.ids("item").tolist(), "history": batch.jagged("history").values.tolist()}
        parts = {"item": vectors["item"], "history": vectors["history"].values}
        sums: dict[int, list[float]] = {}
        loss = torch.zeros(())
        for seed, (name, part) in enumerate(parts.items()):
            grad = pull(part.numel(), 10 * step + seed).view_as(part)
            loss = loss + (part * grad).sum()
            for row, values in zip(at[name], grad.tolist(), strict=True):
                before = sums.get(row, [0.0] * 10)
                sums[row] = [one + other for one, other in zip(before, values, strict=True)]
        loss.backward()
        naive.update(sums)
    found = collection.backend.weights()["odd.item"]
    torch.testing.assert_close(found, torch.tensor(naive.rows), atol=1e-5, rtol=1e-5)


def test_the_example_of_the_readme_runs(tmp_path: Any) -> None:
    (tmp_path / "schema.toml").write_text(
        'name = "clicks"\nuser = "user"\nitem = "item"\n[features]\nuser = {table = "ids", chunks = 2}\n'
        'item = {table = "ids", chunks = 2}\n'
        '[sequences.past]\nof = {history = "item"}\nmax_length = 20\npooling = "none"\n'
    )
    batch = Batch(
        features={
            "user": torch.tensor([5, 9]),
            "item": torch.tensor([3, 4]),
            "history": Jagged.from_lists([[1], [2, 3]]),
        }
    )
    schema = FeatureSchema.load(tmp_path / "schema.toml")
    collection = EmbeddingCollection(schema, {"ids": UnifiedTable(budget="25MiB", chunk_dim=16)}, backend="fused",
                                     optimizer=RowWiseAdagrad(lr=0.1))  # fmt: skip
    vectors = collection(batch)
    assert vectors["user"].shape == (2, 32)
    assert vectors["history"].values.shape == (3, 32)
    before = collection.backend.weights()["ids"].clone()
    vectors["user"].sum().backward()
    assert not torch.equal(collection.backend.weights()["ids"], before)


def test_several_batches_give_a_tuple_in_one_call() -> None:
    collection = collection_of("plain", SGD(lr=0.1))
    one, two = collection(small_batch(0), small_batch(1, size=4))
    assert torch.equal(flat(one), flat(collection(small_batch(0))))
    assert torch.equal(flat(two), flat(collection(small_batch(1, size=4))))


@BACKENDS
def test_lookup_takes_ids_of_any_shape(backend: str) -> None:
    collection = collection_of(backend, SGD(lr=0.1))
    ids = torch.tensor([[[1, 2], [3, 1], [0, 0]]])
    found = collection.lookup({"x": ("word", ids), "y": ("user", ids), "z": ("user", torch.tensor(4))})
    assert (found["x"].shape, found["y"].shape, found["z"].shape) == ((1, 3, 2, 12), (1, 3, 2, 16), (16,))
    assert torch.equal(found["y"][0, 1, 0], naive_vector(collection, "user", 3))


def test_order_of_features_changes_nothing() -> None:
    turned = SCHEMA.model_copy(update={"features": SCHEMA.features[::-1]})
    others = [
        EmbeddingCollection(Ids(schema), SPECS, backend="fused", optimizer=SGD(lr=0.1)) for schema in (SCHEMA, turned)
    ]
    for collection in others:
        train(collection, steps=2)
    for name, tensor in others[0].state().items():
        torch.testing.assert_close(others[1].state()[name], tensor, msg=name)


def test_initial_values_are_the_same_in_all_backends() -> None:
    plain, fused = collection_of("plain", seed=3), collection_of("fused", SGD(lr=0.1), seed=3)
    assert all(torch.equal(plain.state()[f"stores.{name}"], fused.state()[f"stores.{name}"]) for name in plain.stores)


@BACKENDS
def test_an_id_out_of_range_names_feature_and_id(backend: str) -> None:
    collection = collection_of(backend, SGD(lr=0.1))
    for wrong in (-1, SIZES["item"]):
        history = Jagged.from_lists([[0, wrong], [2]])
        with pytest.raises(ValueError, match=f"feature 'history': id {wrong} is outside 0..40"):
            collection(Batch(features={"item": torch.tensor([0, 1]), "history": history}))


@pytest.mark.parametrize(
    ("features", "says"),
    [
        ({"item": Jagged.from_lists([[1]])}, "feature 'item' is of kind 'id', got a Jagged"),
        ({"history": torch.tensor([1])}, "feature 'history' is of kind 'id_list', got a Tensor"),
        ({"itme": torch.tensor([1])}, "has no feature 'itme', did you mean 'item'"),
        ({"item": torch.tensor([1.0])}, "feature 'item': ids must be int64"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(features: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        collection_of("plain")(Batch(features=features))


def test_dense_features_are_not_touched_and_have_no_table() -> None:
    collection = collection_of("plain")
    assert collection(Batch(features={"price": torch.rand(3)})) == {}
    with pytest.raises(ValueError, match="feature 'price' reads no table"):
        collection.embedding_dim("price")


def test_widths_and_bytes_are_those_of_what_is_served() -> None:
    collection = collection_of("fused", Adagrad(lr=0.1))
    widths = {"user": 16, "item": 10, "history": 10, "tag": 30, "bias": 1, "word": 12, "query": 8}
    assert {name: collection.embedding_dim(name) for name in widths} == widths
    salts = 8 * (3 + 2)  # of word and query
    assert collection.num_bytes() == 4 * (23 * 16 + 41 * 10 + 5 * 30 + 7 * 1 + 19 * 4) + salts
    assert collection.num_bytes() == sum(tensor.nbytes for tensor in collection.freeze().state_dict().values())


@BACKENDS
def test_rows_gradients_are_clipped_one_by_one(backend: str) -> None:
    collection = collection_of(backend, SGD(lr=1.0))
    collection.max_row_norm = 1.0
    before = collection.backend.weights()["wide.user"].clone()
    vectors = collection.lookup({"": ("user", torch.tensor([1, 2, 2, 3]))})[""]
    grads = torch.zeros(4, 16)
    grads[0, 0], grads[1, 1], grads[2, 2] = 0.5, 30.0, 40.0
    vectors.backward(grads)
    moved = before - collection.backend.weights()["wide.user"]
    expected = torch.zeros(23, 16)
    expected[1, 0], expected[2, 1], expected[2, 2] = 0.5, 1.0, 1.0
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


def test_store_that_cannot_be_packed_is_named() -> None:
    specs = {name: spec.model_copy(update={"precision": "float16"}) for name, spec in SPECS.items()}
    collection = EmbeddingCollection(Ids(), specs, backend="plain")
    collection.backend.weights()["shared"][0, 0] = 1e6
    with pytest.raises(ValueError, match="store 'shared' cannot be packed to float16"):
        collection.freeze()


@BACKENDS
def test_frozen_form_is_plain_complete_and_apart(backend: str) -> None:
    collection = collection_of(backend, RowWiseAdagrad(lr=0.1))
    train(collection, steps=2)
    frozen, expected = collection.freeze(), flat(collection(small_batch(0))).detach()
    assert torch.equal(flat(frozen(small_batch(0))), expected)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    train(collection, steps=1)
    assert torch.equal(flat(frozen(small_batch(0))), expected)


@BACKENDS
def test_state_dict_carries_the_weights_to_any_backend(backend: str) -> None:
    collection, other = collection_of(backend, SGD(lr=0.1)), collection_of("plain", seed=1)
    other.load_state_dict(collection.state_dict())
    collection.load_state_dict(collection.freeze().state_dict())
    assert torch.equal(flat(other(small_batch(0))), flat(collection(small_batch(0))))


def test_state_dict_is_strict() -> None:
    collection = collection_of("plain")
    state = dict(collection.state_dict())
    for faulty, says in (
        ({name: value for name, value in state.items() if name != "stores.shared"}, "Missing.*stores.shared"),
        (state | {"stores.other": torch.zeros(1)}, "Unexpected.*stores.other"),
        (state | {"stores.shared": torch.zeros(20, 4)}, r"store 'shared' is \(19, 4\), got \(20, 4\)"),
    ):
        with pytest.raises(RuntimeError, match=f"(?s){says}"):
            collection.load_state_dict(faulty)


def test_state_is_strict() -> None:
    collection = collection_of("plain", Adam(lr=0.1))
    state = dict(collection.state())
    for faulty, says in (
        ({name: value for name, value in state.items() if name != "stores.shared"}, "'stores.shared' is missing"),
        (state | {"optimizer.shared.momentum": torch.zeros(1)}, "'optimizer.shared.momentum' is unknown"),
        (state | {"stores.shared": torch.zeros(20, 4)}, r"'stores.shared' has shape \(20, 4\), expected \(19, 4\)"),
    ):
        with pytest.raises(ValueError, match=f"state of the embedding tables does not fit: {says}"):
            collection.load_state(faulty)


def test_a_bare_schema_suffices_for_tables_that_need_no_cardinality() -> None:
    schema = parse_schema({"name": "s", "features": {"item": {"table": "ids"}}}, where="test")
    unified = EmbeddingCollection(schema, {"ids": UnifiedTable(num_embeddings=9)}, backend="plain")
    assert unified(Batch(features={"item": torch.tensor([2**60, -7])}))["item"].shape == (2, 16)
    with pytest.raises(ValueError, match=r"needs the number of ids of 'item': .* give the collection an Encoder"):
        EmbeddingCollection(schema, {"ids": DenseTable(embedding_dim=4)}, backend="plain")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backend": "fast"}, "backend 'fast' is none of 'plain', 'fused', 'sharded'"),
        ({"backend": "fused"}, "backend 'fused' updates its tables in backward and needs an optimizer"),
        ({"backend": "sharded", "optimizer": Adam(lr=0.1)}, "backend 'sharded' has no Adam"),
        ({"backend": "plain", "sharding": "row_wise"}, "sharding = 'row_wise' is for backend 'sharded'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EmbeddingCollection(Ids(), SPECS, **settings)


def test_collection_unpooled_lists_pool_to_the_pooled_ones() -> None:
    features = {"tags": {"kind": "id_list", "hashed": True, "table": "t", "pooling": "mean"}}
    schema = parse_schema({"name": "s", "features": features}, "s")
    specs = {"t": UnifiedTable(num_embeddings=9, chunk_dim=4)}
    collection = EmbeddingCollection(schema, specs, backend="plain")
    batch = Batch(features={"tags": Jagged(values=torch.tensor([5, 7, 5]), offsets=torch.tensor([0, 2, 2, 3]))})
    vectors = collection(batch, unpooled=("tags",))["tags"]
    assert isinstance(vectors, Jagged)
    assert vectors.values.shape == (3, 4)
    torch.testing.assert_close(pool(vectors, "mean"), collection(batch)["tags"])

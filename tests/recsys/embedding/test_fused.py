"""The fused backend equals the plain one: forward, steps, state; and says so when it cannot."""

import sys
from copy import deepcopy

import pytest
import torch

from features.batch import Batch
from features.spec import parse_schema
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.fused import MAX_ROWS, FusedStores, op_groups
from recsys.embedding.optimizers import SGD, Adam, RowWiseAdagrad, TableOptimizer
from recsys.embedding.store import Normal, Store
from recsys.embedding.stores import PlainStores, initial_weights
from tests.recsys.embedding.small_schema import OPTIMIZERS, Ids, collection_of, flat, small_batch, train

BY_RULE = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)


def test_forward_equals_plain() -> None:
    plain, fused = collection_of("plain", OPTIMIZERS[0]), collection_of("fused", OPTIMIZERS[0])
    assert torch.equal(flat(fused(small_batch(0))), flat(plain(small_batch(0))))
    with torch.no_grad():
        assert torch.equal(flat(fused(small_batch(0))), flat(plain(small_batch(0))))


@BY_RULE
def test_five_steps_equal_plain(optimizer: TableOptimizer) -> None:
    plain, fused = collection_of("plain", optimizer), collection_of("fused", optimizer)
    for collection in (plain, fused):
        train(collection, steps=5)
    assert plain.state().keys() == fused.state().keys()
    for name, tensor in plain.state().items():
        torch.testing.assert_close(fused.state()[name], tensor, atol=2e-6, rtol=2e-6, msg=name)


@pytest.mark.parametrize("width", [1, 3, 4, 10, 16, 30])
@BY_RULE
def test_each_width_equals_plain(optimizer: TableOptimizer, width: int) -> None:
    stores = [
        Store(name="a", num_embeddings=11, embedding_dim=width, init=Normal(std=1.0)),
        Store(name="b", num_embeddings=5, embedding_dim=width, init=Normal(std=1.0)),
    ]
    plain = PlainStores(stores, initial_weights(stores, seed=0), optimizer)
    fused = FusedStores(stores, optimizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 6, 7):
        requests = {
            "b": [torch.randint(5, (count, 2), generator=generator), torch.randint(5, (3, 1), generator=generator)],
            "a": [torch.randint(11, (count, 1), generator=generator)],
        }
        for backend in (plain, fused):
            found = backend.lookup(requests)
            sum(part.square().sum() for parts in found.values() for part in parts).backward()  # type: ignore[union-attr]
    for name, tensor in plain.state().items():
        torch.testing.assert_close(fused.state()[name], tensor, atol=2e-6, rtol=2e-6, msg=name)


def test_padding_stays_zero_and_is_not_served() -> None:
    fused = collection_of("fused", RowWiseAdagrad(lr=0.5))
    train(fused, steps=3)
    for op in fused.backend._ops:  # type: ignore[union-attr]
        assert not op.weight[:, op.dim :].any()
    plain = collection_of("plain", RowWiseAdagrad(lr=0.5))
    salts = 8 * (3 + 2)
    assert fused.num_bytes() == plain.num_bytes() == plain.training_bytes() + salts
    padding = {"wide.user": 0, "odd.item": 2, "thirty.tag": 2, "single.bias": 3, "shared": 0}
    extra = sum(4 * padding[name] * store.num_embeddings for name, store in fused.stores.items())
    assert fused.training_bytes() + salts == fused.num_bytes() + extra
    assert fused.optimizer_bytes() == plain.optimizer_bytes()


def test_a_step_without_some_stores_leaves_them_alone() -> None:
    fused = collection_of("fused", SGD(lr=0.5))
    before = {name: weight.clone() for name, weight in fused.backend.weights().items()}
    fused(Batch(features={"user": torch.tensor([1, 1, 2])}))["user"].sum().backward()
    changed = {name for name, weight in fused.backend.weights().items() if not torch.equal(weight, before[name])}
    assert changed == {"wide.user"}
    assert (fused.backend.weights()["wide.user"] != before["wide.user"]).any(1).nonzero().flatten().tolist() == [1, 2]


def test_vectors_without_a_gradient_take_no_part_in_the_step() -> None:
    plain, fused = collection_of("plain", OPTIMIZERS[2]), collection_of("fused", OPTIMIZERS[2])
    for collection in (plain, fused):
        collection(small_batch(0))["history"].values.square().sum().backward()
    for name, tensor in plain.state().items():
        torch.testing.assert_close(fused.state()[name], tensor, msg=name)


def test_several_batches_are_one_step() -> None:
    plain, fused = collection_of("plain", OPTIMIZERS[1]), collection_of("fused", OPTIMIZERS[1])
    for collection in (plain, fused):
        one, two = collection(small_batch(0), small_batch(1))
        torch.cat([flat(one), flat(two)]).square().sum().backward()
    for name, tensor in plain.state().items():
        torch.testing.assert_close(fused.state()[name], tensor, atol=1e-6, rtol=1e-6, msg=name)


def test_two_lookups_of_one_backward_are_refused() -> None:
    fused = collection_of("fused", SGD(lr=0.1))
    loss = flat(fused(small_batch(0))).sum() + flat(fused(small_batch(1))).sum()
    with pytest.raises(RuntimeError, match=r"looked up twice before backward\(\).*collection\(batch, other\)"):
        loss.backward()


def test_two_lookups_of_one_backward_may_read_different_stores() -> None:
    schema = parse_schema({"name": "s", "features": {"a": {"table": "ids"}, "b": {"table": "ids"}}}, where="test")
    ids, specs = Ids(schema, {"a": 5, "b": 5}), {"ids": DenseTable(embedding_dim=6)}
    pair = [EmbeddingCollection(ids, specs, backend=name, optimizer=OPTIMIZERS[2]) for name in ("plain", "fused")]
    for collection in pair:
        first, second = (collection.lookup({"": (name, torch.tensor([1, 1, 4]))})[""] for name in "ab")
        (first * second).sum().backward()
    torch.testing.assert_close(pair[1].state(), pair[0].state())


def test_lookups_without_backward_do_not_count() -> None:
    fused, plain = collection_of("fused", SGD(lr=0.1)), collection_of("plain", SGD(lr=0.1))
    for collection in (fused, plain):
        vectors = flat(collection(small_batch(0)))
        collection(small_batch(1))
        with torch.no_grad():
            collection(small_batch(2))
        vectors.sum().backward()
        train(collection, steps=1)
    torch.testing.assert_close(fused.state(), plain.state())


def test_empty_requests_are_served() -> None:
    fused = collection_of("fused", SGD(lr=0.1))
    nothing = torch.empty(0, dtype=torch.int64)
    assert fused.lookup({"": ("user", nothing)})[""].shape == (0, 16)
    assert fused.lookup({}) == {}
    both = fused.lookup({1: ("user", nothing), 2: ("user", torch.tensor([[3, 4]]))})
    assert (both[1].shape, both[2].shape) == ((0, 16), (1, 2, 16))
    both[2].sum().backward()


def test_state_moves_between_backends_bit_for_bit() -> None:
    fused, other = collection_of("fused", OPTIMIZERS[2]), collection_of("plain", OPTIMIZERS[2], seed=1)
    train(fused, steps=2)
    other.load_state_dict(fused.state_dict())
    other.load_state(fused.state())
    back = collection_of("fused", OPTIMIZERS[2], seed=2)
    back.load_state_dict(other.state_dict())
    back.load_state(other.state())
    for collection in (fused, back):
        train(collection, steps=2, first=2)
    for name, tensor in fused.state().items():
        assert torch.equal(back.state()[name], tensor), name


def test_a_deep_copy_trains_on_by_itself() -> None:
    fused = collection_of("fused", OPTIMIZERS[2])
    train(fused, steps=1)
    copy, before = deepcopy(fused), {name: tensor.clone() for name, tensor in fused.state().items()}
    train(copy, steps=1, first=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state().items())
    train(fused, steps=1, first=1)
    assert all(torch.equal(tensor, copy.state()[name]) for name, tensor in fused.state().items())


def test_nothing_of_it_shows_in_parameters() -> None:
    fused = collection_of("fused", SGD(lr=0.1))
    assert list(fused.parameters()) == []
    salts = {"tables.shared/word.salts", "tables.shared/query.salts"}
    assert set(fused.state_dict()) == {f"stores.{name}" for name in fused.stores} | salts


def test_moving_it_elsewhere_is_refused() -> None:
    fused = collection_of("fused", SGD(lr=0.1)).to("cpu")
    with pytest.raises(ValueError, match=r"backend 'fused' keeps float32 on CPU or GPU, not torch.float64 on cpu"):
        fused.double()


def test_many_tables_of_one_width_are_one_op() -> None:
    schema = parse_schema({"name": "s", "features": {f"f{n}": {"table": "ids"} for n in range(5)}}, where="test")
    sizes = {f"f{n}": 3 + n for n in range(5)}
    collection = EmbeddingCollection(
        Ids(schema, sizes), {"ids": DenseTable(embedding_dim=6)}, backend="fused", optimizer=SGD(lr=0.1)
    )
    assert len(collection.backend._ops) == 1  # type: ignore[arg-type]


def test_op_groups_keep_rows_within_31_bits() -> None:
    sizes = {"a": MAX_ROWS - 5, "b": 10, "c": 5}
    stores = [Store(name=name, num_embeddings=count, embedding_dim=4) for name, count in sizes.items()]
    other = Store(name="d", num_embeddings=1, embedding_dim=3)
    assert [[store.name for store in group] for group in op_groups([*stores, other])] == [["a", "c"], ["b"], ["d"]]
    with pytest.raises(ValueError, match="store 'big' has"):
        op_groups([Store(name="big", num_embeddings=MAX_ROWS + 1, embedding_dim=4)])


def test_adam_is_refused() -> None:
    with pytest.raises(ValueError, match="backend 'fused' has no Adam"):
        collection_of("fused", Adam(lr=0.1))
    with pytest.raises(ValueError, match="fbgemm has no Adam"):
        FusedStores([Store(name="a", num_embeddings=2, embedding_dim=4)], Adam(lr=0.1), seed=0)


def test_absence_of_fbgemm_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "recsys.embedding.fused")
    monkeypatch.setitem(sys.modules, "fbgemm_gpu.split_table_batched_embeddings_ops_training", None)
    with pytest.raises(ValueError, match=r"backend 'fused' cannot be used here, .*fbgemm-gpu-cpu\) is not installed"):
        collection_of("fused", SGD(lr=0.1))

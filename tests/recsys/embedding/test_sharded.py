"""The sharded backend on two ranks equals the plain one in one process: forward, steps, state, at any placement."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Shard

from features.batch import Batch, Jagged, offsets_of
from features.spec import FeatureSchema, parse_schema
from recsys import distributed
from recsys.embedding import sharded
from recsys.embedding.collection import EmbeddingCollection, Sharding
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from recsys.embedding.planner import Workload, plan
from recsys.embedding.step_time import Cluster
from recsys.embedding.store import Constant, Normal, Store
from recsys.embedding.table import TableSpec
from recsys.embedding.unified import UnifiedTable
from recsys.training.checkpoint import Checkpoints
from tests.recsys.two_ranks import free_port, run_on_two_ranks

SIZES = {"user": 23, "item": 41, "tag": 3, "bias": 41, "old": 9}
SCHEMA = parse_schema(
    {
        "name": "small", "user": "user", "item": "item",
        "features": {
            "user": {"table": "wide", "entity": "user"},
            "item": {"table": "odd", "entity": "item"},
            "tag": {"table": "thirty", "entity": "item", "kind": "id_list", "pooling": "sum"},
            "bias": {"table": "single"},
            "old": {"table": "wide"},
            "word": {"table": "ids", "hashed": True, "chunks": 3},
            "query": {"table": "ids", "hashed": True, "kind": "id_list", "chunks": 3},
        },
        "sequences": {"history": {"of": {"history": "item"}, "max_length": 20, "pooling": "none"}},
    },
    where="test",
)  # fmt: skip
SPECS: dict[str, TableSpec] = {
    "wide": DenseTable(embedding_dim=16),
    "odd": DenseTable(embedding_dim=10, init=Normal(std=0.5)),
    "thirty": DenseTable(embedding_dim=30),
    "single": DenseTable(embedding_dim=1, init=Constant(value=0.25)),
    "ids": UnifiedTable(num_embeddings=19, chunk_dim=10),
}
MIXED = {"odd.item": "row_wise", "ids": "row_wise", "single.bias": "row_wise"}
SHARDINGS: dict[str, Sharding] = {"rows": "row_wise", "tables": "table_wise", "mixed": MIXED}
COLUMNS: dict[str, Sharding] = {"columns": "column_wise", "some": MIXED | {"thirty.tag": "column_wise"}}
ELEMENT_WISE: list[TableOptimizer] = [SGD(lr=0.3), Adagrad(lr=0.2)]
OPTIMIZERS: list[TableOptimizer] = [*ELEMENT_WISE, RowWiseAdagrad(lr=0.2)]


class Ids:
    """An encoder, as far as a collection asks one."""

    schema: FeatureSchema = SCHEMA

    def num_embeddings(self, feature: str) -> int | None:
        return SIZES.get("item" if feature == "history" else feature)

    def counts(self, feature: str) -> Tensor:
        return torch.ones(self.num_embeddings(feature) or 0, dtype=torch.int64)


def collection(backend: str, optimizer: TableOptimizer, sharding: Sharding | None = None) -> EmbeddingCollection:
    return EmbeddingCollection(Ids(), SPECS, backend=backend, optimizer=optimizer, seed=3, sharding=sharding)  # type: ignore[arg-type]


def global_batches(sizes: tuple[int, ...] = (7, 5, 1, 8, 2)) -> Iterator[Batch]:
    """Odd sizes and a batch smaller than W; hot rows; ragged lists, some empty, all empty in the third batch."""
    generator = torch.Generator().manual_seed(11)
    for number, size in enumerate(sizes):
        longest = 0 if number == 2 else 4

        def ids(limit: int, count: int) -> Tensor:
            return torch.randint(0, max(limit // 2, 2), (count,), generator=generator)

        def lists(limit: int, size: int = size, longest: int = longest) -> Jagged:
            lengths = torch.randint(0, longest + 1, (size,), generator=generator)
            offsets = offsets_of(lengths)
            return Jagged(values=ids(limit, int(offsets[-1])), offsets=offsets)

        features: dict[str, Tensor | Jagged] = {
            name: ids(SIZES[name], size) for name in ("user", "item", "bias", "old")
        }
        features |= {"tag": lists(3), "history": lists(41), "query": lists(2**40), "word": ids(2**40, size)}
        weights = torch.rand(size, generator=generator) + 0.5
        yield Batch(features=features, weights=weights, row_ids=torch.arange(size))


def ranks_part(batch: Batch) -> Batch:
    """Rows r, r + W, ...; a rank without any takes part with the first row at weight 0, as the loader does."""
    rows = torch.arange(len(batch))[distributed.rank() :: distributed.world_size()]
    if len(rows):
        return batch.select(rows)
    part = batch.select(torch.tensor([0]))
    return Batch(features=part.features, weights=torch.zeros(1), row_ids=part.row_ids)


def row_scores(vectors: Mapping[str, Tensor | Jagged], row_ids: Tensor) -> Tensor:
    """A score per row that reads every vector, each column with a factor of its own."""
    total = torch.zeros(len(row_ids))
    for name in sorted(vectors):
        found = vectors[name]
        flat = found if isinstance(found, Tensor) else pooled(found)
        factors = torch.linspace(-1.0, 1.5, flat.shape[1])
        total = total + (flat.sin() * factors).mean(1) * (1 + row_ids % 3)
    return total


def pooled(found: Jagged) -> Tensor:
    zeros = found.values.new_zeros(found.num_rows, found.values.shape[1])
    return zeros.index_add(0, found.row_of_value, found.values)


def train_step(model: EmbeddingCollection, batch: Batch) -> float:
    """As the trainer does it; returns the global loss."""
    assert batch.row_ids is not None
    weights = batch.row_weights()
    loss = (row_scores(model(batch), batch.row_ids).square() * weights).sum()
    total, value = distributed.all_reduce_sum(torch.stack([weights.sum(), loss.detach()])).unbind()
    (loss * distributed.world_size() / total).backward()
    return (value / total).item()


def close(found: Tensor | float, expected: Tensor | float) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, on every rank: the parts of the ranks of its mesh, in their order."""
    if not isinstance(tensor, DTensor):
        return tensor
    (placement,) = tensor.placements
    assert isinstance(placement, Shard)
    parts = distributed.gather_objects(tensor.to_local().clone())
    return torch.cat([parts[rank] for rank in tensor.device_mesh.mesh.tolist()], dim=placement.dim)


def shardings_of(optimizer: TableOptimizer) -> dict[str, Sharding]:
    """Every sharding that trains rightly with it."""
    return SHARDINGS | COLUMNS if optimizer in ELEMENT_WISE else SHARDINGS


def whole_state(model: EmbeddingCollection) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in model.state().items()}


# --- without ranks ---


def test_sharded_without_a_process_group_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"needs a process group: start with `torchrun .* backend 'fused'"):
        collection("sharded", SGD(lr=0.1))


def test_sharded_refuses_adam() -> None:
    with pytest.raises(ValueError, match="Adam; use SGD, Adagrad or RowWiseAdagrad"):
        collection("sharded", Adam(lr=0.1))


# --- one rank ---


def test_sharded_equals_plain_on_one_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with distributed.joined_ranks():
        check_training()
        check_frozen()
        check_checkpoints(tmp_path)


# --- two ranks ---


def test_sharded_equals_plain_on_two_ranks(tmp_path: Path) -> None:
    run_on_two_ranks(check_everything, str(tmp_path), timeout_s=300)
    check_states_of_two_ranks(tmp_path)


@pytest.mark.slow
def test_every_placement_loads_every_other(tmp_path: Path) -> None:
    run_on_two_ranks(check_every_pair, str(tmp_path), timeout_s=600)
    check_states_of_two_ranks(tmp_path)


def check_every_pair(folder: str) -> None:
    for optimizer in (RowWiseAdagrad(lr=0.2), *ELEMENT_WISE):
        kinds = list(shardings_of(optimizer))
        check_pairs(Path(folder), optimizer, dict.fromkeys(kinds, kinds))


def check_everything(folder: str) -> None:
    checks: list[Callable[[], None]] = [
        check_initial_values, check_training, check_column_split, check_bags_of_one_row, check_lookup_without_gradient,
        check_unread_vectors, check_second_lookup, check_sub_batches, check_row_norms, check_bytes, check_frozen,
        check_refusals, check_automatic, check_planned_bytes,
    ]  # fmt: skip
    for check in checks:
        check()
    check_checkpoints(Path(folder))
    check_torch_checkpoints(Path(folder))
    check_loading_one_process(Path(folder))


def check_initial_values() -> None:
    expected = collection("plain", ELEMENT_WISE[1]).state()
    for sharding in shardings_of(ELEMENT_WISE[1]).values():
        found = whole_state(collection("sharded", ELEMENT_WISE[1], sharding))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def check_training() -> None:
    """Losses and all state after five steps of each optimizer, at each sharding."""
    for optimizer in OPTIMIZERS:
        plain = collection("plain", optimizer)
        losses = [global_loss(plain, batch) for batch in global_batches()]
        for sharding in shardings_of(optimizer).values():
            model = collection("sharded", optimizer, sharding)
            found = [train_step(model, ranks_part(batch)) for batch in global_batches()]
            close(torch.tensor(found), torch.tensor(losses))
            for name, tensor in whole_state(model).items():
                close(tensor, plain.state()[name])


def check_bags_of_one_row() -> None:
    """The form in which a GPU is asked for row-wise stores."""
    plain = collection("plain", RowWiseAdagrad(lr=0.2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded._Rows, "num_bags", sharded._Bags.num_bags)
        model = trained("row_wise")
    for batch in global_batches():
        global_loss(plain, batch)
    for name, tensor in whole_state(model).items():
        close(tensor, plain.state()[name])
    check_padding(model)


def check_padding(model: EmbeddingCollection) -> None:
    assert isinstance(model.backend, sharded.ShardedStores)
    for exchange in model.backend._exchanges:
        for store in exchange.stores:
            _, columns = exchange.placements[store.name].part_of(store, distributed.rank())
            assert not exchange.weights[store.name][:, len(columns) :].any()


def check_column_split() -> None:
    """Every store of more than 4 columns really lies on both ranks; trained, its padding is still zero."""
    model = trained("column_wise", ELEMENT_WISE[1])
    for name, tensor in model.state().items():
        dim = model.stores[name.split(".", 1)[1].removesuffix(".momentum")].embedding_dim
        assert isinstance(tensor, DTensor)
        assert tensor.device_mesh.size() == (2 if dim > 4 else 1)
        if tensor.device_mesh.size() == 2:
            assert tensor.to_local().shape[1] == (-(-dim // 2), dim // 2)[distributed.rank()]
    check_padding(model)


def global_loss(model: EmbeddingCollection, batch: Batch) -> float:
    """The step of one process with the whole batch."""
    assert batch.row_ids is not None
    weights = batch.row_weights()
    loss = (row_scores(model(batch), batch.row_ids).square() * weights).sum() / weights.sum()
    loss.backward()
    return loss.item()


def check_lookup_without_gradient() -> None:
    plain = collection("plain", SGD(lr=0.1))
    batch = ranks_part(next(global_batches()))
    for sharding in SHARDINGS.values():
        with torch.no_grad():
            found, expected = collection("sharded", SGD(lr=0.1), sharding)(batch), plain(batch)
        for name, vectors in expected.items():
            assert torch.equal(values(found[name]), values(vectors)), name


def values(found: Tensor | Jagged) -> Tensor:
    return found.values if isinstance(found, Jagged) else found


def check_unread_vectors() -> None:
    """A rank whose loss reads one feature only takes part in the exchanges of all; what nobody reads stays."""
    for sharding in SHARDINGS.values():
        model = collection("sharded", RowWiseAdagrad(lr=0.2), sharding)
        before = whole_state(model)
        vectors = model(next(global_batches()))
        read = vectors["user"] if distributed.rank() == 0 else pooled(vectors["history"])
        read.sum().backward()
        after = whole_state(model)
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        assert changed == {f"{kind}.{store}" for kind, store in STATES_READ}


STATES_READ = [
    ("stores", "wide.user"), ("optimizer", "wide.user.momentum"),
    ("stores", "odd.item"), ("optimizer", "odd.item.momentum"),
]  # fmt: skip


def check_second_lookup() -> None:
    """Two lookups before one backward are refused on all ranks; the model then goes on."""
    batch = next(global_batches())
    model = collection("sharded", SGD(lr=0.1), "table_wise")
    both = model(batch)["user"].sum() + model(batch)["user"].sum()
    with pytest.raises(RuntimeError, match="looked up twice before backward"):
        both.backward()
    model(batch)["user"].sum().backward()


def check_sub_batches() -> None:
    """One call for several batches, with some features only, is one step; equal to plain."""
    for sharding in SHARDINGS.values():
        plain, model = collection("plain", Adagrad(lr=0.1)), collection("sharded", Adagrad(lr=0.1), sharding)
        first, second = (part for part in global_batches((6, 4)))
        users = Batch(features={"user": first["user"]})
        items = Batch(features={"item": second["item"], "history": second["history"]})
        for kept, scale in ((plain, 1.0), (model, 1.0)):
            left, right = kept(users, items)
            (left["user"].square().sum() + right["item"].sum() * scale + pooled(right["history"]).sum()).backward()
        for name, tensor in whole_state(model).items():
            close(tensor, plain.state()[name])


def check_row_norms() -> None:
    """Gradients of rows are clipped at the norm that one process sees, not at that of a rank's W-fold loss."""
    batch = next(global_batches())
    plain = collection("plain", SGD(lr=1.0))
    unclipped = {name: tensor.clone() for name, tensor in plain.state().items()}
    plain.max_row_norm = 1e-3
    global_loss(plain, batch)
    for sharding in SHARDINGS.values():
        model = collection("sharded", SGD(lr=1.0), sharding)
        model.max_row_norm = 1e-3
        train_step(model, ranks_part(batch))
        for name, tensor in whole_state(model).items():
            close(tensor, plain.state()[name])
            assert 0 < (tensor - unclipped[name]).abs().max() < 0.1


def check_bytes() -> None:
    model, plain = collection("sharded", Adagrad(lr=0.1), "row_wise"), collection("plain", Adagrad(lr=0.1))
    assert model.num_bytes() == plain.num_bytes()
    assert sum(distributed.gather_objects(model.training_bytes())) > plain.training_bytes()
    assert model.optimizer_bytes() == plain.optimizer_bytes()
    assert not list(model.parameters())


def check_planned_bytes() -> None:
    """What a plan says of each rank is what lies there."""
    optimizer = ELEMENT_WISE[1]
    cluster = Cluster(world_size=2, ranks_per_host=2)
    for sharding in ("column_wise", MIXED):
        model = collection("sharded", optimizer, sharding)
        assert isinstance(model.backend, sharded.ShardedStores)
        workload = Workload(stores=list(model.stores.values()), optimizer=optimizer, accesses={}, batch_size=1)
        planned = plan(workload, sharding, cluster).ranks[distributed.rank()]
        states = [state for each in model.backend._exchanges for held in each.states.values() for state in held]
        assert planned.weights == model.training_bytes()
        assert planned.state == sum(state.nbytes for state in states)


def check_frozen() -> None:
    batch = next(global_batches())
    for sharding in shardings_of(ELEMENT_WISE[0]).values():
        model = collection("sharded", ELEMENT_WISE[0], sharding)
        train_step(model, ranks_part(batch))
        frozen = model.freeze()
        with torch.no_grad():
            expected = model(batch)
        for name, vectors in frozen(batch).items():
            assert torch.equal(values(vectors), values(expected[name])), name


def check_refusals() -> None:
    with pytest.raises(ValueError, match="sharding names store 'nope'"):
        collection("sharded", SGD(lr=0.1), {"nope": "row_wise"})
    with pytest.raises(ValueError, match=r"'wide\.user' is 'data_parallel'"):
        collection("sharded", SGD(lr=0.1), "data_parallel")
    with pytest.raises(ValueError, match=r"'wide\.user' is 'column_wise' under RowWiseAdagrad: .* 5\.7 times off"):
        collection("sharded", RowWiseAdagrad(lr=0.1), {"wide.user": "column_wise"})
    rows, tables = (collection("sharded", SGD(lr=0.1), kind) for kind in ("row_wise", "table_wise"))
    with pytest.raises(ValueError, match=r"'stores\.wide\.user' is spread otherwise over the ranks"):
        rows.load_state(tables.state())


def check_checkpoints(folder: Path) -> None:
    """Each of a few placements loads itself and the next."""
    for optimizer, kinds in (
        (RowWiseAdagrad(lr=0.2), ["rows", "tables", "mixed"]),
        (ELEMENT_WISE[1], ["tables", "columns", "some"]),
    ):
        following = [*kinds[1:], kinds[0]]
        check_pairs(folder, optimizer, {kind: [kind, after] for kind, after in zip(kinds, following, strict=True)})


def check_automatic() -> None:
    """Said nothing, what is more than half of all bytes lies on both ranks, and the rest on one each."""
    stores = [Store(name=name, num_embeddings=n, embedding_dim=4) for name, n in (("a", 90), ("b", 9), ("c", 8))]
    found = sharded.ShardedStores(stores, SGD(lr=0.1), seed=0).placements
    assert {name: placement.ranks for name, placement in found.items()} == {"a": (0, 1), "b": (0,), "c": (1,)}


def check_pairs(folder: Path, optimizer: TableOptimizer, targets: Mapping[str, Sequence[str]]) -> None:
    """Save after five steps: others load the same bits and take the same step; the same one goes on bit for bit."""
    shardings = shardings_of(optimizer)
    for kind, others in targets.items():
        model = trained(shardings[kind], optimizer)
        saved = whole_state(model)
        checkpoints = Checkpoints(folder / type(optimizer).__name__ / kind)
        checkpoints.save(model.state(), {})
        loss = train_step(model, ranks_part(next(global_batches())))
        for other in others:
            fresh = collection("sharded", optimizer, shardings[other])
            fresh.load_state(checkpoints.load("last", into=fresh.state()))
            check_same_bits(whole_state(fresh), saved)
            close(train_step(fresh, ranks_part(next(global_batches()))), loss)
            if other == kind:
                check_same_bits(whole_state(fresh), whole_state(model))


def trained(sharding: Sharding, optimizer: TableOptimizer | None = None) -> EmbeddingCollection:
    model = collection("sharded", optimizer or RowWiseAdagrad(lr=0.2), sharding)
    for batch in global_batches():
        train_step(model, ranks_part(batch))
    return model


def check_torch_checkpoints(folder: Path) -> None:
    """torch.distributed.checkpoint saves the state and loads it at another placement, for users' own loops."""
    model, fresh = trained("row_wise"), collection("sharded", RowWiseAdagrad(lr=0.2), "table_wise")
    save(model.state(), storage_writer=HuggingFaceStorageWriter(str(folder / "torch"), save_distributed=True))
    load(fresh.state(), storage_reader=HuggingFaceStorageReader(str(folder / "torch")))
    check_same_bits(whole_state(fresh), whole_state(model))


def check_loading_one_process(folder: Path) -> None:
    """What one process saved, loaded in place and as whole tensors."""
    plain = collection("plain", ELEMENT_WISE[1])
    for batch in global_batches():
        global_loss(plain, batch)
    Checkpoints(folder / "plain").save(plain.state(), {})
    for sharding in (MIXED, COLUMNS["some"]):
        model = collection("sharded", ELEMENT_WISE[1], sharding)
        Checkpoints(folder / "plain").load("last", into=model.state())
        check_same_bits(whole_state(model), plain.state())
        model = collection("sharded", ELEMENT_WISE[1], sharding)
        model.load_state(plain.state())
        check_same_bits(whole_state(model), plain.state())
        model = collection("sharded", ELEMENT_WISE[1], sharding)
        model.load_state_dict(plain.state_dict())
        check_same_bits({name: whole(tensor) for name, tensor in model.state_dict().items()}, plain.state_dict())


def check_same_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def check_states_of_two_ranks(folder: Path) -> None:
    """In one process: plain and fused load what two ranks saved, and both take the same next step."""
    optimizers = {type(optimizer).__name__: optimizer for optimizer in OPTIMIZERS}
    found = [path for name in optimizers for path in sorted((folder / name).glob("*"))]
    assert len(found) >= 6
    for path in found:
        saved = Checkpoints(path).load("last")
        losses = []
        for backend in ("plain", "fused"):
            model = collection(backend, optimizers[path.parent.name])
            model.load_state(saved)
            check_same_bits(model.state(), saved)
            losses.append(global_loss(model, next(global_batches())))
        close(losses[0], losses[1])

"""The laws that every table obeys, as functions of its specification; `verdicts` runs them all.

Each builds the specification over a small schema (one id per row, lists of both poolings, scores, two features over one
vocabulary), in the plain backend, and raises `AssertionError` saying what was broken. A specification that cannot hold
such a schema at all (a budget too small) raises its own ValueError. Whether the fast backends agree is a matter of the
parity tests, and whether a table is good for a model of none.

Shapes: B rows, N flat ids, P accesses of a store per id, D width of a vector.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from features.batch import Jagged
from recsys.compression.adaptive import AdaptTable
from recsys.compression.codebook import CodebookTable
from recsys.compression.dedup import DedupTable
from recsys.compression.factorized import CompositionalTable
from recsys.compression.hashing import HashTable
from recsys.compression.mixed_dim import MixedDimTable
from recsys.compression.pruning import PrunedTable
from recsys.compression.robe import RobeTable
from recsys.compression.supernet import SearchedTable
from recsys.compression.tensor_train import TensorTrainTable
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.frozen import describe_tables, rebuild_tables
from recsys.embedding.layout import readers_by_table
from recsys.embedding.optimizers import SGD, RowWiseAdagrad
from recsys.embedding.precision import PRECISIONS, unpack
from recsys.embedding.table import EmbeddingTable, TableSpec
from recsys.embedding.unified import UnifiedTable
from recsys.laws.small_schema import (
    FEATURES,
    NUM_ROWS,
    at_precision,
    build,
    encoder,
    fixed,
    flat,
    ids_of,
    names_of,
    small_batch,
    tables_and_ids,
    train,
    vectors_of,
)

Law = Callable[[TableSpec], None]

CASES: Mapping[str, TableSpec] = {
    "dense": DenseTable(embedding_dim=6),
    "unified": UnifiedTable(num_embeddings=50, chunk_dim=6),
    "unified, a share": UnifiedTable(budget="30%", chunk_dim=3, chunks=2),
    "unified, not multiplexed": UnifiedTable(budget="2kB", chunk_dim=6, multiplexed=False),
    "unified, int4": UnifiedTable(budget="30%", chunk_dim=3, chunks=2, precision="int4"),
    "hash": HashTable(embedding_dim=6, budget="30%"),
    "compo": CompositionalTable(embedding_dim=6, budget="60%"),
    "compo, sum": CompositionalTable(embedding_dim=6, budget="60%", operation="sum"),
    "ttrec": TensorTrainTable(embedding_dim=6, budget="40%"),
    "ttrec, more rows": TensorTrainTable(embedding_dim=6, budget="80%", max_rank=2),
    "robe": RobeTable(embedding_dim=16, budget="30%"),
    "robe, three blocks": RobeTable(embedding_dim=6, budget="30%", num_chunks=3),
    "adapt": AdaptTable(embedding_dim=6, budget="30%"),
    "mde": MixedDimTable(embedding_dim=6, budget="50%"),
    "dedup": DedupTable(embedding_dim=6, budget="50%"),
    "dedup, single rows": DedupTable(embedding_dim=6, block_rows=1),
    "mgqe": CodebookTable(embedding_dim=6, parts=2, num_centroids=8, rare_centroids=4),
    "mgqe, a share": CodebookTable(embedding_dim=6, budget="35%", num_centroids=8, rare_centroids=2, frequent=0.3),
    "deeplight": PrunedTable(embedding_dim=6, budget="50%"),
    "deeplight, a small share": PrunedTable(embedding_dim=6, budget="15%", precision="float16"),
    "optembed": SearchedTable(embedding_dim=6),
    "optembed, a share": SearchedTable(embedding_dim=6, budget="40%"),
}


def verdicts(spec: TableSpec) -> dict[str, str]:
    """The name of every law -> what of it was broken, "" where it holds."""
    found = {}
    for name, law in LAWS.items():
        try:
            law(spec)
            found[name] = ""
        except AssertionError as broken:
            found[name] = str(broken)
        except (ArithmeticError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


# --- what a table is ---


def rows_are_a_function_of_the_id(spec: TableSpec) -> None:
    """`rows` gives int64 [N, P] inside the stores, for each id the same alone as among others."""
    for table, ids in tables_and_ids(build(spec)):
        sizes = {store.name: store.num_embeddings for store in table.stores}
        _require(len(sizes) == len(table.stores), f"table {table.name!r} declares a store twice")
        found = table.rows(ids)
        _require(set(found) <= set(sizes), f"table {table.name!r} reads {sorted(found)}, declared {sorted(sizes)}")
        for store, rows in found.items():
            shaped = rows.dtype == torch.int64 and rows.dim() == 2 and len(rows) == len(ids)
            _require(shaped, f"rows of {store!r} must be int64 [N, P], are {rows.dtype} {tuple(rows.shape)}")
            inside = not len(ids) or (int(rows.min()) >= 0 and int(rows.max()) < sizes[store])
            _require(inside, f"table {table.name!r} reads rows outside store {store!r} of {sizes[store]} rows")
            alone = torch.cat([table.rows(one)[store] for one in ids.split(1)])
            _require(torch.equal(rows, alone), f"rows of {store!r} depend on the other ids of the batch")


def vectors_are_the_definition(spec: TableSpec) -> None:
    """A lookup gives `forward` of the tables over the stores, [N, D] of the width that they state; none for no ids."""
    collection = build(spec)
    weights = collection.backend.weights()
    for feature in names_of(collection):
        table = collection.table(feature)
        ids = ids_of(collection, feature)
        for wanted in (ids, ids[:1], ids[:0], ids.view(-1, 1)):
            found = collection.lookup({"it": (feature, wanted)})["it"]
            shape = (*wanted.shape, collection.embedding_dim(feature))
            _require(found.shape == shape, f"vectors of {feature!r} are {tuple(found.shape)}, expected {shape}")
            _same(found.flatten(0, -2), table(wanted.flatten(), weights), f"of {feature!r}, looked up and defined,")


def same_id_same_vector(spec: TableSpec) -> None:
    """In evaluation the vector of an id depends on nothing else: neither place, nor other ids, nor who asks."""
    collection = build(spec).eval()
    for feature in names_of(collection):
        ids = ids_of(collection, feature)
        found = collection.lookup({"there": (feature, ids), "back": (feature, ids.flip(0)), "one": (feature, ids[:1])})
        _same(found["there"], found["back"].flip(0), f"of {feature!r} in another order")
        _same(found["there"][:1], found["one"], f"of {feature!r} alone")
        _same(found["there"], collection.lookup({"": (feature, ids)})[""], f"of {feature!r} asked again")
    items = ids_of(collection, "item")
    shared = collection.lookup({"item": ("item", items), "seen": ("seen", items)})
    _same(shared["item"], shared["seen"], "of one vocabulary by two features")


def order_changes_nothing(spec: TableSpec) -> None:
    """Rows of the batch in another order give the same vectors in that order; features in another order the same."""
    batch, order = small_batch(), torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(3))
    collection = build(spec).eval()
    expected = flat(collection(batch.select(order)), names_of(collection))
    found = flat({name: _rows_of(column, order) for name, column in collection(batch).items()}, names_of(collection))
    _same(found, expected, "of permuted rows")
    turned = build(spec, features=FEATURES[::-1]).eval()
    _same(
        flat(turned(batch), names_of(collection)), flat(collection(batch), names_of(collection)), "of turned features"
    )


def out_of_range_ids_are_refused(spec: TableSpec) -> None:
    """An id below 0 or beyond the vocabulary is a ValueError that names the feature and the id."""
    collection = build(spec)
    for feature in names_of(collection):
        for wrong in (-1, encoder().num_embeddings(feature) or 0):
            _refuses(collection, feature, torch.tensor([0, wrong]), str(wrong))


# --- how it trains ---


def gradients_are_those_of_the_definition(spec: TableSpec) -> None:
    """`combine` is differentiable, and its gradient is what finite differences in double precision say."""
    collection = build(spec)
    for table, ids in tables_and_ids(collection):
        for name, along, slope in _slopes(table, ids, collection.backend.weights()):
            close = abs(slope - along) <= 1e-4 * max(1.0, abs(slope))
            _require(
                close, f"gradient of {name!r} in table {table.name!r} is {along:.6g} along a line, not {slope:.6g}"
            )


def every_parameter_is_trained(spec: TableSpec) -> None:
    """One step over all ids changes every store that is read, and gives every dense parameter a gradient."""
    collection = build(spec, SGD(lr=0.5))
    before = {name: weight.clone() for name, weight in collection.backend.weights().items()}
    train(collection, steps=1)
    for name, weight in collection.backend.weights().items():
        _require(not torch.equal(weight, before[name]), f"store {name!r} is not changed by a step over all ids")
    for name, parameter in collection.named_parameters():
        _require(_nonzero(parameter.grad), f"parameter {name!r} gets no gradient from a step over all ids")


def only_read_rows_are_touched(spec: TableSpec) -> None:
    """A step changes no row of a store but those that its ids read."""
    collection = build(spec, RowWiseAdagrad(lr=0.5))
    before = {name: weight.clone() for name, weight in collection.backend.weights().items()}
    ids = torch.tensor([1, 3])
    vectors = collection.lookup({"": ("item", ids)})[""]
    vectors.square().sum().backward()
    read = collection.table("item").rows(ids)
    for name, weight in collection.backend.weights().items():
        changed = (weight != before[name]).any(1).nonzero().flatten().tolist()
        allowed = set(read[name].flatten().tolist()) if name in read else set()
        _require(set(changed) <= allowed, f"store {name!r} changed in rows {changed}, read were {sorted(allowed)}")


def state_round_trips(spec: TableSpec) -> None:
    """`state` and `state_dict` carry a trained collection into one of another seed, which then trains on alike."""
    collection, other = build(spec, RowWiseAdagrad(lr=0.1)), build(spec, RowWiseAdagrad(lr=0.1), seed=1)
    train(collection, steps=2)
    other.load_state_dict(collection.state_dict())
    other.load_state({name: tensor.clone() for name, tensor in collection.state().items()})
    _same(vectors_of(other), vectors_of(collection), "after loading the state")
    for one in (collection, other):
        train(one, steps=1)
    _same(vectors_of(other), vectors_of(collection), "a step after loading the state")


# --- what is served ---


def frozen_equals_evaluated(spec: TableSpec) -> None:
    """In float32 `freeze` gives the vectors of evaluation, reads no training-only store, and training goes on alike."""
    collection = build(at_precision(spec, "float32"), SGD(lr=0.5))
    train(collection, steps=1)
    frozen, expected = collection.freeze(), vectors_of(collection)
    _same(vectors_of(frozen), expected, "of the frozen form")
    only = sorted(store.name for store in frozen.stores.values() if store.training_only)
    _require(not only, f"the frozen form reads training-only stores {only}")
    train(collection, steps=1)
    _same(vectors_of(frozen), expected, "of the frozen form after further training")


def served_rows_have_the_precision(spec: TableSpec) -> None:
    """At every precision the frozen form reads its packed rows as `forward` reads what these rows stand for.

    A method may refuse a precision, with a ValueError that names it.
    """
    for precision in PRECISIONS:
        try:
            frozen = build(at_precision(spec, precision)).freeze()
        except ValueError as error:
            _require(precision in str(error), f"precision {precision!r} is refused without being named: {error}")
            continue
        weights = frozen.backend.weights()
        for store in frozen.stores.values():
            stated = store.num_bytes
            _require(weights[store.name].nbytes == stated, f"store {store.name!r} is not of the {stated} bytes it says")
        meant = {
            name: unpack(weight, frozen.stores[name].precision, frozen.stores[name].embedding_dim)
            for name, weight in weights.items()
        }
        for table, ids in tables_and_ids(frozen):
            feature = next(name for name in names_of(frozen) if frozen.table(name) is table)
            found = frozen.lookup({"": (feature, ids)})[""]
            _same(found, table(ids, meant), f"of {feature!r}, served in {precision} and defined,")


def record_rebuilds_what_is_served(spec: TableSpec) -> None:
    """The frozen form comes back from its record, through JSON, and its tensors, without the specification."""
    collection = build(spec, SGD(lr=0.5))
    train(collection, steps=1)
    frozen = collection.freeze()
    record = json.loads(json.dumps(describe_tables(frozen)))
    tensors = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    again = rebuild_tables(record, frozen.schema, tensors, allowed=None)
    _same(vectors_of(again), vectors_of(frozen), "of the rebuilt served form")
    _require(again.num_bytes() == frozen.num_bytes(), "the rebuilt served form has other bytes")


def bytes_are_measured(spec: TableSpec) -> None:
    """What is served takes `num_bytes`, no tensor uncounted or there twice, and at most the `max_bytes` promised."""
    collection = build(spec)
    try:
        frozen = collection.freeze()
    except ValueError as error:
        raise AssertionError(f"the frozen form cannot be counted: {error}") from None
    derived = {id(tensor) for tensor in _derived(frozen)}
    held = {tensor.data_ptr(): tensor.nbytes for tensor in _held(frozen, set()) if id(tensor) not in derived}
    counted = collection.num_bytes()
    _require(sum(held.values()) == counted, f"num_bytes is {counted}, the frozen form holds {sum(held.values())}")
    most = spec.max_bytes("ids", list(readers_by_table(encoder())["ids"]))
    _require(most is None or counted <= most, f"{counted} bytes are served, the budget is {most}")


LAWS: Mapping[str, Law] = {
    law.__name__: law
    for law in (
        rows_are_a_function_of_the_id,
        vectors_are_the_definition,
        same_id_same_vector,
        order_changes_nothing,
        out_of_range_ids_are_refused,
        gradients_are_those_of_the_definition,
        every_parameter_is_trained,
        only_read_rows_are_touched,
        state_round_trips,
        frozen_equals_evaluated,
        served_rows_have_the_precision,
        record_rebuilds_what_is_served,
        bytes_are_measured,
    )
}


# --- comparing ---


def _rows_of(column: Tensor | Jagged, rows: Tensor) -> Tensor | Jagged:
    return column.select(rows) if isinstance(column, Jagged) else column[rows]


def _slopes(
    table: EmbeddingTable, ids: Tensor, weights: Mapping[str, Tensor], step: float = 1e-7
) -> Iterator[tuple[str, float, float]]:
    """For each store and parameter: the slope along a fixed direction by gradient, and by central differences."""
    exact = deepcopy(table).double().eval()
    stores = {store.name: weights[store.name].double().requires_grad_() for store in table.stores}
    pull = fixed(len(ids), table.embedding_dim, seed=1).double()
    point = {**stores, **dict(exact.named_parameters())}
    value = (exact(ids, stores) * pull).sum()
    grads = torch.autograd.grad(value, list(point.values()), allow_unused=True, materialize_grads=True)
    for (name, tensor), grad in zip(point.items(), grads, strict=True):
        direction, here = fixed(*tensor.shape, seed=2).double(), tensor.detach().clone()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.copy_(here + sign * step * direction)
                ends.append(float((exact(ids, stores) * pull).sum()))
                tensor.copy_(here)
        yield name, float((grad * direction).sum()), (ends[0] - ends[1]) / (2 * step)


def _nonzero(grad: Tensor | None) -> bool:
    return grad is not None and bool(grad.any())


def _derived(module: nn.Module) -> Iterator[Tensor]:
    """Buffers that are neither saved nor served: they follow from names and settings."""
    for part in module.modules():
        yield from (part.get_buffer(name) for name in part._non_persistent_buffers_set)


def _held(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached from an object's attributes, through modules and containers."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    for part in _parts(value):
        yield from _held(part, seen)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, nn.Module):
        return vars(value).values()
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


def _refuses(collection: EmbeddingCollection, feature: str, ids: Tensor, wrong: str) -> None:
    try:
        collection.lookup({"": (feature, ids)})
    except ValueError as error:
        named = feature in str(error) and wrong in str(error)
        _require(named, f"the error does not name feature {feature!r} and id {wrong}: {error}")
        return
    raise AssertionError(f"id {wrong} of {feature!r} is out of range and was not refused")


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    _require(found.shape == expected.shape, f"vectors {what} have shape {tuple(found.shape)}, {tuple(expected.shape)}")
    gap = float((found - expected).detach().abs().max()) if found.numel() else 0.0
    _require(gap <= 1e-6, f"vectors {what} differ by {gap:.2g}")


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise AssertionError(broken)

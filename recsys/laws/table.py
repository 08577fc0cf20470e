"""The laws that every table obeys, as functions of its specification; `verdicts` runs them all.

Each builds the specification over a small schema (one id per row, lists of both poolings, scores, two features over one
vocabulary), in the plain backend, and raises `AssertionError` saying what was broken. A specification that cannot hold
such a schema at all (a budget too small) raises its own ValueError. Whether the fast backends agree is a matter of the
parity tests, and whether a table is good for a model of none.

Shapes: B rows, N flat ids, P accesses of a store per id, D width of a vector.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.layout import readers_by_table
from recsys.embedding.optimizers import SGD, RowWiseAdagrad, TableOptimizer
from recsys.embedding.table import DenseTable, EmbeddingTable, TableSpec
from recsys.embedding.unified import UnifiedTable

Law = Callable[[TableSpec], None]

NUM_USERS, NUM_ITEMS, NUM_TAGS, NUM_ROWS = 40, 60, 7, 64
FEATURES = (
    FeatureSpec(name="user", table="ids"),
    FeatureSpec(name="item", table="ids", chunks=2),
    FeatureSpec(name="seen", kind="id_list", vocabulary="item", table="ids", chunks=2, pooling="none"),
    FeatureSpec(name="tags", kind="id_list", table="ids", pooling="mean"),
    FeatureSpec(name="interests", kind="id_score_list", vocabulary="tags", table="ids", pooling="sum"),
)
CASES: Mapping[str, TableSpec] = {
    "dense": DenseTable(embedding_dim=6),
    "unified": UnifiedTable(num_embeddings=50, chunk_dim=6),
    "unified, a share": UnifiedTable(budget="30%", chunk_dim=3, chunks=2),
    "unified, not multiplexed": UnifiedTable(budget="2kB", chunk_dim=6, multiplexed=False),
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
    return found


# --- what a table is ---


def rows_are_a_function_of_the_id(spec: TableSpec) -> None:
    """`rows` gives int64 [N, P] inside the stores, for each id the same alone as among others."""
    for table, ids in _tables_and_ids(_build(spec)):
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
    collection = _build(spec)
    weights = collection.backend.weights()
    for feature in _names(collection):
        table = collection.table(feature)
        ids = _ids(collection, feature)
        for wanted in (ids, ids[:1], ids[:0], ids.view(-1, 1)):
            found = collection.lookup({"it": (feature, wanted)})["it"]
            shape = (*wanted.shape, collection.embedding_dim(feature))
            _require(found.shape == shape, f"vectors of {feature!r} are {tuple(found.shape)}, expected {shape}")
            _same(found.flatten(0, -2), table(wanted.flatten(), weights), f"of {feature!r}, looked up and defined,")


def same_id_same_vector(spec: TableSpec) -> None:
    """In evaluation the vector of an id depends on nothing else: neither place, nor other ids, nor who asks."""
    collection = _build(spec).eval()
    for feature in _names(collection):
        ids = _ids(collection, feature)
        found = collection.lookup({"there": (feature, ids), "back": (feature, ids.flip(0)), "one": (feature, ids[:1])})
        _same(found["there"], found["back"].flip(0), f"of {feature!r} in another order")
        _same(found["there"][:1], found["one"], f"of {feature!r} alone")
        _same(found["there"], collection.lookup({"": (feature, ids)})[""], f"of {feature!r} asked again")
    items = _ids(collection, "item")
    shared = collection.lookup({"item": ("item", items), "seen": ("seen", items)})
    _same(shared["item"], shared["seen"], "of one vocabulary by two features")


def order_changes_nothing(spec: TableSpec) -> None:
    """Rows of the batch in another order give the same vectors in that order; features in another order the same."""
    batch, order = _batch(), torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(3))
    collection = _build(spec).eval()
    expected = _flat(collection(batch.select(order)), _names(collection))
    found = _flat({name: _rows_of(column, order) for name, column in collection(batch).items()}, _names(collection))
    _same(found, expected, "of permuted rows")
    turned = _build(spec, features=FEATURES[::-1]).eval()
    _same(_flat(turned(batch), _names(collection)), _flat(collection(batch), _names(collection)), "of turned features")


def out_of_range_ids_are_refused(spec: TableSpec) -> None:
    """An id below 0 or beyond the vocabulary is a ValueError that names the feature and the id."""
    collection = _build(spec)
    for feature in _names(collection):
        for wrong in (-1, _encoder().num_embeddings(feature) or 0):
            _refuses(collection, feature, torch.tensor([0, wrong]), str(wrong))


# --- how it trains ---


def gradients_are_those_of_the_definition(spec: TableSpec) -> None:
    """`combine` is differentiable, and its gradient is what finite differences in double precision say."""
    collection = _build(spec)
    for table, ids in _tables_and_ids(collection):
        for name, along, slope in _slopes(table, ids, collection.backend.weights()):
            close = abs(slope - along) <= 1e-4 * max(1.0, abs(slope))
            _require(
                close, f"gradient of {name!r} in table {table.name!r} is {along:.6g} along a line, not {slope:.6g}"
            )


def every_parameter_is_trained(spec: TableSpec) -> None:
    """One step over all ids changes every store that is read, and gives every dense parameter a gradient."""
    collection = _build(spec, SGD(lr=0.5))
    before = {name: weight.clone() for name, weight in collection.backend.weights().items()}
    _train(collection, steps=1)
    for name, weight in collection.backend.weights().items():
        _require(not torch.equal(weight, before[name]), f"store {name!r} is not changed by a step over all ids")
    for name, parameter in collection.named_parameters():
        _require(_nonzero(parameter.grad), f"parameter {name!r} gets no gradient from a step over all ids")


def only_read_rows_are_touched(spec: TableSpec) -> None:
    """A step changes no row of a store but those that its ids read."""
    collection = _build(spec, RowWiseAdagrad(lr=0.5))
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
    """`state` and `state_dict` carry a trained collection into another, which then trains on alike."""
    collection, other = _build(spec, RowWiseAdagrad(lr=0.1)), _build(spec, RowWiseAdagrad(lr=0.1), seed=1)
    _train(collection, steps=2)
    other.load_state_dict(collection.state_dict())
    other.load_state({name: tensor.clone() for name, tensor in collection.state().items()})
    _same(_vectors(other), _vectors(collection), "after loading the state")
    for one in (collection, other):
        _train(one, steps=1)
    _same(_vectors(other), _vectors(collection), "a step after loading the state")


# --- what is served ---


def frozen_equals_evaluated(spec: TableSpec) -> None:
    """`freeze` gives the vectors of evaluation, reads no training-only store, and training goes on without it."""
    collection = _build(spec, SGD(lr=0.5))
    _train(collection, steps=1)
    frozen, expected = collection.freeze(), _vectors(collection)
    _same(_vectors(frozen), expected, "of the frozen form")
    only = sorted(store.name for store in frozen.stores.values() if store.training_only)
    _require(not only, f"the frozen form reads training-only stores {only}")
    _train(collection, steps=1)
    _same(_vectors(frozen), expected, "of the frozen form after further training")


def bytes_are_measured(spec: TableSpec) -> None:
    """What is served takes `num_bytes`, no tensor uncounted, and at most the specification's `max_bytes`."""
    collection = _build(spec)
    frozen = collection.freeze()
    derived = {id(tensor) for tensor in _derived(frozen)}
    held = {tensor.data_ptr(): tensor.nbytes for tensor in _held(frozen, set()) if id(tensor) not in derived}
    counted = collection.num_bytes()
    _require(sum(held.values()) == counted, f"num_bytes is {counted}, the frozen form holds {sum(held.values())}")
    most = spec.max_bytes("ids", list(readers_by_table(_encoder())["ids"]))
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
        bytes_are_measured,
    )
}


# --- the small schema ---


def _encoder(features: Sequence[FeatureSpec] = FEATURES) -> Encoder:
    schema = FeatureSchema(name="laws", features=tuple(features))
    sizes = {"user": NUM_USERS, "item": NUM_ITEMS, "tags": NUM_TAGS}
    counts = {name: (list(range(size)), [1 + size - raw for raw in range(size)]) for name, size in sizes.items()}
    return Encoder.from_counts(schema, counts)


def _build(
    spec: TableSpec,
    optimizer: TableOptimizer | None = None,
    *,
    seed: int = 0,
    features: Sequence[FeatureSpec] = FEATURES,
) -> EmbeddingCollection:
    return EmbeddingCollection(_encoder(features), {"ids": spec}, backend="plain", optimizer=optimizer, seed=seed)


def _batch() -> Batch:
    """Every id of every feature stands in it; some lists are empty."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(NUM_ROWS)
    lengths = torch.randint(0, 4, (NUM_ROWS,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.arange(int(offsets[-1]))
    tags = Jagged(values=values % (NUM_TAGS + 1), offsets=offsets)
    scores = Jagged(values=tags.values, offsets=offsets, weights=torch.rand(len(values), generator=generator))
    seen = Jagged(values=values % (NUM_ITEMS + 1), offsets=offsets)
    features = {"user": numbers % (NUM_USERS + 1), "item": numbers % (NUM_ITEMS + 1)}
    return Batch(features=features | {"seen": seen, "tags": tags, "interests": scores})


def _names(collection: EmbeddingCollection) -> list[str]:
    return sorted(spec.name for spec in collection.schema.inputs)


def _ids(collection: EmbeddingCollection, feature: str) -> Tensor:
    column = _batch()[feature]
    ids: Tensor = (column.values if isinstance(column, Jagged) else column).unique()
    return ids


def _tables_and_ids(collection: EmbeddingCollection) -> Iterator[tuple[EmbeddingTable, Tensor]]:
    for feature in ("user", "item", "tags"):
        yield collection.table(feature), _ids(collection, feature)


# --- training and comparing ---


def _train(collection: EmbeddingCollection, steps: int) -> None:
    """Steps of a loss that pulls every vector somewhere else."""
    for _ in range(steps):
        vectors = _flat(collection(_batch()), _names(collection))
        (vectors * _fixed(len(vectors), seed=4)).sum().backward()


@torch.no_grad()
def _vectors(collection: EmbeddingCollection) -> Tensor:
    training = collection.training
    found = _flat(collection.eval()(_batch()), _names(collection))
    collection.train(training)
    return found


def _flat(vectors: Mapping[str, Tensor | Jagged], names: Sequence[str]) -> Tensor:
    """All numbers of all features in one row."""
    columns = [vectors[name] for name in names]
    flat: list[Tensor] = [(column.values if isinstance(column, Jagged) else column).flatten() for column in columns]
    return torch.cat(flat)


def _rows_of(column: Tensor | Jagged, rows: Tensor) -> Tensor | Jagged:
    return column.select(rows) if isinstance(column, Jagged) else column[rows]


def _fixed(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _slopes(
    table: EmbeddingTable, ids: Tensor, weights: Mapping[str, Tensor], step: float = 1e-5
) -> Iterator[tuple[str, float, float]]:
    """For each store and parameter: the slope along a fixed direction by gradient, and by central differences."""
    exact = deepcopy(table).double().eval()
    stores = {store.name: weights[store.name].double().requires_grad_() for store in table.stores}
    pull = _fixed(len(ids), table.embedding_dim, seed=1).double()
    point = {**stores, **dict(exact.named_parameters())}
    value = (exact(ids, stores) * pull).sum()
    grads = torch.autograd.grad(value, list(point.values()), allow_unused=True, materialize_grads=True)
    for (name, tensor), grad in zip(point.items(), grads, strict=True):
        direction, here = _fixed(*tensor.shape, seed=2).double(), tensor.detach().clone()
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

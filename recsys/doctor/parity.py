"""One cell of the parity matrix, run: a table trained for a few steps and served, beside its oracle.

The oracle of a plain collection is the naive definition: `EmbeddingTable.forward` on leaf tensors, lists pooled by a
Python loop, each rule of update by torch's own optimizer or a line of arithmetic. The oracle of everything else is the
plain collection, in one process with the whole batches, whose result the plain cell leaves in a file. Compared are the
losses, the vectors of all ids, every store and every tensor of the tables, after steps of several sizes of batch, among
them one that two ranks cannot share evenly and one that is too small for them.

What is served is compared with the table's definition over the rows that the packed rows stand for, and those with the
float32 rows within the error that precision.py states.

Shapes: B rows, N flat ids, n rows of a store, d its width, D width of a vector.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from features.batch import Batch, Jagged, offsets_of
from features.spec import FeatureSpec
from recsys import distributed
from recsys.compression import COMPRESSIONS
from recsys.doctor.cells import Cell
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from recsys.embedding.placement import COLUMN_WISE, num_column_blocks
from recsys.embedding.precision import Precision, pack, unpack
from recsys.embedding.table import TableSpec
from recsys.laws.small_schema import FEATURES, at_precision, encoder
from recsys.laws.table import CASES

CLOSE = 1e-5
LR = 0.1
BATCH_SIZES = (9, 4, 1, 6)
SEED = 3


def measure(argument: str) -> dict[str, Any]:
    """Run a cell, given as JSON with the folder of the oracles, on as many ranks as it names.

    Answers {"refused": why} where the collection cannot be made, else {"difference", "where", "served", "note"}: the
    largest difference, relative to 1 + the expected value, and of what; by how much vectors served at the cell's
    precision are off, as a share of the largest. Both with "one_rank", why the table trains on one rank, "" = on any.
    """
    given = json.loads(argument)
    cell = Cell(**given["cell"])
    oracle = Path(given["folder"]) / f"{cell.method}-{cell.optimizer}-{cell.precision}.safetensors"
    try:
        collection = _collection(cell)
    except ValueError as refusal:
        return {"refused": _words(refusal), "one_rank": one_rank(cell.method)}
    found = _trained(collection)
    if cell.backend == "plain":
        expected = _trained_naively(cell)
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in found.items()}, oracle)
    else:
        expected = safetensors.torch.load_file(oracle)
    served, off = _served(collection, found)
    differences = _differences(found, expected) | served
    where = max(differences, key=lambda name: _nan_last(differences[name]))
    measured = {"difference": differences[where], "where": where, "served": off}
    return measured | {"note": _note(cell, collection), "one_rank": _one_rank(collection)}


def one_rank(method: str) -> str:
    """Why the tables of a method train on one rank; "" where they train on several."""
    cell = Cell(method=method, backend="plain", num_ranks=1, sharding="", optimizer="sgd", precision="float32")
    return _one_rank(_collection(cell))


def _words(refusal: ValueError) -> str:
    """What an error says, in one line."""
    if isinstance(refusal, ValidationError):
        return "; ".join(error["msg"] for error in refusal.errors())
    return " ".join(str(refusal).split())


def _one_rank(collection: EmbeddingCollection) -> str:
    return next(filter(None, (str(table.one_rank) for table in collection.tables.values())), "")


def _note(cell: Cell, collection: EmbeddingCollection) -> str:
    """What the reader of an equal cell should know."""
    cut = any(num_column_blocks(store, cell.num_ranks) > 1 for store in collection.stores.values())
    if cell.sharding != COLUMN_WISE or cell.num_ranks == 1 or cut:
        return ""
    return "no store is wide enough to be cut into columns, so this is table-wise"


# --- what is trained ---


def _spec(method: str, precision: str) -> TableSpec:
    """The case that the laws have for a method, at a precision."""
    kind = COMPRESSIONS[method]
    case = next((case for case in CASES.values() if type(case) is kind), None)
    if case is None:
        raise LookupError(f"recsys.laws.table.CASES has no case of method {method!r}")
    return at_precision(case, precision)


def _collection(cell: Cell) -> EmbeddingCollection:
    return EmbeddingCollection(
        encoder(),
        {"ids": _spec(cell.method, cell.precision)},
        backend=cell.backend,  # type: ignore[arg-type]
        optimizer=OPTIMIZERS[cell.optimizer](lr=LR),
        seed=SEED,
        sharding=cell.sharding or None,
    )


def _batches() -> Iterator[Batch]:
    """The global batches; ids repeat, lists are ragged and some empty."""
    known, generator = encoder(), torch.Generator().manual_seed(11)

    def column(spec: FeatureSpec, size: int) -> Tensor | Jagged:
        ids = (known.num_embeddings(spec.name) or 0) // 2
        if not spec.is_list:
            return torch.randint(0, ids, (size,), generator=generator)
        offsets = offsets_of(torch.randint(0, 4, (size,), generator=generator))
        count = int(offsets[-1])
        weights = torch.rand(count, generator=generator) if spec.kind == "id_score_list" else None
        values = torch.randint(0, ids, (count,), generator=generator)
        return Jagged(values=values, offsets=offsets, weights=weights)

    for size in BATCH_SIZES:
        features = {spec.name: column(spec, size) for spec in FEATURES}
        weights = torch.rand(size, generator=generator) + 0.5
        yield Batch(features=features, weights=weights, row_ids=torch.arange(size))


def _part(batch: Batch) -> Batch:
    """Rows r, r + W, ... of rank r of W; a rank without any takes part with the first row at weight 0."""
    rows = torch.arange(len(batch))[distributed.rank() :: distributed.world_size()]
    if len(rows):
        return batch.select(rows)
    part = batch.select(torch.tensor([0]))
    return Batch(features=part.features, weights=torch.zeros(1), row_ids=part.row_ids)


def _row_losses(vectors: Mapping[str, Tensor | Jagged], row_ids: Tensor) -> Tensor:
    """A loss per row [B] that every number of every vector moves, each column with a factor of its own."""
    total = torch.zeros(len(row_ids))
    for name in sorted(vectors):
        found = vectors[name]
        flat = found if isinstance(found, Tensor) else _summed_by_row(found)
        total = total + ((5 * flat).sin() * torch.linspace(-1.0, 1.5, flat.shape[1])).mean(1) * (1 + row_ids % 3)
    return (total - 1).square()


def _summed_by_row(lists: Jagged) -> Tensor:
    zeros = lists.values.new_zeros(lists.num_rows, lists.values.shape[1])
    return zeros.index_add(0, lists.row_of_value, lists.values)


# --- the step of a trainer ---


def _trained(collection: EmbeddingCollection) -> dict[str, Tensor]:
    """Steps over this rank's part of each batch; what there is to compare after them, equal on all ranks."""
    parameters = list(collection.parameters())
    losses = []
    for number, batch in enumerate(_batches()):
        torch.manual_seed(number)
        losses.append(_step(collection, _part(batch)))
        distributed.average_gradients(parameters)
        _descend(parameters)
        collection.on_step()
    found = {"losses": torch.tensor(losses)}
    collection.eval()
    with torch.no_grad():
        vectors = collection.lookup({name: (name, ids) for name, ids in _all_ids().items()})
    found |= {f"vectors of {name}": tensor for name, tensor in vectors.items()}
    found |= {f"store {name}": tensor.clone() for name, tensor in collection.backend.whole_weights().items()}
    return found | _floats_of(collection.tables)


def _step(collection: EmbeddingCollection, part: Batch) -> float:
    """Loss, backward and the tables' update; the global loss."""
    assert part.row_ids is not None
    weights = part.row_weights()
    loss = (_row_losses(collection(part), part.row_ids) * weights).sum()
    total, value = distributed.all_reduce_sum(torch.stack([weights.sum(), loss.detach()])).unbind()
    penalty = collection.penalty()
    objective = loss * (distributed.world_size() / total)
    (objective if penalty is None else objective + penalty).backward()
    return float(value / total)


@torch.no_grad()
def _descend(parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter -= LR * parameter.grad
            parameter.grad = None


def _all_ids() -> dict[str, Tensor]:
    known = encoder()
    return {spec.name: torch.arange(known.num_embeddings(spec.name) or 0) for spec in FEATURES}


def _floats_of(tables: torch.nn.Module) -> dict[str, Tensor]:
    """Dense parameters and buffers of tables."""
    state = tables.state_dict()
    return {f"table's {name}": tensor.clone() for name, tensor in state.items() if tensor.is_floating_point()}


# --- the naive definition ---


def _trained_naively(cell: Cell) -> dict[str, Tensor]:
    """The same steps without the collection, its backends or our optimizers."""
    collection = _collection(cell)
    table_of = {spec.name: str(collection.table_key(spec.name)) for spec in FEATURES}
    tables = {key: collection.table(name) for name, key in table_of.items()}
    stores = {name: weight.clone().requires_grad_() for name, weight in collection.backend.weights().items()}
    parameters = list(collection.tables.parameters())
    update = _rule(OPTIMIZERS[cell.optimizer](lr=LR), list(stores.values()))
    losses = []
    for number, batch in enumerate(_batches()):
        torch.manual_seed(number)
        assert batch.row_ids is not None
        weights, ids = batch.row_weights(), _ids_by_table(batch, table_of)
        found = {key: table(ids[key], stores) for key, table in tables.items()}  # [N, D]
        loss = (_row_losses(_by_feature(batch, table_of, found), batch.row_ids) * weights).sum() / weights.sum()
        penalties = [penalty for table in tables.values() if (penalty := table.penalty()) is not None]
        torch.stack([loss, *penalties]).sum().backward()
        update()
        _descend(parameters)
        with torch.no_grad():
            for key in sorted(tables):
                touched = {name: rows.flatten() for name, rows in tables[key].rows(ids[key]).items()}
                tables[key].on_step({name: store.detach() for name, store in stores.items()}, touched)
        losses.append(loss.item())
    collection.eval()
    with torch.no_grad():
        vectors = {f"vectors of {name}": collection.table(name)(ids, stores) for name, ids in _all_ids().items()}
    kept = {f"store {name}": store.detach() for name, store in stores.items()}
    return {"losses": torch.tensor(losses)} | vectors | kept | _floats_of(collection.tables)


def _flat_ids(column: Tensor | Jagged) -> Tensor:
    return column.values if isinstance(column, Jagged) else column


def _ids_by_table(batch: Batch, table_of: Mapping[str, str]) -> dict[str, Tensor]:
    """The ids [N] that each table is asked for, feature after feature."""
    ids_of: dict[str, list[Tensor]] = {}
    for name, key in table_of.items():
        ids_of.setdefault(key, []).append(_flat_ids(batch[name]))
    return {key: torch.cat(ids) for key, ids in ids_of.items()}


def _by_feature(batch: Batch, table_of: Mapping[str, str], found: Mapping[str, Tensor]) -> dict[str, Tensor | Jagged]:
    """The vectors [N, D] of each table -> those of each feature, lists pooled."""
    start = dict.fromkeys(found, 0)
    vectors: dict[str, Tensor | Jagged] = {}
    for name, key in table_of.items():
        stop = start[key] + len(_flat_ids(batch[name]))
        vectors[name] = _pooled_by_loop(name, batch[name], found[key][start[key] : stop])
        start[key] = stop
    return vectors


def _pooled_by_loop(name: str, column: Tensor | Jagged, vectors: Tensor) -> Tensor | Jagged:
    pooling = next(spec.pooling for spec in FEATURES if spec.name == name)
    if not isinstance(column, Jagged):
        return vectors
    if pooling == "none":
        return column.with_values(vectors)
    weights = torch.ones(len(vectors)) if column.weights is None else column.weights
    pooled = []
    for start, stop in zip(column.offsets[:-1].tolist(), column.offsets[1:].tolist(), strict=True):
        total = sum((weights[i] * vectors[i] for i in range(start, stop)), torch.zeros(vectors.shape[1]))
        empty = pooling == "sum" or start == stop
        pooled.append(total if empty else total / weights[start:stop].sum())
    return torch.stack(pooled)


def _rule(optimizer: TableOptimizer, stores: Sequence[Tensor]) -> Callable[[], None]:
    """One update of whole stores from their dense gradients, which it takes away."""
    if isinstance(optimizer, RowWiseAdagrad):
        return _row_wise_adagrad(optimizer, stores)
    theirs: torch.optim.Optimizer
    if isinstance(optimizer, SGD):
        theirs = torch.optim.SGD(stores, lr=optimizer.lr)
    elif isinstance(optimizer, Adagrad):
        theirs = torch.optim.Adagrad(stores, lr=optimizer.lr, eps=optimizer.eps)
    elif isinstance(optimizer, Adam):
        theirs = torch.optim.Adam(stores, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
    else:
        raise LookupError(f"no naive definition of optimizer {type(optimizer).__name__}")

    def update() -> None:
        theirs.step()
        theirs.zero_grad()

    return update


def _row_wise_adagrad(optimizer: RowWiseAdagrad, stores: Sequence[Tensor]) -> Callable[[], None]:
    sums = [torch.zeros(len(store), 1) for store in stores]

    @torch.no_grad()
    def update() -> None:
        for store, total in zip(stores, sums, strict=True):
            if store.grad is not None:
                total += store.grad.square().mean(1, keepdim=True)
                store -= optimizer.lr * store.grad / (total.sqrt() + optimizer.eps)
                store.grad = None

    return update


# --- comparing ---


def _differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Name -> the largest difference, relative to 1 + the expected value; infinite where one has no such tensor."""
    common = {name for name in found if name in expected and found[name].shape == expected[name].shape}
    differences = dict.fromkeys(found.keys() ^ expected.keys() | (found.keys() - common), float("inf"))
    for name in common:
        gap = (found[name].detach() - expected[name]).abs() / (1 + expected[name].abs())
        differences[name] = float(gap.max()) if gap.numel() else 0.0
    return differences


def _nan_last(value: float) -> float:
    return float("inf") if value != value else value


@torch.no_grad()
def _served(collection: EmbeddingCollection, trained: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
    """What is off in the frozen form, which should be nothing; and how far its vectors are from the float32 ones.

    Off is a vector that is not what the definition makes of the packed rows, and by how much a row is rounded beyond
    its bound.
    """
    frozen, weights = collection.freeze(), collection.backend.whole_weights()
    differences: dict[str, float] = {"rows beyond their rounding": 0.0}
    off = largest = 0.0
    for name, ids in _all_ids().items():
        table, arrays = collection.table(name).freeze(weights)
        meant = {}
        for store in table.stores:
            values = arrays[store.name].detach()
            meant[store.name] = unpack(pack(values, store.precision), store.precision, store.embedding_dim)
            beyond = (meant[store.name] - values).abs() - rounding_bound(values, store.precision)
            differences["rows beyond their rounding"] = max(
                differences["rows beyond their rounding"], float(beyond.max())
            )
        served = frozen.lookup({"": (name, ids)})[""]
        differences |= _differences({f"served {name}": served}, {f"served {name}": table(ids, meant)})
        expected = trained[f"vectors of {name}"]
        off = max(off, float((served - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return differences, off / largest if largest else off


def rounding_bound(values: Tensor, precision: Precision) -> Tensor:
    """Values [n, d] -> [n, 1] or [n, d]: how far the values that packed rows stand for may be from them.

    float16 keeps 11 bits; int8 and int4 are half a step of (max - min) / 255 or / 15, int4 with scale and min in
    float16 themselves. A millionth is left for float32 arithmetic.
    """
    low, high = values.min(1, keepdim=True).values, values.max(1, keepdim=True).values
    arithmetic = 1e-6 * (1 + values.abs().amax(1, keepdim=True))
    if precision == "float32":
        return torch.zeros_like(values)
    if precision == "float16":
        return values.abs() * 2**-11 + 2**-25
    if precision == "int8":
        return (high - low) / 255 / 2 + arithmetic
    half_bits = 2**-11 * (high - low + low.abs()) + 2**-24 * 16
    return (high - low) / 15 / 2 + half_bits + arithmetic

"""Starting from a trained model whose encoder has grown since: old rows as they were, new rows fresh.

    load_grown(model, phases, Origin(...))     weights, row states, dense optimizer state; then train on

Whether a table can grow is not a property that methods declare: it is tried. The tables of the same specifications are
made for the old encoder and for the new one, and every id that the old one knew must read the same rows of the same
stores and make the same vector of them. A row per id passes, and so does any hash into a number of rows that does not
follow from the number of ids; where rows are dealt out by how many ids there are, or how frequent each is, the first id
that would move is named, and the start refused. Nothing is ever moved or re-fitted.

Then of every store and of the state of its optimizer the old rows are loaded bit for bit, on one rank or many, and the
rows beyond stay what `Store.initialise` made them: the same as if the store had had them from the beginning.

Memory: the rows that a block of ids reads, and the tables' own parameters and buffers twice; no store is copied.
Shapes: N ids of a block, P accesses, d width of a store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from features.encoder import Encoder
from features.vocab import Vocabulary
from recsys.compression import make_specs
from recsys.config import ConfigError, TableConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.layout import Layout
from recsys.embedding.table import EmbeddingTable
from recsys.phases import Phase
from recsys.training.checkpoint import Checkpoints
from recsys.training.state import MODEL, TABLES, load_training, table_tensors

IDS_AT_ONCE = 1 << 16
CAN_GROW = "dense, and unified (multiplexed), robe or hash (of one vocabulary) of a size that is not in %"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run starts from: a checkpoint with training state, the encoder it was trained with, its tables and seed.

    tables: the `[tables.NAME]` sections, the same in both runs.
    """

    checkpoints: Checkpoints
    tag: str
    encoder: Encoder
    tables: Mapping[str, TableConfig]
    seed: int


def load_grown(model: nn.Module, phases: Sequence[Phase], encoder: Encoder, origin: Origin) -> None:
    """Overwrite a fresh model and its optimizers with what was trained; rows that are new keep their initial values.

    encoder: of the model, which extends the origin's (`Encoder.check_extends`). Called by all ranks. Raises ConfigError
    naming the table, its method, and the first id that would read another row; ValueError for another model's tensors.
    """
    grown: list[str] = []
    state = list(table_tensors(model))
    for prefix, module in model.named_modules():
        if isinstance(module, EmbeddingCollection):
            start = f"{MODEL}{prefix}."
            saved = origin.checkpoints.load(origin.tag, prefix=f"{start}tables.")
            learned = {name.removeprefix(f"{start}tables."): tensor for name, tensor in saved.items()}
            for store in grown_stores(module, encoder, origin, learned):
                own = f"{TABLES}{prefix}.optimizer.{store}."
                grown += [f"{start}stores.{store}", *(name for name in state if name.startswith(own))]
    load_training(model, phases, origin.checkpoints, origin.tag, grown)


def grown_stores(
    collection: EmbeddingCollection, encoder: Encoder, origin: Origin, learned: Mapping[str, Tensor]
) -> list[str]:
    """The stores that have more rows than at the origin. Raises ConfigError where an id would lose its rows.

    learned: the saved parameters and buffers of the tables, by "<table>.<name>".
    """
    specs = make_specs(origin.tables)
    older, newer = (
        Layout.build(known.with_schema(collection.schema), specs, origin.seed) for known in (origin.encoder, encoder)
    )
    for key in newer.tables:
        own = {part.removeprefix(f"{key}."): value for part, value in learned.items() if part.startswith(f"{key}.")}
        _check_goes_on(key, origin.tables, older.tables[key], newer.tables[key], own)
    rows = {store.name: store.num_embeddings for store in older.stores}
    return [store.name for store in newer.stores if store.num_embeddings > rows[store.name]]


def check_can_grow(tables: Mapping[str, TableConfig], encoder: Encoder, seed: int) -> None:
    """Raise ConfigError as `load_grown` would after more ids: tried with more in each vocabulary, in no proportion."""
    shares = {name: number / len(encoder.vocabularies) for number, name in enumerate(encoder.vocabularies, start=1)}
    more = {name: _more_ids(encoder.vocabularies[name], share) for name, share in shares.items()}
    specs = make_specs(tables)
    older, newer = (Layout.build(known, specs, seed) for known in (encoder, encoder.grown(more)))
    for key in newer.tables:
        learned = older.tables[key].state_dict()
        _check_goes_on(key, tables, older.tables[key], newer.tables[key], learned)


def _more_ids(vocabulary: Vocabulary, share: float) -> tuple[Any, Any]:
    """Ids that are not in it, by its share more than there are, and how often each came."""
    count = int(share * len(vocabulary.raw_ids)) + 1
    if vocabulary.holds_integers:
        found: Any = np.setdiff1d(np.arange(count + len(vocabulary.raw_ids)), vocabulary.raw_ids)[:count]
    else:
        found = [f"\uffff{number}" for number in range(count)]
    return found, np.full(count, max(vocabulary.min_count, 1))


def _check_goes_on(
    key: str,
    tables: Mapping[str, TableConfig],
    older: EmbeddingTable,
    newer: EmbeddingTable,
    learned: Mapping[str, Tensor],
) -> None:
    name = key.partition("/")[0]
    what = f"table {key!r} ({tables[name].method})"
    if make_specs(tables)[name].adds_phases:
        raise ConfigError(f"{what} trains in stages of its own, which a run that goes on from another cannot repeat")
    fault = difference(older, newer, learned)
    if fault:
        raise ConfigError(f"{what} cannot go on with more ids: {fault}; what can: {CAN_GROW}")


def difference(older: EmbeddingTable, newer: EmbeddingTable, learned: Mapping[str, Tensor]) -> str:
    """Why the vectors of known ids would change, in words; "" where they stay.

    learned: parameters and buffers that both get; the tables are changed.
    """
    for store in newer.stores:
        before = {store.name: store for store in older.stores}.get(store.name)
        shapes = [(part.num_embeddings, part.embedding_dim) for part in (before, store) if part is not None]
        if len(shapes) < 2 or shapes[0][1] != shapes[1][1] or shapes[0][0] > shapes[1][0]:
            return f"store {store.name!r} would be {shapes[-1]}, was {shapes[0] if before else 'not there'}"
    for name, tensor in newer.state_dict().items():
        if name not in learned or learned[name].shape != tensor.shape:
            was = tuple(learned[name].shape) if name in learned else "not there"
            return f"{name!r} would be {tuple(tensor.shape)}, was {was}"
    for table in (older, newer):
        table.load_state_dict(dict(learned))
        table.eval()
    return _first_moved(older, newer)


def _first_moved(older: EmbeddingTable, newer: EmbeddingTable) -> str:
    """The first known id that reads or combines rows otherwise; of hashed ids some are tried."""
    count = IDS_AT_ONCE if older.num_embeddings is None else older.num_embeddings
    if newer.num_embeddings is not None and newer.num_embeddings < count:
        return f"it would have {newer.num_embeddings} ids, had {count}"
    widths = {store.name: store.embedding_dim for store in newer.stores}
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, IDS_AT_ONCE):
        ids = torch.arange(start, min(start + IDS_AT_ONCE, count))
        before, after = older.rows(ids), newer.rows(ids)
        if {name: rows.shape for name, rows in before.items()} != {name: rows.shape for name, rows in after.items()}:
            return "ids would read other stores"
        for store, rows in before.items():
            for first in (after[store] != rows).any(dim=1).nonzero().flatten().tolist()[:1]:
                now, was = after[store][first].tolist(), rows[first].tolist()
                return f"id {start + first} would read rows {now} of store {store!r}, read {was}"
        with torch.no_grad():
            vectors = {s: torch.randn(*rows.shape, widths[s], generator=generator) for s, rows in before.items()}
            if not torch.equal(older.combine(vectors, ids), newer.combine(vectors, ids)):
                return "vectors would be made of their rows otherwise"
    return ""

"""The catalogue: one row per user, or per item, with its features encoded and its raw attributes.

An entity's *position* is its row here: ids ascending, so the lowest id has the lowest position; what a table grew by
stands after all that was there, ascending in itself. A position is not a row of an embedding table: the encoded id
feature maps one to the other, and an entity that was never trained on (a cold item) has a position like any other, and
the row of unseen ids. Histories and sequences are not kept here.

Shapes: n entities, B positions asked for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor

from features import storage
from features.batch import Batch, Jagged, concat
from features.encoder import Encoder
from features.hashes import hash_ids
from features.raw_ids import IdIndex, Ids, arrow_ids, id_numpy, sorted_counts
from features.spec import FeatureSchema, FeatureSpec
from features.vocab import Vocabulary

Entity = Literal["user", "item"]
FORMAT = 1
ATTRIBUTES, FEATURES, RECORD = "attributes.parquet", "features.safetensors", "entity.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class EntityTable:
    """All users, or all items.

    raw_ids: int64 or object (str) [n], by position. attributes: the raw columns [n], the id among them; null where an
    entity has no row in the raw table. features: a Batch of n + 1 rows, the last for an unknown entity: its id reads
    the row of unseen ids, its other features are missing; a number or bucket that may not be missing is the
    catalogue's median, an id that may not be missing the row of unseen ids. refusing: features that have no value at
    all for an unknown entity (ids with unseen = "refuse").
    """

    entity: Entity
    id_column: str
    raw_ids: Ids
    features: Batch
    attributes: pa.Table
    refusing: tuple[str, ...] = ()

    @staticmethod
    def build(
        schema: FeatureSchema,
        encoder: Encoder,
        entity: Entity,
        raw: pa.Table | None,
        extra_ids: Any = (),
    ) -> "EntityTable":
        """The catalogue of the ids in the raw table (one row each) and of extra ids, those seen in events (any order).

        Ids without a row of the raw table get missing attributes; nulls among extra ids are no entities. Raises
        ValueError for an id that is null or stands twice in the raw table, and for a feature that an entity lacks
        while it refuses missing values.
        """
        own, *others = _specs(schema, entity)
        if raw is None and others:
            names = [spec.name for spec in others]
            raise ValueError(f"features {names} belong to the {entity}, so a table of {entity}s is needed")
        table, listed, ids = _read(own, raw, extra_ids, entity)
        found = IdIndex(id_numpy(listed), np.arange(len(listed)), f"the {entity} table").find(ids)
        attributes = _attributes(table, own.column, ids, found)
        known = encoder.encode(attributes.select([own.column]), [own.name])
        known |= _attribute_features(encoder, table, others, ids, found)
        return _table(encoder, entity, ids, attributes, known)

    def grown(self, encoder: Encoder, raw: pa.Table | None, extra_ids: Any = ()) -> "EntityTable":
        """With later raw rows (one per id) and ids: known entities keep their positions, new ones follow, ascending.

        encoder: this table's or one grown from it. A row of a known entity replaces its attributes, but a null, and a
        column that the later table lacks, leaves what was known. For an unknown entity numbers and buckets stay as they
        were (a median would shift). Raises ValueError as `build` does. Memory: two copies of the attributes.
        """
        own, *others = _specs(encoder.schema, self.entity)
        later, listed, ids = _read(own, raw, extra_ids, self.entity)
        parts = [arrow_ids(self.raw_ids, self.entity), ids.filter(pa.array(self._index.find(ids) < 0))]
        ids = pa.concat_arrays([part for part in parts if len(part)] or parts[:1])
        found = IdIndex(id_numpy(listed), np.arange(len(listed)), f"the {self.entity} table").find(ids)
        _refuse_rowless(others, ids[len(self) :], found[len(self) :])
        attributes = _updated(self.attributes, later, found, own.column, ids)
        known = encoder.encode(attributes, [own.name, *(spec.name for spec in others)])
        unknown = self.features.select(torch.tensor([len(self)]))
        return _table(encoder, self.entity, ids, attributes, known, unknown)

    def __len__(self) -> int:
        return len(self.raw_ids)

    def positions(self, raw: Any) -> Tensor:
        """Positions of raw ids [B] (list, numpy, pandas or Arrow), int64; -1 for unknown ones and nulls.

        Raises ValueError for ids of another type than the catalogue's.
        """
        return torch.from_numpy(self._index.find(arrow_ids(raw, f"{self.entity} ids")))

    def gather(self, positions: Tensor, names: Sequence[str] | None = None) -> Batch:
        """The features (or the named ones) of positions [B]; -1 is the unknown entity.

        Raises ValueError for a position outside the table, and for -1 where a feature has no value for it.
        """
        self._check(positions)
        chosen = self.features if names is None else Batch(features={name: self.features[name] for name in names})
        refusing = [name for name in self.refusing if name in chosen.features]
        if refusing and bool((positions < 0).any()):
            raise ValueError(f'features {refusing} have no row for an unknown {self.entity}: unseen = "refuse"')
        return chosen.select(torch.where(positions < 0, len(self), positions))

    def raw(self, positions: Tensor | Sequence[int]) -> Ids:
        """Raw ids of positions [B]; None for -1 (then the array is of objects)."""
        places = torch.as_tensor(positions, dtype=torch.int64)
        self._check(places)
        rows = places.numpy()
        ids: Ids = np.append(self.raw_ids.astype(object), [None]) if (rows < 0).any() else self.raw_ids
        found: Ids = ids[rows]
        return found

    def column(self, name: str) -> pa.ChunkedArray:
        """A raw attribute [n], for filters. Raises ValueError naming those that there are."""
        if name not in self.attributes.column_names:
            raise ValueError(f"{self.entity}s have no attribute {name!r}; they have {self.attributes.column_names}")
        return self.attributes[name]

    def save(self, folder: Path | str) -> None:
        """Three files in a folder, each written whole; the last one holds the checksums of the others."""
        folder = Path(folder)
        sink = pa.BufferOutputStream()
        pq.write_table(self.attributes, sink, compression="zstd")
        storage.write_bytes(folder / ATTRIBUTES, sink.getvalue().to_pybytes())
        storage.write_bytes(folder / FEATURES, safetensors.torch.save(_tensors(self.features)))
        record = {
            "format": FORMAT,
            "entity": self.entity,
            "id_column": self.id_column,
            "refusing": self.refusing,
            "order": list(self.features.features),
            "sha256": {name: storage.sha256_file(folder / name) for name in (ATTRIBUTES, FEATURES)},
        }
        storage.write_json(folder / RECORD, record)

    @staticmethod
    def load(folder: Path | str) -> "EntityTable":
        """The inverse of `save`. Raises ValueError naming a file that is not what was saved."""
        folder = Path(folder)
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise ValueError(f"{folder}: entity table format {record.get('format')!r}, this version reads {FORMAT}")
        for name, expected in record["sha256"].items():
            if storage.sha256_file(folder / name) != expected:
                raise ValueError(f"{folder / name} is damaged: its checksum is not the one recorded")
        attributes = pq.read_table(folder / ATTRIBUTES)
        ids = arrow_ids(attributes[record["id_column"]], f"{record['entity']} ids")
        return EntityTable(
            entity=record["entity"],
            id_column=record["id_column"],
            raw_ids=id_numpy(ids),
            features=_batch(safetensors.torch.load_file(folder / FEATURES), record["order"]),
            attributes=attributes,
            refusing=tuple(record["refusing"]),
        )

    def _check(self, positions: Tensor) -> None:
        if len(positions) and not (int(positions.min()) >= -1 and int(positions.max()) < len(self)):
            span = f"{int(positions.min())}..{int(positions.max())}"
            raise ValueError(f"{self.entity} positions span {span}, accepted -1..{len(self) - 1}")

    @cached_property
    def _index(self) -> IdIndex:
        return IdIndex(self.raw_ids, np.arange(len(self.raw_ids)), f"the {self.entity} table")


def _specs(schema: FeatureSchema, entity: Entity) -> list[FeatureSpec]:
    """The features of an entity, its own id first."""
    own = schema.feature(schema.user if entity == "user" else schema.item)
    return [own, *(spec for spec in schema.of_entity(entity) if spec.name != own.name)]


def _read(
    own: FeatureSpec, raw: pa.Table | None, extra_ids: Any, entity: Entity
) -> tuple[pa.Table, pa.Array, pa.Array]:  # fmt: skip
    """The raw table (an empty one for none), its ids, and all distinct ids, ascending."""
    extra = arrow_ids(extra_ids, f"{entity} ids")
    table = pa.table({own.column: extra[:0]}) if raw is None else raw
    listed = _listed_ids(table, own, entity)
    return table, listed, _union(listed, extra, entity)


def _table(
    encoder: Encoder,
    entity: Entity,
    ids: pa.Array,
    attributes: pa.Table,
    known: Mapping[str, Tensor | Jagged],
    unknown: Batch | None = None,
) -> EntityTable:
    """The table of these entities, with the row of an unknown one; unknown: that row as it was, for what is no id."""
    own, *others = _specs(encoder.schema, entity)
    last = {spec.name: _unknown(encoder, spec, known[spec.name], spec is own) for spec in (own, *others)}
    if unknown is not None:
        last |= {spec.name: unknown[spec.name] for spec in others if spec.kind == "dense" or spec.bucketised}
    return EntityTable(
        entity=entity,
        id_column=own.column,
        raw_ids=id_numpy(ids),
        features=concat([Batch(features=dict(known)), Batch(features=last)]),
        attributes=attributes,
        refusing=tuple(spec.name for spec in (own, *others) if _refuses_unknown(encoder, spec, spec is own)),
    )


def _listed_ids(table: pa.Table, own: FeatureSpec, entity: str) -> pa.Array:
    if own.column not in table.column_names:
        raise ValueError(f"the {entity} table lacks the id column {own.column!r}; it has {table.column_names}")
    ids = arrow_ids(table[own.column], f"the {entity} table, column {own.column!r}")
    if ids.null_count:
        row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"the {entity} table, row {row}: the id in column {own.column!r} is missing")
    return ids


def _union(listed: pa.Array, extra: pa.Array, entity: str) -> pa.Array:
    """Distinct ids of both, ascending."""
    given = [ids for ids in (listed, extra) if ids.null_count < len(ids)] or [listed]
    if len({ids.type for ids in given}) > 1:
        raise ValueError(f"{entity} ids are {listed.type} in the {entity} table and {extra.type} in the events")
    ids = pa.concat_arrays(given)
    distinct, _, _ = sorted_counts(ids, np.ones(len(ids), dtype=np.int64), f"{entity} ids")
    return pa.array(distinct, type=ids.type)


def _attributes(table: pa.Table, id_column: str, ids: pa.Array, found: Any) -> pa.Table:
    """The raw rows in catalogue order, null where there is none, with the id everywhere."""
    taken = table.take(pa.array(found, mask=found < 0)).combine_chunks()
    return taken.set_column(taken.column_names.index(id_column), id_column, ids)


def _attribute_features(
    encoder: Encoder, table: pa.Table, specs: Sequence[FeatureSpec], ids: pa.Array, found: Any
) -> dict[str, Tensor | Jagged]:
    """Features other than the id, encoded from the raw table, so that messages name its rows, then put in order."""
    if not specs:
        return {}
    names = [spec.name for spec in specs]
    rows = Batch(features=encoder.encode(table, names))
    _refuse_rowless(specs, ids, found)
    if (found < 0).any():
        blank = pa.table({field.name: pa.nulls(1, field.type) for field in table.schema})
        rows = concat([rows, Batch(features=encoder.encode(blank, names))])
    return dict(rows.select(torch.from_numpy(np.where(found < 0, table.num_rows, found))).features)


def _refuse_rowless(specs: Sequence[FeatureSpec], ids: pa.Array, found: Any) -> None:
    """Refuse ids without a row of the raw table where a feature may not be missing."""
    without = np.flatnonzero(found < 0)
    refusing = [spec.name for spec in specs if spec.missing == "refuse"]
    if len(without) and refusing:
        missing_id = ids[int(without[0])].as_py()
        raise ValueError(f"features {refusing} refuse missing values, but id {missing_id!r} has no row in the table")


def _updated(older: pa.Table, later: pa.Table, found: Any, id_column: str, ids: pa.Array) -> pa.Table:
    """Raw rows of all ids [n], those of `older` first: what `later` has in row found[i], else what was known."""
    kinds = pa.unify_schemas(
        [pa.schema([field for field in table.schema if field.name != id_column]) for table in (older, later)],
        promote_options="permissive",
    )
    places = np.append(np.arange(older.num_rows), np.full(len(ids) - older.num_rows, -1))
    columns = {id_column: pa.chunked_array([ids])}
    for kind in kinds:
        chunks: list[pa.Array] = []
        rows = np.full(len(ids), -1)
        for table, own in ((older, places), (later, found)):
            if table.num_rows and kind.name in table.column_names:
                column = table[kind.name].cast(kind.type)
                valid = (own >= 0) & column.is_valid().to_numpy()[own]
                rows = np.where(valid, own + sum(len(chunk) for chunk in chunks), rows)
                chunks += column.chunks
        columns[kind.name] = pa.chunked_array(chunks, kind.type).take(pa.array(rows, mask=rows < 0))
    return pa.table(columns).combine_chunks()


def _unknown(encoder: Encoder, spec: FeatureSpec, known: Tensor | Jagged, is_own: bool) -> Tensor | Jagged:
    """One row for an unknown entity, [1]; a placeholder where `_refuses_unknown`."""
    if isinstance(known, Jagged):
        weights = None if known.weights is None else known.weights[:0]
        return Jagged(values=known.values[:0], offsets=torch.zeros(2, dtype=torch.int64), weights=weights)
    if spec.hashed:
        return torch.from_numpy(hash_ids(pa.nulls(1, pa.int64())))
    if spec.kind == "dense" or spec.bucketised:
        if spec.missing == "refuse":
            return known.median().reshape(1) if len(known) else torch.zeros(1, dtype=known.dtype)
        null = pa.table({spec.column: pa.nulls(1, pa.float64())})
        return encoder.encode(null, [spec.name])[spec.name]
    vocabulary = encoder.vocabularies[spec.vocabulary]
    row = vocabulary.null_index if _null_stands_for_unknown(vocabulary, spec, is_own) else None
    return torch.tensor([0 if row is None else row + vocabulary.offset])


def _refuses_unknown(encoder: Encoder, spec: FeatureSpec, is_own: bool) -> bool:
    """Whether an unknown entity has no row: its id may not be unseen, and no null was seen that could stand for it."""
    if spec.kind != "id" or spec.unseen != "refuse":
        return False
    return not _null_stands_for_unknown(encoder.vocabularies[spec.vocabulary], spec, is_own)


def _null_stands_for_unknown(vocabulary: Vocabulary, spec: FeatureSpec, is_own: bool) -> bool:
    return not is_own and spec.missing == "own_id" and vocabulary.null_index is not None


def _tensors(batch: Batch) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, column in batch.features.items():
        if isinstance(column, Jagged):
            named |= {f"{name}.values": column.values, f"{name}.offsets": column.offsets}
            named |= {} if column.weights is None else {f"{name}.weights": column.weights}
        else:
            named[name] = column
    return {name: tensor.contiguous() for name, tensor in named.items()}


def _batch(tensors: dict[str, Tensor], order: Sequence[str]) -> Batch:
    features: dict[str, Tensor | Jagged] = {}
    for name in order:
        offsets = tensors.get(f"{name}.offsets")
        if offsets is None:
            features[name] = tensors[name]
        else:
            values, weights = tensors[f"{name}.values"], tensors.get(f"{name}.weights")
            features[name] = Jagged(values=values, offsets=offsets, weights=weights)
    return Batch(features=features)

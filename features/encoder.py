"""Raw columns -> what models receive: `Encoder`, a schema with all that was learned from the train split.

The schema says what a column means; an encoder adds the vocabularies and the statistics of transforms, and turns Arrow
tables into tensors. It reads no files of data and cuts no histories (features/histories.py does).

How kinds are encoded:
  id              row of the vocabulary; hashed: a 64-bit hash (features/vocab.py, `hash_ids`); bucketised: the bucket
  id_list         Jagged of the same; from Arrow lists, or text joined by the separator (integers where the vocabulary,
                  learned beside it from another column, holds integers)
  id_score_list   Jagged with weights; from lists of structs (id, score), or texts "id:score" joined by the separator
  dense           float32; null and NaN are missing; infinite values are refused
  a sequence      lists of the ids of the feature that it repeats (no buckets), for tables that hold such lists
  an age          lists of whole seconds (by time), or of places from the newest (by position), as `Age.ids` counts them

A bucketised id has no vocabulary: b boundaries make b + 1 rows, and with missing = "own_id" one more, row 0, for nulls.

Shapes: B rows, N values of a ragged column.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from features import storage
from features.batch import Batch, Jagged
from features.columns import Column, Frame, Lists, as_table
from features.hashes import hash_ids
from features.labels import read_group, read_labels, read_weights
from features.raw_ids import Refuse
from features.spec import Age, FeatureSchema, FeatureSpec
from features.transforms import Statistic, boundaries_of, fitted, needs_statistic, transformed
from features.vocab import Rows, Vocabulary

__all__ = ["Encoder", "Statistic"]

FORMAT = 1


class Encoder:
    """A schema, its vocabularies by name, and the statistics of its transforms by feature.

    Raises ValueError naming what is missing, superfluous, or disagrees with the schema.
    Example: encoder = Encoder.fit(schema, train_frame); batch = encoder.batch(frame)
    """

    def __init__(
        self,
        schema: FeatureSchema,
        vocabularies: Mapping[str, Vocabulary],
        statistics: Mapping[str, Statistic] | None = None,
    ) -> None:
        self.schema = schema
        self.vocabularies = dict(vocabularies)
        self.statistics = dict(statistics or {})
        _same_names("vocabularies", self.vocabularies, schema.vocabularies, schema.vocabularies)
        with_transforms = [spec.name for spec in schema.features if spec.transforms]
        needed = [spec.name for spec in schema.features if needs_statistic(spec.transforms)]
        _same_names("statistics", self.statistics, needed, with_transforms)
        for name, specs in schema.vocabularies.items():
            if self.vocabularies[name].unseen != specs[0].unseen:
                raise ValueError(
                    f"vocabulary {name!r} was built with another `unseen` than the schema's {specs[0].unseen!r}"
                )

    @staticmethod
    def from_counts(
        schema: FeatureSchema,
        counts: Mapping[str, tuple[Any, Any]],
        statistics: Mapping[str, Statistic] | None = None,
    ) -> "Encoder":
        """From occurrences in the train split: vocabulary name -> (raw ids, counts), as SQL gives them.

        Raw ids are lists, numpy, pandas or Arrow arrays; an id may stand several times (for instance once per feature
        that shares the vocabulary); a null becomes an entry of its own.
        """
        _same_names("counts", counts, schema.vocabularies, schema.vocabularies)
        policies = {name: specs[0] for name, specs in schema.vocabularies.items()}
        vocabularies = {
            name: Vocabulary.from_counts(name, *counts[name], unseen=spec.unseen, min_count=spec.min_count)
            for name, spec in policies.items()
        }
        return Encoder(schema, vocabularies, statistics)

    @staticmethod
    def fit(schema: FeatureSchema, frame: Frame) -> "Encoder":
        """Learn vocabularies and statistics from a train table in memory (pandas or Arrow), users and items joined.

        Raises ValueError naming feature, row and value where a policy of the schema is broken.
        """
        table = as_table(frame, [spec.column for spec in schema.features])
        ids = {name: _train_ids(specs, table) for name, specs in schema.vocabularies.items()}
        counts = {name: (values, np.ones(len(values), dtype=np.int64)) for name, values in ids.items()}
        statistics = {}
        for spec in schema.features:
            if spec.transforms:
                column = _column(table, spec)
                values, missing = column.numbers()
                present = np.flatnonzero(~missing)
                statistics[spec.name] = fitted(values[present], spec.transforms, _refuse_at(column, present))
        return Encoder.from_counts(schema, counts, statistics)

    def with_schema(self, schema: FeatureSchema) -> "Encoder":
        """The same vocabularies and statistics under a schema that adds features, none of which learns its own."""
        return Encoder(schema, self.vocabularies, self.statistics)

    def grown(self, counts: Mapping[str, tuple[Any, Any]]) -> "Encoder":
        """The encoder after later data: every vocabulary `grown` by (raw ids, counts) of that data, all rows kept.

        counts: as in `from_counts`; a vocabulary that is not named stays as it is. Statistics of transforms stay too:
        the numbers that a trained model was given must not shift under it. Hashed ids need no growth.
        """
        _same_names("counts", counts, (), self.vocabularies)
        later = {name: self.vocabularies[name].grown(*found) for name, found in counts.items()}
        return Encoder(self.schema, self.vocabularies | later, self.statistics)

    def check_extends(self, older: "Encoder") -> None:
        """Raise ValueError unless this encodes as `older` does, but for ids that `older` had not seen.

        That is: the same schema and statistics, and vocabularies that extend those of `older`. It names the schema, the
        feature, or the vocabulary and its first row that differs.
        """
        if self.schema.content_hash != older.schema.content_hash:
            raise ValueError(f"schema {self.schema.name!r} is not the one ({older.schema.name!r}) of the older encoder")
        for name in sorted(self.statistics.keys() | older.statistics.keys()):
            if self.statistics.get(name) != older.statistics.get(name):
                raise ValueError(f"feature {name!r} has other statistics of its transforms than in the older encoder")
        for name, vocabulary in self.vocabularies.items():
            vocabulary.check_extends(older.vocabularies[name])

    def encode(self, table: pa.Table, names: Sequence[str], *, first_row: int = 0) -> dict[str, Tensor | Jagged]:
        """The named features of a table's rows: int64 [B], float32 [B], or Jagged of int64 [N].

        first_row: the number of the table's first row in a larger whole, for messages. Raises ValueError naming
        feature, row and value for what a policy of the schema refuses, and for a column that is absent.
        """
        return {name: self._encode(self.schema.feature(name), table, first_row) for name in names}

    def batch(self, frame: Frame, labels: bool = True) -> Batch:
        """The features of rows (not the sequences) of a whole frame; with labels, also labels, weights and group.

        With labels, rows that a label drops are left out, and a planted probability becomes the label "probability".
        """
        schema = self.schema
        columns = [spec.column for spec in schema.features] + [spec.column for spec in schema.labels]
        table = as_table(frame, [*columns, schema.weight, schema.group, schema.probability])
        features = self.encode(table, [spec.name for spec in schema.features if not spec.history_only])
        if not labels:
            return Batch(features=features)
        values, keep = self.labels(table)
        batch = Batch(
            features=features,
            labels=values,
            weights=read_weights(schema, table),
            group=read_group(schema, table),
        )
        return batch if bool(keep.all()) else batch.select(keep.nonzero().flatten())

    def labels(self, table: pa.Table, *, first_row: int = 0) -> tuple[dict[str, Tensor], Tensor]:
        """Labels by name, float32 [B], by the rules of their `LabelSpec`, and which rows to keep, bool [B].

        The schema's probability column, where it names one, is the label "probability". Raises ValueError naming
        label, row and value for a missing or infinite one.
        """
        return read_labels(self.schema, table, first_row)

    def num_embeddings(self, feature: str) -> int | None:
        """Rows that ids of this feature reach, special rows included; None when hashed. A dense one is refused."""
        source = self._id_source(feature)
        if source.hashed:
            return None
        if source.bucketised:
            return len(self._boundaries(source)) + 1 + _missing_rows(source)
        if source.vocabulary in self.schema.ages:
            return self.schema.ages[source.vocabulary].buckets
        return self.vocabularies[source.vocabulary].num_rows

    def counts(self, feature: str) -> Tensor | None:
        """Occurrences in train by row, int64 [num_embeddings], 0 for the row of unseen ids.

        None where they were not counted: hashed ids, ages, buckets without counts in their statistic.
        """
        source = self._id_source(feature)
        if source.hashed or source.vocabulary in self.schema.ages:
            return None
        if not source.bucketised:
            return torch.from_numpy(self.vocabularies[source.vocabulary].row_counts())
        counts = self._statistic(source).counts
        return torch.tensor([0] * _missing_rows(source) + list(counts)) if counts else None

    def save(self, folder: Path | str) -> None:
        """schema.json, statistics.json and vocab/<name>.parquet in a folder, each written whole."""
        folder = Path(folder)
        storage.write_text(folder / "schema.json", self.schema.to_json())
        for name, vocabulary in self.vocabularies.items():
            vocabulary.save(folder / "vocab" / f"{name}.parquet")
        record = {
            "format": FORMAT,
            "content_hash": self.content_hash,
            "statistics": {name: statistic.model_dump(mode="json") for name, statistic in self.statistics.items()},
        }
        storage.write_json(folder / "statistics.json", record)

    @staticmethod
    def load(folder: Path | str) -> "Encoder":
        """The inverse of `save`. Raises ValueError naming the folder where its files are not of one saving."""
        folder = Path(folder)
        schema = FeatureSchema.from_json((folder / "schema.json").read_text(encoding="utf-8"))
        record = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise ValueError(f"{folder}: encoder format {record.get('format')!r}, this version reads {FORMAT}")
        names = schema.vocabularies
        vocabularies = {name: Vocabulary.load(folder / "vocab" / f"{name}.parquet") for name in names}
        statistics = {name: Statistic.model_validate(value) for name, value in record["statistics"].items()}
        encoder = Encoder(schema, vocabularies, statistics)
        if encoder.content_hash != record["content_hash"]:
            raise ValueError(f"{folder} is damaged: content hash {encoder.content_hash} is not the one recorded")
        return encoder

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of schema, statistics and vocabularies, hex."""
        parts = {
            "schema": self.schema.content_hash,
            "statistics": {name: statistic.model_dump(mode="json") for name, statistic in self.statistics.items()},
            "vocabularies": {name: vocabulary.content_hash for name, vocabulary in self.vocabularies.items()},
        }
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _encode(self, spec: FeatureSpec, table: pa.Table, first_row: int) -> Tensor | Jagged:
        column = _column(table, spec, first_row)
        source = self.schema.source(spec.name)
        if spec.is_list and source.bucketised:
            raise ValueError(f"sequence {spec.name!r} repeats buckets; it is cut from a history, not read from a table")
        if spec.kind == "dense":
            return torch.from_numpy(self._dense(spec, column))
        if spec.kind == "id" and source.bucketised:
            return torch.from_numpy(self._buckets(source, column))
        if spec.kind == "id":
            ids = _policed(column.ids(), spec, column.refuse)
            return torch.from_numpy(self._rows(source, ids, column.refuse))
        lists = self._lists(spec, source, column)
        rows = self._rows(source, lists.ids, lists.refuse)
        weights = None if lists.scores is None else torch.from_numpy(lists.scores.astype(np.float32))
        return Jagged(values=torch.from_numpy(rows), offsets=torch.from_numpy(lists.offsets), weights=weights)

    def _lists(self, spec: FeatureSpec, source: FeatureSpec, column: Column) -> Lists:
        lists = _lists(spec, column)
        vocabulary = self.vocabularies.get(source.vocabulary)
        counted = source.vocabulary in self.schema.ages
        if lists.textual and (counted or (vocabulary is not None and vocabulary.holds_integers)):
            return lists.integers()
        return lists

    def _rows(self, source: FeatureSpec, ids: pa.Array, refuse: Refuse) -> Rows:
        if source.hashed:
            return hash_ids(ids)
        if source.vocabulary in self.schema.ages:
            return _age_ids(self.schema.ages[source.vocabulary], ids, refuse)
        vocabulary = self.vocabularies[source.vocabulary]
        if not vocabulary.accepts(ids):
            place = int(np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))[0])
            refuse(
                place, f"vocabulary {vocabulary.name!r} holds {'integers' if vocabulary.holds_integers else 'texts'}"
            )
        rows = vocabulary.find(ids)
        unseen = np.flatnonzero(rows < 0)
        if len(unseen) and source.unseen == "refuse":
            refuse(int(unseen[0]), f"vocabulary {source.vocabulary!r} has no such id")
        rows[unseen] = 0
        return rows

    def _buckets(self, spec: FeatureSpec, column: Column) -> Rows:
        values, missing = column.numbers()
        _refuse_missing(spec, missing, column.refuse)
        present = np.flatnonzero(~missing)
        rows = np.zeros(len(values), dtype=np.int64)
        found = transformed(values[present], spec.transforms, self._statistic(spec), _refuse_at(column, present))
        rows[present] = found.astype(np.int64) + _missing_rows(spec)
        return rows

    def _dense(self, spec: FeatureSpec, column: Column) -> Any:
        values, missing = column.numbers()
        _refuse_missing(spec, missing, column.refuse)
        if isinstance(spec.missing, float):
            values[missing] = spec.missing
        values = transformed(values, spec.transforms, self._statistic(spec), column.refuse)
        column.refuse_first(np.abs(values) > np.finfo(np.float32).max, "the number does not fit float32")
        return values.astype(np.float32)

    def _statistic(self, spec: FeatureSpec) -> Statistic:
        return self.statistics.get(spec.name, Statistic())

    def _boundaries(self, spec: FeatureSpec) -> tuple[float, ...]:
        return boundaries_of(spec.transforms, self._statistic(spec))

    def _id_source(self, feature: str) -> FeatureSpec:
        source = self.schema.source(feature)
        if not source.is_id:
            raise ValueError(f"feature {feature!r} is dense and reads no table")
        return source


def _column(table: pa.Table, spec: FeatureSpec, first_row: int = 0) -> Column:
    return Column.of(table, spec.column, f"feature {spec.name!r}", first_row)


def _lists(spec: FeatureSpec, column: Column) -> Lists:
    """The lists that a model sees: null lists and ids checked, cut to the last max_length."""
    if spec.missing == "refuse":
        _refuse_missing(spec, column.values.is_null().to_numpy(zero_copy_only=False), column.refuse)
    lists = column.lists(spec.separator, spec.kind == "id_score_list")
    lists = lists if spec.max_length is None else lists.last(spec.max_length)
    _policed(lists.ids, spec, lists.refuse)
    return lists


def _age_ids(age: Age, distances: pa.Array, refuse: Refuse) -> Rows:
    if len(distances) and not pa.types.is_int64(distances.type):
        refuse(0, f"an age by {age.by} is a whole number")
    numbers: Rows = distances.to_numpy(zero_copy_only=False).astype(np.int64)
    for place in np.flatnonzero(numbers < age.least)[:1].tolist():
        refuse(place, f"an age by {age.by} is at least {age.least}")
    return age.ids(numbers)


def _train_ids(specs: Sequence[FeatureSpec], table: pa.Table) -> pa.Array:
    """All ids of the features that share a vocabulary; textual ones become integers where the others are integers."""
    plain: dict[str, pa.Array] = {}
    textual: dict[str, Lists] = {}
    for spec in specs:
        column = _column(table, spec)
        if spec.kind == "id":
            plain[spec.name] = _policed(column.ids(), spec, column.refuse)
            continue
        lists = _lists(spec, column)
        if lists.textual:
            textual[spec.name] = lists
        else:
            plain[spec.name] = lists.ids
    known = [ids for ids in plain.values() if ids.null_count < len(ids)]
    integers = all(pa.types.is_int64(ids.type) for ids in known) and bool(known or not textual)
    kind = pa.int64() if integers else pa.large_string()
    read = {name: lists.integers().ids if integers else lists.ids for name, lists in textual.items()}
    return _one_array(plain | read, kind)


def _one_array(ids: Mapping[str, pa.Array], kind: pa.DataType) -> pa.Array:
    parts = [pa.nulls(len(part), kind) if part.null_count == len(part) else part for part in ids.values()]
    if any(part.type != kind for part in parts):
        types = {name: str(part.type) for name, part in ids.items()}
        raise ValueError(f"features that share a vocabulary must all hold integers or all strings, got {types}")
    return pa.concat_arrays(parts)


def _policed(ids: pa.Array, spec: FeatureSpec, refuse: Refuse) -> pa.Array:
    if ids.null_count:
        _refuse_missing(spec, ids.is_null().to_numpy(zero_copy_only=False), refuse)
    return ids


def _refuse_missing(spec: FeatureSpec, missing: Any, refuse: Refuse) -> None:
    places = np.flatnonzero(missing)
    if spec.missing == "refuse" and len(places):
        refuse(int(places[0]), 'the value is missing and missing = "refuse"')


def _missing_rows(spec: FeatureSpec) -> int:
    return 1 if spec.missing == "own_id" else 0


def _refuse_at(column: Column, places: Rows) -> Refuse:
    """The refusal of a value chosen out of a column, at its place in the column."""
    return lambda index, reason: column.refuse(int(places[index]), reason)


def _same_names(what: str, given: Iterable[str], needed: Iterable[str], allowed: Iterable[str]) -> None:
    absent, foreign = sorted(set(needed) - set(given)), sorted(set(given) - set(allowed))
    if absent or foreign:
        raise ValueError(f"{what} do not fit the schema: missing {absent}, not in it {foreign}")

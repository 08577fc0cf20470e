"""What is learned from the train examples, computed in the database: vocabularies, statistics of transforms.

The same numbers as `Encoder.fit` learns from a frame in memory, of any size of log: ids and numbers are grouped to
(value, rows) first, on disk, and only distinct ids and one batch of numbers are ever held.

Shapes: n distinct values of a batch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.catalogue import ROWS, Catalogue, Entity
from features.database import Database
from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec
from features.transforms import Bucketise, Floats, Standardise, Statistic, Transform, transformed
from features.vocab import Vocabulary

VALUE = "value"


class Fitter:
    """Learns an encoder. train: the examples of the train split, as in the log. past: the events of that split that
    stand in histories, of which features of past events alone are learned; None where the schema has none of these.
    """

    def __init__(
        self,
        database: Database,
        schema: FeatureSchema,
        train: ir.Table,
        catalogues: Mapping[Entity, Catalogue],
        past: ir.Table | None = None,
    ) -> None:
        self._database, self._schema = database, schema
        self._catalogues = catalogues
        self._rows: dict[str, ir.Table] = {"event": train.mutate(**{ROWS: ibis.literal(1, "int64")})}
        if past is not None:
            self._rows["past"] = past.mutate(**{ROWS: ibis.literal(1, "int64")})
        for entity, catalogue in catalogues.items():
            self._rows[entity] = database.store(f"train_rows_{entity}", catalogue.with_train_rows(train))

    def fit(self) -> Encoder:
        """The encoder. Raises ValueError naming a vocabulary whose rare ids are both unseen and refused."""
        vocabularies = {name: self._vocabulary(name, specs) for name, specs in self._schema.vocabularies.items()}
        with_transforms = [spec for spec in self._schema.features if spec.transforms]
        statistics = {spec.name: self._statistic(spec) for spec in with_transforms}
        return Encoder(self._schema, vocabularies, statistics)

    def counts(self) -> dict[str, tuple[pa.ChunkedArray, NDArray[np.int64]]]:
        """Vocabulary name -> ids and the rows that have each, as `Encoder.grown` takes them."""
        return {name: self._id_counts(specs) for name, specs in self._schema.vocabularies.items()}

    def _vocabulary(self, name: str, specs: tuple[FeatureSpec, ...]) -> Vocabulary:
        policy = specs[0]
        refuses = policy.unseen == "refuse"
        if refuses and policy.min_count > 1:
            raise ValueError(
                f"vocabulary {name!r}: min_count = {policy.min_count} makes rare ids unseen, and unseen = 'refuse' "
                "forbids unseen ids"
            )
        min_count = 0 if refuses else policy.min_count
        return Vocabulary.from_counts(name, *self._id_counts(specs), unseen=policy.unseen, min_count=min_count)

    def _id_counts(self, specs: tuple[FeatureSpec, ...]) -> tuple[pa.ChunkedArray, NDArray[np.int64]]:
        """Of the features of one vocabulary; where unseen ids are refused, with all ids that the catalogues know."""
        counted = [self._counted(spec) for spec in specs]
        counted += [self._known(spec) for spec in specs if spec.unseen == "refuse" and spec.entity != "event"]
        return _chunks([table[VALUE] for table in counted]), np.concatenate([_int64(table[ROWS]) for table in counted])

    def _counted(self, spec: FeatureSpec) -> pa.Table:
        """Distinct ids of a feature in the train examples, and how many rows have each."""
        values = _ids(self._rows["past" if spec.history_only else spec.entity], spec)
        if self._identifies(spec):
            values = values.filter(values[VALUE].notnull())
        return self._database.fetch(_grouped(values))

    def _known(self, spec: FeatureSpec) -> pa.Table:
        """The ids of a feature in the whole catalogue, each with no rows: known, whether trained on or not."""
        catalogue = self._catalogues[spec.entity]  # type: ignore[index]
        tables = [catalogue.listed] if catalogue.listed is not None else []
        if self._identifies(spec):
            tables = [catalogue.seen, *tables]
        found = [_ids(table.mutate(**{ROWS: ibis.literal(0, "int64")}), spec) for table in tables]
        values = ibis.union(*found) if len(found) > 1 else found[0]
        return self._database.fetch(_grouped(values.filter(values[VALUE].notnull())))

    def _identifies(self, spec: FeatureSpec) -> bool:
        return spec.name in (self._schema.user, self._schema.item)

    def _statistic(self, spec: FeatureSpec) -> Statistic:
        rows = self._rows[spec.entity]
        numbers = rows.select(**{VALUE: rows[spec.column].cast("float64"), ROWS: rows[ROWS]})
        grouped = _grouped(numbers.filter(numbers[VALUE].notnull()))
        stored = self._database.store(f"numbers_{spec.name}", grouped.order_by(VALUE))
        return NumberStatistic(self._database, stored, spec).learned()


class NumberStatistic:
    """Learns from the distinct numbers of a feature: a table of VALUE, rising, and ROWS, the rows that have it."""

    def __init__(self, database: Database, numbers: ir.Table, spec: FeatureSpec) -> None:
        self._database, self._numbers, self._spec = database, numbers, spec
        self._count = int(database.value(numbers[ROWS].sum().fill_null(0)))

    def learned(self) -> Statistic:
        """As `transforms.fitted` does from all values."""
        statistic = Statistic()
        for done, transform in enumerate(self._spec.transforms):
            earlier = self._spec.transforms[:done]
            if isinstance(transform, Standardise) and self._count:
                mean, std = self._moments(earlier, statistic)
                statistic = statistic.model_copy(update={"mean": mean, "std": std})
            elif isinstance(transform, Bucketise):
                boundaries = transform.boundaries or self._quantiles(transform.num_buckets or 2, earlier, statistic)
                counts = self._counts(boundaries, earlier, statistic)
                statistic = statistic.model_copy(update={"boundaries": boundaries, "counts": counts})
        return statistic

    def _moments(self, earlier: tuple[Transform, ...], statistic: Statistic) -> tuple[float, float]:
        mean = sum(float(values @ rows) for values, rows in self._reached(earlier, statistic)) / self._count
        squares = sum(float((values - mean) ** 2 @ rows) for values, rows in self._reached(earlier, statistic))
        ends = self._transformed(self._at(np.array([0, self._count - 1])), earlier, statistic)
        return mean, float(np.sqrt(squares / self._count)) if ends[0] < ends[1] else 0.0

    def _quantiles(self, num_buckets: int, earlier: tuple[Transform, ...], statistic: Statistic) -> tuple[float, ...]:
        """Linearly interpolated; transforms before it keep order, so ranks are those of the raw numbers."""
        if not self._count:
            return ()
        places = (self._count - 1) * np.arange(1, num_buckets) / num_buckets
        below = np.floor(places).astype(np.int64)
        ranks = np.unique(np.concatenate([[0], below, np.minimum(below + 1, self._count - 1)]))
        values = self._transformed(self._at(ranks), earlier, statistic)
        inner = np.interp(places, ranks, values)
        return tuple(np.unique(inner[inner > values[0]]).tolist())

    def _counts(
        self, boundaries: tuple[float, ...], earlier: tuple[Transform, ...], statistic: Statistic
    ) -> tuple[int, ...]:
        counts = np.zeros(len(boundaries) + 1, np.int64)
        for values, rows in self._reached(earlier, statistic):
            buckets = np.searchsorted(np.asarray(boundaries), values, side="right")
            np.add.at(counts, buckets, rows)
        return tuple(counts.tolist())

    def _at(self, ranks: NDArray[np.int64]) -> Floats:
        """The raw numbers at these ranks (from 0, rising) of all rows in order."""
        found: list[Floats] = []
        before = 0
        for batch in self._database.stream(self._numbers):
            ends = before + np.cumsum(_int64(batch[ROWS]))
            inside = ranks[(ranks >= before) & (ranks < ends[-1])]
            found.append(batch[VALUE].to_numpy()[np.searchsorted(ends, inside, side="right")])
            before = int(ends[-1])
        return np.concatenate(found)

    def _reached(
        self, earlier: tuple[Transform, ...], statistic: Statistic
    ) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        """The distinct numbers after earlier transforms, and their rows, [n] each, batch by batch."""
        for batch in self._database.stream(self._numbers):
            values = self._transformed(batch[VALUE].to_numpy(), earlier, statistic)
            yield values, _int64(batch[ROWS])

    def _transformed(self, values: Floats, earlier: tuple[Transform, ...], statistic: Statistic) -> Floats:
        def refuse(index: int, reason: str) -> Any:
            raise ValueError(f"feature {self._spec.name!r}: {reason}, got {values[index]}")

        return transformed(values, earlier, statistic, refuse)


def _ids(rows: ir.Table, spec: FeatureSpec) -> ir.Table:
    """(VALUE, ROWS) of every id of a feature, the elements of lists one by one."""
    raw: Any = rows[spec.column]
    if spec.is_list:
        flat = rows.select(**{VALUE: raw.unnest(), ROWS: rows[ROWS]})
        return flat.mutate(**{VALUE: flat[VALUE]["id"]}) if spec.kind == "id_score_list" else flat
    return rows.select(**{VALUE: raw, ROWS: rows[ROWS]})


def _grouped(values: ir.Table) -> ir.Table:
    return values.group_by(VALUE).aggregate(**{ROWS: values[ROWS].sum()})


def _int64(sums: Any) -> NDArray[np.int64]:
    """Sums of integers, which DuckDB makes of 128 bits."""
    numbers: NDArray[np.int64] = sums.cast(pa.int64()).to_numpy()
    return numbers


def _chunks(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Ids of several features below one another; a column of nulls alone takes the type of the others."""
    typed = [column.type for column in columns if column.null_count < len(column)]
    kind = typed[0] if typed else pa.int64()
    return pa.chunked_array([chunk.cast(kind) for column in columns for chunk in column.chunks], kind)

"""What prepared data look like when a feature gives the label away, or test rows were trained on: warnings, no errors.

Three signs, looked for among the examples once they are split; each finding is one sentence.

    gives      one feature alone orders the train rows by a label with an AUC of at least `AUC`: a number as it is (in
               either direction), whether it is missing, or an id by the share of positives among its rows. Ids with
               fewer than `SUPPORT` rows are one id here: one of few rows has its share by chance
    one-sided  ids with a single label and so many rows n that chance would give them with less than `CHANCE`
               (q^n, q being the share of the label), if they have at least `SHARE` of the train rows
    repeated   test rows that stand in train with the same user, item, time and features: at least `REPEATED` of them,
               and twice the share of train rows that have a twin in train (rows of few values repeat by themselves)

At most about `ROWS` train rows are looked at for the first two, chosen by the hash of their number, and none where a
label has fewer than `SUPPORT` rows of either kind. Grouping happens in the database, in its bounded memory. What this
cannot see: a feature that gives the label only together with others, or that is a list; values that later events made.
"""

import math
from collections.abc import Iterator
from typing import Any

import ibis
import ibis.expr.types as ir

from features.database import Database, mix64_column, quoted
from features.hashes import hash64
from features.log_columns import CODE, EXAMPLE, NUMBER, TIME, label_column
from features.logs import Log
from features.source_files import SPLITS
from features.spec import FeatureSchema, FeatureSpec
from features.splits import TRAIN, quantile

AUC = 0.95
SUPPORT = 50
CHANCE = 1e-12
SHARE, REPEATED = 0.05, 0.01
ROWS = 1_000_000
TEST = SPLITS.index("test")
VALUE, COUNT, POSITIVE, OWN, OWN_VALUE = "value", "rows", "positive", "own", "own_value"


def leakage_warnings(database: Database, log: Log, events: ir.Table, schema: FeatureSchema) -> list[str]:
    """The findings, in the order of labels and features. events: the log, split."""
    examples = events.filter(events[EXAMPLE])
    labels = [label_column(label.name) for label in schema.labels]
    found = [*_Sample(database, log, examples, schema).findings()] if labels else []
    return found + _repeated(database, examples, schema, log)


class _Sample:
    """The train rows that are looked at."""

    def __init__(self, database: Database, log: Log, examples: ir.Table, schema: FeatureSchema) -> None:
        self._database, self._log, self._schema = database, log, schema
        train = examples.filter(examples[CODE] == TRAIN)
        count = int(database.value(train.count()))
        if count > ROWS:
            train = train.filter(mix64_column(train[NUMBER], hash64("leakage")) < quantile(ROWS / count))
        self._rows = database.store("leakage_rows", train)

    def findings(self) -> Iterator[str]:
        """For each label, those of each feature; the sample is dropped then."""
        for label in self._schema.labels:
            positive = (self._rows[label_column(label.name)] > 0).cast("int64")
            sums = self._rows.aggregate(**{COUNT: self._rows.count(), POSITIVE: positive.sum()})
            row = self._database.fetch(sums).to_pylist()[0]
            count, positives = int(row[COUNT]), int(row[POSITIVE] or 0)
            if min(positives, count - positives) < SUPPORT:
                continue
            for spec in self._schema.features:
                if not spec.is_list and not spec.history_only:
                    counted = _Counted(self._database, self._values(spec, positive), (count, positives))
                    yield from counted.findings(spec, label.name)
        self._database.drop("leakage_rows")

    def _values(self, spec: FeatureSpec, positive: Any) -> ir.Table:
        """(VALUE, COUNT, POSITIVE) of the sample's rows by the feature's values."""
        home = self._log.homes[spec.name]
        table = {"users": self._log.users, "items": self._log.items}.get(home)
        if table is None:
            return _by_value(self._rows.select(**{VALUE: self._rows[spec.column], COUNT: 1, POSITIVE: positive}))
        own = self._schema.feature(self._schema.user if home == "users" else self._schema.item).column
        per_id = _by_value(self._rows.select(**{VALUE: self._rows[own], COUNT: 1, POSITIVE: positive}))
        listed = table.select(**{OWN: table[own], OWN_VALUE: table[spec.column]})
        joined = per_id.left_join(listed, per_id[VALUE] == listed[OWN])
        return _by_value(joined.select(**{VALUE: joined[OWN_VALUE], COUNT: joined[COUNT], POSITIVE: joined[POSITIVE]}))


class _Counted:
    """One feature's values with their rows. totals: rows and positive ones of the sample."""

    def __init__(self, database: Database, values: ir.Table, totals: tuple[int, int]) -> None:
        self._database, self._totals = database, totals
        self._values = values

    def findings(self, spec: FeatureSpec, label: str) -> Iterator[str]:
        """At most one sentence: a feature that gives the label is not accused of its ids too."""
        values = self._values
        is_number = spec.kind == "dense" or spec.bucketised
        given = values.filter(values[VALUE].notnull()) if is_number else self._by_share(values)
        missing = values.mutate(**{VALUE: values[VALUE].isnull().cast("float64")})
        auc = max(self._auc(given), self._auc(_by_value(missing)) if is_number else 0.5)
        if auc >= AUC:
            yield (
                f"feature {spec.name!r} alone orders the train rows by label {label!r} with AUC {auc:.4f}: "
                "is it known before the label is?"
            )
        elif not is_number:
            yield from self._one_sided(spec, label)

    def _by_share(self, values: ir.Table) -> ir.Table:
        """Ids as the share of positives among their rows; rare ones as one."""
        shared = values.mutate(**{VALUE: (values[COUNT] >= SUPPORT).ifelse(values[POSITIVE] / values[COUNT], -1.0)})
        pooled = _by_value(shared)
        return _by_value(pooled.mutate(**{VALUE: pooled[POSITIVE] / pooled[COUNT]}))

    def _auc(self, values: ir.Table) -> float:
        """Of values that each stand once, ties counting half; at least .5, the direction being free."""
        negative = values[COUNT] - values[POSITIVE]
        before = negative.sum().over(ibis.window(order_by=values[VALUE], preceding=None, following=0)) - negative
        won = (values[POSITIVE] * (before + negative / 2)).cast("float64")
        sums = values.mutate(won=won).aggregate(
            won=ibis._["won"].sum(), positive=ibis._[POSITIVE].sum(), rows=ibis._[COUNT].sum()
        )
        row = self._database.fetch(sums).to_pylist()[0]
        positives, negatives = int(row["positive"] or 0), int((row["rows"] or 0) - (row["positive"] or 0))
        if min(positives, negatives) < SUPPORT:
            return 0.5
        auc = float(row["won"]) / positives / negatives
        return max(auc, 1 - auc)

    def _one_sided(self, spec: FeatureSpec, label: str) -> Iterator[str]:
        count, positives = self._totals
        values = self._values.filter(self._values[VALUE].notnull())
        for what, share, condition in (
            ("a positive", positives / count, values[POSITIVE] == values[COUNT]),
            ("no positive", 1 - positives / count, values[POSITIVE] == 0),
        ):
            enough = max(SUPPORT, math.ceil(math.log(CHANCE) / math.log(share)))
            pure = values.filter(condition, values[COUNT] >= enough)
            row = self._database.fetch(
                pure.aggregate(ids=pure.count(), rows=pure[COUNT].sum(), shown=pure[VALUE].argmax(pure[COUNT]))
            ).to_pylist()[0]
            if row["ids"] and row["rows"] >= SHARE * count:
                yield (
                    f"feature {spec.name!r}: {row['ids']} ids (as {row['shown']!r}) with {enough} rows or more have "
                    f"{what} label {label!r} in every one, {row['rows'] / count:.1%} of the train rows"
                )


def _repeated(database: Database, examples: ir.Table, schema: FeatureSchema, log: Log) -> list[str]:
    """A row is told by a 64-bit hash of its values."""
    features = {spec.column for spec in schema.features if log.homes[spec.name] == "events" and not spec.history_only}
    ids = {schema.feature(name).column for name in (schema.user, schema.item) if name}
    columns = ", ".join(quoted(name) for name in sorted(features | ids | ({TIME} & set(examples.columns))))
    rows = f"(SELECT hash({columns}) AS row, {quoted(CODE)} AS code FROM ({database.sql(examples)}))"
    database.run(f"CREATE TABLE leakage_test AS SELECT row FROM {rows} WHERE code = {TEST}")
    database.run(
        f"CREATE TABLE leakage_found AS SELECT DISTINCT row FROM {rows} "
        f"WHERE code = {TRAIN} AND row IN (SELECT row FROM leakage_test)"
    )
    test = database.table("leakage_test")
    count = int(database.value(test.count()))
    repeated = int(database.value(test.semi_join(database.table("leakage_found"), "row").count()))
    usual = _twice_in_train(database, rows, examples) if repeated >= max(REPEATED * count, 1) else 1.0
    database.drop("leakage_test", "leakage_found")
    if repeated <= 2 * usual * count:
        return []
    return [
        f"{repeated} of {count} test rows stand in train too, with the same user, item, time and features; of train "
        f"rows {usual:.1%} do so twice"
    ]


def _twice_in_train(database: Database, rows: str, examples: ir.Table) -> float:
    """The share of train rows that have a twin in train; of some of the hashes, where there are many."""
    count = int(database.value(examples.filter(examples[CODE] == TRAIN).count()))
    some = f"SELECT count(*) AS n FROM {rows} WHERE code = {TRAIN} AND row % {max(count // ROWS, 1)} = 0 GROUP BY row"
    database.run(f"CREATE TABLE leakage_twins AS SELECT sum(n) FILTER (n > 1) AS twins, sum(n) AS rows FROM ({some})")
    found = database.fetch(database.table("leakage_twins")).to_pylist()[0]
    database.drop("leakage_twins")
    return float(found["twins"] or 0) / float(found["rows"] or 1)


def _by_value(rows: ir.Table) -> ir.Table:
    sums = {COUNT: rows[COUNT].sum().cast("int64"), POSITIVE: rows[POSITIVE].sum().cast("int64")}
    return rows.group_by(VALUE).aggregate(**sums)

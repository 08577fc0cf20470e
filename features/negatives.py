"""Which negatives train: those drawn for a log of positives (`with_negatives`), or a share of a log's (`thinned`).

Drawn are rows of items that a user has not, once, when data are prepared.

Each positive example (first label above 0; every one where the log has no column of labels) gets K negatives: the same
row with another item and all labels 0. They inherit context, time, weight, group and, unless `split` is "own", the
split; a column of the row that says something of the item (its price, where the schema makes it an event's) is the
positive's. Features of items are read by the drawn item. Negatives are examples and nothing else: they are in no
history and no catalogue of users and items. An ordered history is cut for them as for their positive; one that is a set
shows an example all but its own target, which would give a negative away by the positive that it shows: refused.

    pool     "uniform": the distinct items of the log's events, once each; "popularity": the items of the positive train
             examples, once for each, so that an item is drawn in proportion to them (one without any: never)
    draw     j of row number n: pool[(mix64(n, salt) mod 2^63) mod len(pool)], the salt: the hash of seed, j and attempt
    refused  an item that the user has in any event of the whole log, of every split, before or after; one that an
             earlier draw of the row took. A refused draw is made again, ATTEMPTS times; the few that are left then
             (of users who have nearly everything) take the rest of the pool in a hashed order

Both are draws without replacement within the row, exactly. A user who has too much gets fewer negatives, never a wrong
one. Everything follows from row numbers, seed and log; the database's limit bounds the memory. Of a log that is
prepared by the day, the whole log is the day's.

"In batch" negatives are made by training, for retrievers alone (`recsys.models.retrieval_loss`): they need a score
that splits into a user's and an item's vector, so that a batch of B rows costs B + B vectors and not B x B rows. A
ranker scores rows; its negatives are rows, and these are made here. Such a model's probabilities are relative to
K negatives a positive and not those of any log.

Thinned: of the train examples whose first label is at most 0, row number n stays where the int64 mix64(n, hash of the
seed) is among the lowest `rate` of all. With the share r of negatives, the odds p / (1 - p) of every row become
p / ((1 - p) r), so that a logit learned on them is log(1 / r) too high.
"""

from typing import Any

import ibis
import ibis.expr.types as ir

from features.data_config import DataConfig, DownsampleConfig, NegativesConfig
from features.database import Database, mix64_column
from features.hashes import hash64
from features.log_columns import CODE, EXAMPLE, NEGATIVE, NUMBER, label_column
from features.spec import FeatureSchema
from features.splits import TRAIN, quantile

ATTEMPTS = 16
DRAW, PLACE, DRAWN = "__draw", "__place", "__drawn"
_POSITIVE = (1 << 63) - 1


def check_negatives(schema: FeatureSchema, config: DataConfig) -> None:
    """Raise ValueError where drawing or thinning negatives would be undefined with this schema."""
    if config.downsample is not None and not schema.labels:
        raise ValueError(f"data.downsample needs a label in schema {schema.name!r}")
    if config.downsample is not None and config.positive:
        raise ValueError("data.downsample: with data.examples = 'positive' there are no negatives to leave out")
    if config.negatives is not None and not (schema.user and schema.item and schema.labels):
        raise ValueError(f"data.negatives needs `user`, `item` and a label in schema {schema.name!r}")
    if config.negatives is not None and schema.probability:
        raise ValueError(f"data.negatives: schema {schema.name!r} names a planted probability, which negatives lack")
    if config.negatives is not None and any(not group.ordered for group in schema.sequences):
        raise ValueError(
            "data.negatives: a history without order would show each negative the positive that it was drawn for; give "
            "the schema a `timestamp` and ordered sequences, or leave them out"
        )


def with_negatives(database: Database, events: ir.Table, schema: FeatureSchema, config: NegativesConfig) -> ir.Table:
    """The events and their negatives, stored, in the order of the raw files and each after its positive.

    events: stored, with `EXAMPLE`, and `CODE` unless `config.split` is "own". Added is `NEGATIVE`; numbers are new, as
    unique and rising as they were. Raises ValueError where there is nothing to draw from.
    """
    rows = Drawing(database, events, schema, config).rows()
    item = schema.feature(schema.item).column
    size = config.per_positive + 1
    real = events.mutate(**{NUMBER: events[NUMBER] * size, NEGATIVE: ibis.literal(False)})
    drawn = events.inner_join(rows, NUMBER)
    labels = {label_column(label.name): ibis.literal(0, "int64").cast("float64") for label in schema.labels}
    numbers = {NUMBER: drawn[NUMBER] * size + drawn[DRAW] + 1, item: drawn[DRAWN]}
    made = drawn.mutate(**numbers, **labels, **{NEGATIVE: ibis.literal(True)}).select(*real.columns)
    return database.store("events_with_negatives", ibis.union(real, made).order_by(NUMBER))


def thinned(events: ir.Table, schema: FeatureSchema, config: DownsampleConfig) -> ir.Table:
    """The events, of which negative train examples are examples with probability `rate`; they stay events."""
    hashed = mix64_column(events[NUMBER], hash64(str(config.seed), salt="downsample"))
    spared = (events[CODE] != TRAIN) | (events[label_column(schema.labels[0].name)] > 0)
    return events.mutate(**{EXAMPLE: events[EXAMPLE] & (spared | (hashed < quantile(config.rate)))})


class Drawing:
    """The draws for one log."""

    def __init__(self, database: Database, events: ir.Table, schema: FeatureSchema, config: NegativesConfig) -> None:
        self._database, self._config = database, config
        self._user, self._item = (schema.feature(name).column for name in (schema.user, schema.item))
        positive = events[EXAMPLE] & (events[label_column(schema.labels[0].name)] > 0) & events[self._item].notnull()
        named = events.filter(events[self._item].notnull())
        self._known = database.store("known_pairs", named.select(self._user, self._item).distinct())
        self._positives = events.filter(positive)
        self._pool = database.store("negatives_pool", self._pool_of(named))
        self._size = int(database.value(self._pool.count()))
        if not self._size:
            raise ValueError("data.negatives: there is no positive example to draw negatives for")

    def rows(self) -> ir.Table:
        """Stored rows (NUMBER, DRAW, DRAWN): the item of each draw of each positive example."""
        own = self._positives.select(NUMBER, self._user, own=self._positives[self._item])
        draws = [own.mutate(**{DRAW: ibis.literal(draw, "int64")}) for draw in range(self._config.per_positive)]
        self._database.store("open_0", ibis.union(*draws) if len(draws) > 1 else draws[0])
        self._database.run(f'CREATE TABLE drawn ("{NUMBER}" BIGINT, "{DRAW}" BIGINT, "{DRAWN}" {self._kind})')
        for attempt in range(ATTEMPTS):
            if not self._settle(attempt):
                return self._database.table("drawn")
        self._settle_rest()
        return self._database.table("drawn")

    @property
    def _kind(self) -> str:
        return "VARCHAR" if self._pool[DRAWN].type().is_string() else "BIGINT"

    def _pool_of(self, named: ir.Table) -> ir.Table:
        """Places from 0, and the item at each; the places follow the order of items, or of rows."""
        if self._config.kind == "uniform":
            items = named.select(self._item).distinct()
            place = ibis.row_number().over(ibis.window(order_by=items[self._item]))
        else:
            items = self._positives.filter(self._positives[CODE] == TRAIN)
            place = ibis.row_number().over(ibis.window(order_by=items[NUMBER]))
        return items.select(**{PLACE: place.cast("int64"), DRAWN: items[self._item]})

    def _settle(self, attempt: int) -> int:
        """Draw for every open row; store what is accepted, and what stays open; returns how many do."""
        rows = self._database.table(f"open_{attempt}")
        salts = [hash64(f"{self._config.seed}/{draw}/{attempt}", salt="negatives") for draw in self._draws]
        hashed = ibis.cases(
            *((rows[DRAW] == draw, mix64_column(rows[NUMBER], salt)) for draw, salt in enumerate(salts)), else_=0
        )
        placed = rows.mutate(**{PLACE: (hashed & _POSITIVE) % self._size})
        self._accept(placed.inner_join(self._pool, PLACE))
        left = rows.anti_join(self._database.table("drawn"), [NUMBER, DRAW])
        self._database.drop(f"open_{attempt - 1}")
        return int(self._database.value(self._database.store(f"open_{attempt + 1}", left).count()))

    @property
    def _draws(self) -> range:
        return range(self._config.per_positive)

    def _accept(self, candidates: ir.Table) -> None:
        """Add the candidates (open rows with DRAWN) that the user has not, and no other draw of the row has."""
        known = self._known.rename({DRAWN: self._item})
        new = candidates.filter(candidates[DRAWN] != candidates["own"]).anti_join(known, [self._user, DRAWN])
        free = new.anti_join(self._database.table("drawn"), [NUMBER, DRAWN])
        first = free[DRAW].min().over(ibis.window(group_by=[NUMBER, DRAWN]))
        chosen = free.mutate(first=first).filter(ibis._[DRAW] == ibis._["first"]).select(NUMBER, DRAW, DRAWN)
        self._database.run(f"INSERT INTO drawn {self._database.sql(chosen)}")

    def _settle_rest(self) -> None:
        """Rows that all attempts left open: what they may have, in a hashed order; not enough leaves draws out."""
        rows = self._database.table(f"open_{ATTEMPTS}")
        salts = [hash64(f"{self._config.seed}/{part}", salt="negatives") for part in ("row", "place")]
        wanted = rows.mutate(rank=ibis.row_number().over(ibis.window(group_by=NUMBER, order_by=DRAW)))
        each = rows.select(NUMBER, self._user, "own").distinct().cross_join(self._pool)
        known = self._known.rename({DRAWN: self._item})
        may: Any = each.filter(each[DRAWN] != each["own"]).anti_join(known, [self._user, DRAWN])
        may = may.anti_join(self._database.table("drawn"), [NUMBER, DRAWN])
        order = mix64_column(may[PLACE] ^ mix64_column(may[NUMBER], salts[0]), salts[1])
        best = may.group_by([NUMBER, DRAWN]).aggregate(order=order.min())
        ranked = best.mutate(rank=ibis.row_number().over(ibis.window(group_by=NUMBER, order_by=best["order"])))
        chosen = wanted.inner_join(ranked, [NUMBER, "rank"]).select(NUMBER, DRAW, DRAWN)
        self._database.run(f"INSERT INTO drawn {self._database.sql(chosen)}")

"""The raw rows of users or items, and what the train split says about them: how often each was seen.

A property of a user (item) comes from the table of users (items); where the log alone has it, it is the last value that
is not missing, of train events before others: what a service would know at the end of training. (Of a log that is
prepared by the day it is the day's first value, since the day's rows also test a model.) A property that is meant to
change over time belongs to the event (`entity = "event"`).
"""

from dataclasses import dataclass
from typing import Literal

import ibis.expr.types as ir

from features.database import Database, quoted
from features.log_columns import CODE, NUMBER, ROLE_OF_ENTITY, TIME
from features.logs import Log
from features.spec import FeatureSchema

Entity = Literal["user", "item"]
ROWS = "__rows"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """id_column: of the entity. listed: raw rows, one per id, None where only ids are known. seen: the ids of all
    events that have one, each once.
    """

    entity: Entity
    id_column: str
    listed: ir.Table | None
    seen: ir.Table

    def with_train_rows(self, train: ir.Table) -> ir.Table:
        """A row for each id of the train examples (null too): its raw columns, and `ROWS`, how many have it."""
        counted = train.group_by(self.id_column).aggregate(**{ROWS: train.count()})
        if self.listed is None:
            return counted
        return counted.left_join(self.listed, self.id_column).drop(f"{self.id_column}_right")


def read_catalogue(
    database: Database, log: Log, events: ir.Table, schema: FeatureSchema, entity: Entity, first: bool = False
) -> Catalogue:
    """The catalogue of one entity. events: the log with `CODE`, stored under the name "events".

    first: what stands in the log is taken from an entity's first event, not from its last one: of a day that also tests
    a model, no row may know what comes after it.
    """
    role = ROLE_OF_ENTITY[entity]
    own = schema.feature(schema.user if entity == "user" else schema.item)
    columns = {spec.column for spec in schema.of_entity(entity) if log.homes[spec.name] == "events"}
    carried = sorted(columns - {own.column})
    listed = log.users if entity == "user" else log.items
    if carried:
        latest = _known(database, events, own.column, carried, f"carried_{role}", "arg_min" if first else "arg_max")
        listed = latest if listed is None else _joined(database, listed, latest, own.column, f"catalogue_{role}")
    seen = events.filter(events[own.column].notnull()).select(own.column).distinct()
    return Catalogue(entity=entity, id_column=own.column, listed=listed, seen=database.store(f"seen_{role}", seen))


def _known(
    database: Database,
    events: ir.Table,
    id_column: str,
    carried: list[str],
    name: str,
    take: Literal["arg_min", "arg_max"],
) -> ir.Table:
    """The first or last known value of each carried column, by id. (They leave missing values out; one per id.)"""
    time = quoted(TIME) if TIME in events.columns else "0"
    order = f"{{'train': {quoted(CODE)} = 0, 'time': {time}, 'number': {quoted(NUMBER)}}}"
    values = ", ".join(f"{take}({quoted(column)}, {order}) AS {quoted(column)}" for column in carried)
    own = quoted(id_column)
    database.run(
        f"CREATE TABLE {quoted(name)} AS SELECT {own}, {values} FROM ({database.sql(events)}) "
        f"WHERE {own} IS NOT NULL GROUP BY {own}"
    )
    return database.table(name)


def _joined(database: Database, listed: ir.Table, latest: ir.Table, id_column: str, name: str) -> ir.Table:
    """Every id of either, with the columns of both."""
    both = listed.outer_join(latest, id_column, rname="{name}__latest")
    own = both[id_column].coalesce(both[f"{id_column}__latest"])
    others = [column for column in listed.columns if column != id_column and column not in latest.columns]
    carried = {
        column: both[f"{column}__latest" if column in listed.columns else column]
        for column in latest.columns
        if column != id_column
    }
    return database.store(name, both.select(**{id_column: own}, **{c: both[c] for c in others}, **carried))

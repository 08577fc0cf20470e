"""Which raw columns a schema reads, from which table, and in which form: the plan that `logs` carries out.

A feature of users (items) is read from the table of users (items) where that has its column, else from the events.
Ids are integers only where every column that shares them holds integers, so that the user "7" of one file is the user 7
of another. One look over the text columns decides that; all else here is planning.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir

from features.database import Database
from features.raw_columns import (
    DECIMAL,
    Fault,
    Reading,
    element_type,
    integer_pattern,
    read_id,
    read_list,
    read_number,
    read_time,
)  # fmt: skip
from features.source_files import SPLIT, SPLITS, SourceTable, missing_column
from features.spec import FeatureSchema, FeatureSpec, LabelSpec

NUMBER, TIME, WEIGHT, PROBABILITY, GROUP = "__number", "__time", "__weight", "__probability", "__group"
DROPPED = "__dropped"
EXAMPLE, CODE = "__example", "__code"  # given later: whether an event is an example, the index of its split
NEGATIVE = "__negative"  # where negatives were drawn: whether the row is one
ROLE_OF_ENTITY = {"user": "users", "item": "items", "event": "events"}


def label_column(label: str) -> str:
    """The column of a label in the log."""
    return f"label:{label}"


def without_negatives(events: ir.Table) -> ir.Table:
    """The events that stand in the log, not those drawn beside them."""
    return events.filter(~events[NEGATIVE]) if NEGATIVE in events.columns else events


@dataclass(frozen=True, kw_only=True)
class Part:
    """One column of a canonical table: its name there, and how it is read. dropped: where a label drops the row."""

    name: str
    reading: Reading
    dropped: Any = None


@dataclass(frozen=True)
class _Member:
    """A raw column that holds ids, beside all others that share them."""

    role: str
    column: str
    spec: FeatureSpec | None = None


class LogColumns:
    """The plan for the tables of one source. Raises ValueError naming a column that is absent, or read in two ways.

    homes: feature name -> the role of the table that its column stands in. time_unit: that of times in the log.
    positives_only: whether a label whose column is absent is 1 in every row. texts: salts of ids that are text, also
    where all of them here look like integers.
    """

    def __init__(
        self,
        database: Database,
        tables: Mapping[str, SourceTable],
        schema: FeatureSchema,
        split_column: str,
        *,
        positives_only: bool = False,
        texts: frozenset[str] = frozenset(),
    ) -> None:
        self._tables = {role: table for role, table in tables.items() if _is_used(role, schema)}
        self._schema = schema
        self._split_column = split_column
        absent = {label.name for label in schema.labels if label.column not in self._tables["events"].columns}
        self._sure_labels = absent if positives_only else set()
        self.homes = {spec.name: self._home(spec) for spec in schema.features}
        self._check_roles()
        self._integers = {salt: found and salt not in texts for salt, found in self._integer_ids(database).items()}
        self._numeric = self._numeric_attributes(database)

    @property
    def time_unit(self) -> str:
        """For dates and times "microseconds", for numbers "as given", without times ""."""
        if not self._schema.timestamp:
            return ""
        kind = self._tables["events"].rows[self._schema.timestamp].type()
        dated = kind.is_date() or kind.is_timestamp() or (kind.is_string() and not self._integers[TIME])
        return "microseconds" if dated else "as given"

    @property
    def text_ids(self) -> frozenset[str]:
        """Salts of the ids that are text here."""
        return frozenset(salt for salt, integers in self._integers.items() if not integers and salt != TIME)

    @property
    def tables(self) -> Mapping[str, SourceTable]:
        """The tables that the schema makes use of, by role; events first."""
        return self._tables

    def parts(self, role: str) -> list[Part]:
        """The columns of the canonical table of a role."""
        read: dict[str, tuple[FeatureSpec, Reading]] = {}
        for spec in self._read_from(role):
            read[spec.column] = self._joined(read.get(spec.column), spec, role)
        parts = [Part(name=column, reading=reading) for column, (_, reading) in read.items()]
        return parts + list(self._event_parts() if role == "events" else self._attributes(role, set(read)))

    def id_column(self, role: str) -> str:
        """The column that identifies the rows of the table of users or items."""
        return self._schema.feature(self._schema.user if role == "users" else self._schema.item).column

    def _home(self, spec: FeatureSpec) -> str:
        role = ROLE_OF_ENTITY[spec.entity]
        if spec.entity != "event" and not getattr(self._schema, spec.entity):
            raise ValueError(
                f"feature {spec.name!r} belongs to {role}, but the schema names no `{spec.entity}` feature"
            )
        home = role if role in self._tables and spec.column in self._tables[role].columns else "events"
        if spec.column not in self._tables[home].columns:
            likely = role if role in self._tables else "events"
            raise missing_column(spec.column, f"feature {spec.name!r}", likely, self._tables[likely])
        return home

    def _check_roles(self) -> None:
        """The columns that are no features of their own, and the ids that join events with users and items."""
        schema, events = self._schema, self._tables["events"]
        for what in ("timestamp", "weight", "group", "probability"):
            self._require(getattr(schema, what), what, "events")
        self._require(self._split_column, "data.split.column", "events")
        for label in schema.labels:
            if label.name not in self._sure_labels:
                self._require(label.column, f"label {label.name!r}", "events")
        for role, name in (("users", schema.user), ("items", schema.item)):
            if name and role in self._tables:
                self._require(schema.feature(name).column, f"feature {name!r}", role)
            if name and schema.feature(name).column not in events.columns:
                raise missing_column(schema.feature(name).column, f"feature {name!r}", "events", events)

    def _require(self, column: str, what: str, role: str) -> None:
        if column and column not in self._tables[role].columns:
            raise missing_column(column, what, role, self._tables[role])

    def _read_from(self, role: str) -> Iterator[FeatureSpec]:
        """The features whose columns the table of that role gives; the ids stand in events too."""
        for spec in self._schema.features:
            if self.homes[spec.name] == role or (role == "events" and self._identifies(spec)):
                yield spec

    def _identifies(self, spec: FeatureSpec) -> bool:
        return spec.name in (self._schema.user, self._schema.item)

    def _must_identify(self, role: str, spec: FeatureSpec) -> bool:
        """In tables of users or items; in events, where an unknown user or item would have no row of some table."""
        return role != "events" or any(one.unseen == "refuse" for one in self._schema.of_entity(spec.entity))

    def _attributes(self, role: str, read: set[str]) -> Iterator[Part]:
        """The other columns of users or items, for filters and display; text that is all numbers becomes numbers."""
        rows = self._tables[role].rows
        for column in self._tables[role].columns:
            if column not in read:
                kind = self._numeric.get((role, column))
                yield Part(name=column, reading=Reading(rows[column].try_cast(kind) if kind else rows[column]))

    def _numeric_attributes(self, database: Database) -> dict[tuple[str, str], str]:
        """Text columns of users and items that hold nothing but integers, or nothing but numbers."""
        found: dict[tuple[str, str], str] = {}
        for role, table in self._tables.items():
            if role == "events" or not table.untyped:
                continue
            checks = {}
            for place, column in enumerate(table.columns):
                raw: Any = table.rows[column]
                checks[f"int64/{place}"] = raw.re_search(integer_pattern(None)).all()
                checks[f"float64/{place}"] = raw.re_search(DECIMAL).all()
            row = database.fetch(table.rows.aggregate(**checks)).to_pylist()[0]
            for place, column in enumerate(table.columns):
                kinds = [kind for kind in ("int64", "float64") if row[f"{kind}/{place}"]]
                found |= {(role, column): kinds[0]} if kinds else {}
        return found

    def _integer_ids(self, database: Database) -> dict[str, bool]:
        """For ids that are shared (by salt), whether all of them are integers."""
        members: dict[str, list[_Member]] = defaultdict(list)
        for role in self._tables:
            for spec in self._read_from(role):
                if spec.is_id and not spec.bucketised:
                    members[spec.salt].append(_Member(role, spec.column, spec))
        for name, column in ((GROUP, self._schema.group), (TIME, self._schema.timestamp)):
            if column:
                members[name].append(_Member("events", column))
        texts = {member for sharing in members.values() for member in sharing if self._raw(member).type().is_string()}
        found = self._look_like_integers(database, texts)
        return {salt: self._all_integers(sharing, found) for salt, sharing in members.items()}

    def _all_integers(self, sharing: list[_Member], found: Mapping[_Member, bool]) -> bool:
        """Typed text stays text; text lists follow the columns that they share ids with."""
        decisive = [member for member in sharing if member not in found or not _is_list(member)]
        typed = [member for member in decisive if member not in found or not self._tables[member.role].untyped]
        numeric = all(
            member.spec is None or not element_type(self._raw(member), member.column).is_string() for member in typed
        )
        return bool(decisive) and numeric and all(found[member] for member in sharing if member in found)

    def _look_like_integers(self, database: Database, texts: set[_Member]) -> dict[_Member, bool]:
        found: dict[_Member, bool] = {}
        for role, table in self._tables.items():
            members = [member for member in texts if member.role == role]
            matches = {
                str(place): self._raw(member).re_search(integer_pattern(member.spec)).fill_null(True).all()
                for place, member in enumerate(members)
            }
            if members:
                row = database.fetch(table.rows.aggregate(**matches)).to_pylist()[0]
                found |= {member: row[str(place)] is not False for place, member in enumerate(members)}
        return found

    def _raw(self, member: _Member) -> Any:
        return self._tables[member.role].rows[member.column]

    def _joined(
        self, known: tuple[FeatureSpec, Reading] | None, spec: FeatureSpec, role: str
    ) -> tuple[FeatureSpec, Reading]:
        """The reading of a column, with the faults of all features that read it."""
        reading = self._reading(spec, role)
        if known is None:
            return spec, reading
        first, earlier = known
        forms = {_form(first), _form(spec)}
        both_numbers = (
            forms == {"id", "number"} and not earlier.value.type().is_string() and not reading.value.type().is_string()
        )
        if len(forms) > 1 and not both_numbers:
            raise ValueError(
                f"features {first.name!r} and {spec.name!r} read column {spec.column!r} in two ways, "
                f"as {_form(first)} and as {_form(spec)}; give one of them a column of its own"
            )
        kept = earlier if _form(first) == "id" or len(forms) == 1 else reading
        faults = earlier.faults + tuple(fault for fault in reading.faults if fault.problem not in _problems(earlier))
        return (first if kept is earlier else spec), Reading(kept.value, faults)

    def _reading(self, spec: FeatureSpec, role: str) -> Reading:
        raw = self._tables[role].rows[spec.column]
        refuse = spec.missing == "refuse" or (self._identifies(spec) and self._must_identify(role, spec))
        if _form(spec) == "number":
            return read_number(raw, spec.column, refuse_missing=refuse, transforms=spec.transforms)
        if spec.is_list:
            return read_list(raw, spec.column, spec, integers=self._integers[spec.salt])
        return read_id(raw, spec.column, integers=self._integers[spec.salt], refuse_missing=refuse)

    def _event_parts(self) -> Iterator[Part]:
        schema, rows = self._schema, self._tables["events"].rows
        if schema.timestamp:
            reading = read_time(rows[schema.timestamp], schema.timestamp, integers=self._integers[TIME])
            yield Part(name=TIME, reading=reading)
        if schema.weight:
            yield Part(name=WEIGHT, reading=_bounded(rows, schema.weight, 0.0, None))
        if schema.probability:
            yield Part(name=PROBABILITY, reading=_bounded(rows, schema.probability, 0.0, 1.0))
        if schema.group:
            reading = read_id(rows[schema.group], schema.group, integers=self._integers[GROUP], refuse_missing=True)
            yield Part(name=GROUP, reading=reading)
        for label in schema.labels:
            sure = label.name in self._sure_labels
            one = Reading(ibis.literal(1, "int64").cast("float64"))
            yield Part(name=label_column(label.name), reading=one) if sure else _label_part(rows, label)
        if self._split_column or SPLIT in rows.columns:
            yield Part(name=SPLIT, reading=_read_split(rows, self._split_column or SPLIT))


def _is_used(role: str, schema: FeatureSchema) -> bool:
    return role == "events" or bool(schema.user if role == "users" else schema.item)


def _is_list(member: _Member) -> bool:
    return member.spec is not None and member.spec.is_list


def _form(spec: FeatureSpec) -> str:
    if spec.kind == "dense" or spec.bucketised:
        return "number"
    return f"{spec.kind} (separator {spec.separator!r}, max_length {spec.max_length})" if spec.is_list else "id"


def _problems(reading: Reading) -> set[str]:
    return {fault.problem for fault in reading.faults}


def _bounded(rows: Any, column: str, low: float, high: float | None) -> Reading:
    reading = read_number(rows[column], column, refuse_missing=True)
    outside = reading.value < low if high is None else (reading.value < low) | (reading.value > high)
    problem = f"is below {low:g}" if high is None else f"is outside {low:g}..{high:g}"
    return Reading(reading.value, (*reading.faults, Fault(column, outside.fill_null(False), problem)))


def _label_part(rows: Any, label: LabelSpec) -> Part:
    reading = read_number(rows[label.column], label.column, refuse_missing=True)
    value = reading.value
    if label.positive:
        value = value.isin(label.positive).cast("float64")
    elif label.positive_from is not None:
        value = (value >= label.positive_from).cast("float64")
    dropped = reading.value.isin(label.dropped).fill_null(False) if label.dropped else None
    return Part(name=label_column(label.name), reading=Reading(value, reading.faults), dropped=dropped)


def _read_split(rows: Any, column: str) -> Reading:
    value = rows[column].cast("string")
    known = value.isin(SPLITS).fill_null(False)
    return Reading(value, (Fault(column, ~known, f"is none of {', '.join(SPLITS)}"),))

"""From a request's raw values to the columns of a batch: what the bundle holds, with what the request gives before it.

Not here: which columns a model reads, and what is done with them (`serving.retrieval`, `serving.scoring`).

Shapes: B rows, N ids, L events of a history.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Jagged, num_rows
from features.entities import EntityTable
from features.histories import Histories
from features.history_files import place_in_set
from features.spec import Age, FeatureSchema, FeatureSpec, SequenceGroup
from recsys.components.entities import Entities
from serving.errors import InvalidArgumentError
from serving.queries import Catalogue, RawIds, SubjectQuery

Column = Tensor | Jagged
Positions = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Who is asked about, and when.

    user: position, -1 if unknown or not given. past: the known items of the request's history as user 0 of histories of
    its own, None if it gives none. num_past: how many of them are past. num_history_ids: of the request's history,
    unknown ones included. time: when this is asked, None if it does not say.
    """

    user: int
    past: Histories | None = None
    num_past: int = 0
    num_history_ids: int = 0
    time: int | None = None

    @property
    def history(self) -> Positions | None:
        """The past items of the request's history, positions in time order; None if it gives none."""
        return None if self.past is None else self.past.items[: self.num_past]

    @property
    def unknown_history_ids(self) -> int:
        """How many items of the request's history are unknown."""
        return self.num_history_ids - (0 if self.past is None else self.past.num_events)


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Which events the rows [B] see of one sequence group: the arguments of `Histories.cut`."""

    group: SequenceGroup
    histories: Histories
    users: Positions
    positions: Positions
    times: Positions | None = None

    def sequences(self, items: EntityTable) -> dict[str, Jagged]:
        """The aligned sequences."""
        return self.histories.cut(self.group, self.users, self.positions, items, times=self.times)

    def items(self) -> Positions:
        """The items of the events, [N]."""
        events, _ = self.histories.slice(self.users, self.positions, self.group.max_length)
        return self.histories.column("items", events)


def positions_of(table: EntityTable, ids: RawIds | pa.Array, field: str) -> Positions:
    """Positions of raw ids [N], -1 for unknown ones; InvalidArgumentError when they are not of the catalogue's kind."""
    try:
        array = ids if isinstance(ids, pa.Array) else pa.array(ids)
        if array.null_count == len(array):
            return np.full(len(array), -1, dtype=np.int64)
        return table.positions(array).numpy()
    except (ValueError, pa.ArrowException):
        kind = "texts" if holds_texts(table) else "whole numbers"
        came = ids.drop_null().to_pylist() if isinstance(ids, pa.Array) else list(ids)
        raise InvalidArgumentError.got(field, came[0], f"{kind}, as the catalogue writes its ids") from None


def holds_texts(table: EntityTable) -> bool:
    """Whether the raw ids of the table are texts, not numbers."""
    return bool(table.raw_ids.dtype == object)


def catalogue_of(entities: Entities) -> Catalogue:
    """What the entities are, for `GetBundle`."""
    users = None if entities.users is None else entities.users.table
    return Catalogue(
        num_users=0 if users is None else len(users),
        num_items=0 if entities.items is None else len(entities.items),
        users_are_texts=users is not None and holds_texts(users),
        items_are_texts=entities.items is not None and holds_texts(entities.items),
    )


def entity_features(schema: FeatureSchema, side: str) -> list[str]:
    """The features of users or of items by name, the id among them."""
    own_id, other_id = (schema.user, schema.item) if side == "user" else (schema.item, schema.user)
    names = [spec.name for spec in schema.features if side == spec.entity and spec.name != other_id]
    return sorted({*names, own_id} - {""})


def user_columns(schema: FeatureSchema) -> list[str]:
    """What a request can say of a user by columns: features and sequences."""
    return entity_features(schema, "user") + sorted(name for group in schema.sequences for name in group.names)


class Inputs:
    """The columns of a batch for one part of a bundle: `names` are the features that its model reads."""

    def __init__(self, entities: Entities, inputs: Sequence[FeatureSpec]) -> None:
        self.entities = entities
        self.schema: FeatureSchema = entities.encoder.schema
        self.names = [spec.name for spec in inputs]
        self.groups = {name: group for group in _read_groups(self.schema, self.names) for name in group.names}
        if self.groups and entities.items is None:
            raise ValueError(f"inputs {sorted(self.groups)} are histories of items, but there is no table of items")

    @property
    def max_history(self) -> int:
        """The longest history that is read; 0 when none is."""
        return max((group.max_length for group in self.groups.values()), default=0)

    @property
    def reads_times(self) -> bool:
        """Whether the model reads how long ago the events of a history were."""
        return any(group.age is not None and group.age.by == "time" for group in self.groups.values())

    @property
    def history_features(self) -> tuple[str, ...]:
        """Event features of a history that the model reads."""
        return tuple(sorted(_event_features(self.schema, self.groups.values())))

    def subject(self, query: SubjectQuery, max_history: int) -> Subject:
        """The subject of a request.

        InvalidArgumentError for ids of the wrong kind, a history that is too long, and times or event features that do
        not fit it or that the model lacks.
        """
        entities, user = self.entities, -1
        if query.user is not None:
            if entities.users is None:
                raise InvalidArgumentError("user", "the bundle has no table of users, accepted: the user's features")
            user = int(positions_of(entities.users.table, [query.user], "user")[0])
        if query.history is None:
            _check_no_events(query)
            return Subject(user=user, time=query.time)
        if len(query.history) > max_history:
            raise InvalidArgumentError.got("history", f"{len(query.history)} ids", f"at most {max_history}")
        if entities.items is None:
            raise InvalidArgumentError("history", "the bundle has no table of items, accepted: no history")
        past = self._past(query, positions_of(entities.items, query.history, "history"))
        num_past = past.num_events
        if past.keeps_times and query.time is not None:
            num_past = int(past.positions([0], timestamps=[query.time])[0])
        return Subject(user=user, past=past, num_past=num_past, num_history_ids=len(query.history), time=query.time)

    def _past(self, query: SubjectQuery, found: Positions) -> Histories:
        """The events of a request's history [L] whose items are found."""
        times = query.history_times
        if times is None and self.reads_times and len(found):
            fault = "got none, accepted: the time of each item; the model reads how long ago events were"
            raise InvalidArgumentError("history_times", fault)
        times = np.zeros(0, np.int64) if times is None and len(found) == 0 else times
        if times is not None and len(times) != len(found):
            raise InvalidArgumentError.got("history_times", len(times), f"one per item of the history ({len(found)})")
        known = found >= 0
        return Histories.of_request(
            found[known],
            self._event_columns(query.history_features, known),
            timestamps=None if times is None else np.asarray(times, np.int64)[known],
            ticks_per_second=1 if self._histories is None else self._histories.ticks_per_second,
        )

    def _event_columns(self, given: Mapping[str, pa.Array], known: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """Encoded event features of a request's known events; those that it does not give are missing."""
        accepted = _event_features(self.schema, self.schema.sequences)
        for name, column in given.items():
            if name not in accepted:
                raise InvalidArgumentError.unknown_name("history_features", name, sorted(accepted))
            if len(column) != len(known):
                wanted = f"one value per item of the history ({len(known)})"
                raise InvalidArgumentError.got(f"history_features[{name}]", len(column), wanted)
        columns = {}
        for name in self.history_features:
            values = given[name].filter(pa.array(known)) if name in given else pa.nulls(int(known.sum()))
            column = self._encoded(name, values, "history_features")
            assert isinstance(column, Tensor)  # the schema lets sequences repeat ids only
            columns[name] = column.numpy()
        return columns

    def unread(self, subject: Subject) -> int:
        """Known items of the request's history that the model does not read."""
        return 0 if subject.past is None else subject.past.num_events - min(subject.num_past, self.max_history)

    def encoded(self, columns: Mapping[str, pa.Array], field: str, known: Collection[str]) -> dict[str, Column]:
        """The request's raw columns as rows and numbers, those that the model reads.

        Raises InvalidArgumentError naming a column that is not among `known`, or cannot be encoded.
        """
        for name in columns:
            if name not in known:
                raise InvalidArgumentError.unknown_name(field, name, known)
        given = {name: self._encoded(name, column, field) for name, column in columns.items() if name in self.names}
        given |= self._counted_ages(given)
        self._check_aligned(given, field)
        return given

    def _counted_ages(self, given: Mapping[str, Column]) -> dict[str, Column]:
        """Ages by position of sequences that the request gives without them: they follow from the lengths."""
        counted: dict[str, Column] = {}
        for group in self.groups.values():
            beside = [column for name in group.of if isinstance(column := given.get(name), Jagged)]
            if group.age is not None and group.age.by == "position" and group.age.name not in given and beside:
                counted[group.age.name] = _counted_age(group.age, beside[0])
        return counted

    def _check_aligned(self, given: Mapping[str, Column], field: str) -> None:
        """Sequences of one group come together, each row with as many events in one as in the others."""
        first: dict[str, Jagged] = {}
        for name, group in self.groups.items():
            column = given.get(name)
            if column is None and any(other in given for other in group.names):
                fault = f"got none, accepted: all sequences of {group.name!r} that the model reads, or none of them"
                raise InvalidArgumentError(f"{field}[{name}]", fault)
            if isinstance(column, Jagged):
                same = first.setdefault(group.name, column)
                if not torch.equal(column.offsets, same.offsets):
                    fault = f"its lists differ in length from those of another sequence of {group.name!r}"
                    raise InvalidArgumentError(f"{field}[{name}]", f"{fault}, accepted: equal lengths row by row")

    def _encoded(self, name: str, values: pa.Array, field: str) -> Column:
        table = pa.table({self.schema.feature(name).column: values})
        try:
            return self.entities.encoder.encode(table, [name])[name]
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise InvalidArgumentError(f"{field}[{name}]", " ".join(str(error).split())) from None

    def of_users(self, positions: Positions, given: Collection[str] = ()) -> dict[str, Column]:
        """The features that the bundle holds for users [B], of those that the model reads, less the given ones.

        Raises InvalidArgumentError for an unknown user when the schema refuses one.
        """
        users = self.entities.users
        return {} if users is None else self._gathered(users.table, positions, given)

    def of_items(self, positions: Positions, given: Collection[str] = ()) -> dict[str, Column]:
        """The same for items [B]."""
        items = self.entities.items
        return {} if items is None else self._gathered(items, positions, given)

    def takes_unknown_user(self, given: Collection[str]) -> bool:
        """Whether every user feature that the model reads is given, or has a value for a user who is not known."""
        users = self.entities.users
        return users is None or not set(users.table.refusing) & set(self.names) - set(given)

    def _gathered(self, table: EntityTable, positions: Positions, given: Collection[str]) -> dict[str, Column]:
        names = [name for name in self.names if name in table.features.features and name not in given]
        refusing = [name for name in names if name in table.refusing]
        if refusing and (positions < 0).any():
            fault = f"is unknown or not given, and the schema refuses that for features {refusing}"
            raise InvalidArgumentError(table.entity, fault)
        return dict(table.gather(torch.from_numpy(positions), names).features)

    def sequences(self, users: Positions, subject: Subject, given: Collection[str] = ()) -> dict[str, Column]:
        """The sequences that the model reads, of users [B], less the given ones.

        The request's history, if there is one, is that of every row. Each is cut by the kernel that cuts examples when
        training: of an ordered history nothing at the request's time or later is read, as of an example's.
        """
        cut: dict[str, Column] = {}
        for group in self._read_groups(given):
            cut |= self._cut(group, users, subject).sequences(self._items)
        return cut

    def history_items(self, users: Positions, subject: Subject, given: Collection[str] = ()) -> dict[str, Positions]:
        """The items of the events of `sequences`, by sequence group: positions [N], one row after the other."""
        return {group.name: self._cut(group, users, subject).items() for group in self._read_groups(given)}

    def _read_groups(self, given: Collection[str]) -> list[SequenceGroup]:
        return list({group.name: group for name, group in self.groups.items() if name not in given}.values())

    def _cut(self, group: SequenceGroup, users: Positions, subject: Subject) -> "_Cut":
        return self._stored(group, users, subject) if subject.past is None else self._given(group, users, subject)

    def _stored(self, group: SequenceGroup, users: Positions, subject: Subject) -> "_Cut":
        """What the bundle holds, up to the time of the request; nothing for an unknown user."""
        stored = self._histories
        if stored is None:
            nothing = self._past(SubjectQuery(history=()), np.zeros(0, dtype=np.int64))
            return self._given(group, users, Subject(user=-1, past=nothing))
        if subject.time is None or not group.ordered:
            positions, now = np.full(len(users), -1), self._latest
        else:
            now = subject.time
            positions = stored.positions(users, timestamps=np.full(len(users), now))
        return _Cut(group=group, histories=stored, users=users, positions=positions, times=np.full(len(users), now))

    def _given(self, group: SequenceGroup, users: Positions, subject: Subject) -> "_Cut":
        """The request's history for each of the rows; a set stands in the order in which sets are stored."""
        past = subject.past
        assert past is not None
        first = np.zeros(len(users), dtype=np.int64)
        if not group.ordered:
            return _Cut(group=group, histories=_as_stored_set(past), users=first, positions=np.full(len(users), -1))
        now = past.latest() if subject.time is None else subject.time
        seen, times = np.full(len(users), subject.num_past), np.full(len(users), now)
        return _Cut(group=group, histories=past, users=first, positions=seen, times=times)

    @property
    def _histories(self) -> Histories | None:
        return None if self.entities.users is None else self.entities.users.histories

    @cached_property
    def _latest(self) -> int:
        return 0 if self._histories is None else self._histories.latest()

    @property
    def _items(self) -> EntityTable:
        assert self.entities.items is not None  # __init__ refuses sequences without items
        return self.entities.items


def _read_groups(schema: FeatureSchema, names: Collection[str]) -> list[SequenceGroup]:
    """The sequence groups, less the sequences that the model does not read."""
    read = []
    for group in schema.sequences:
        of = {name: source for name, source in group.of.items() if name in names}
        age = group.age if group.age is not None and group.age.name in names else None
        read.append(group.model_copy(update={"of": of, "age": age}))
    return read


def _event_features(schema: FeatureSchema, groups: Iterable[SequenceGroup]) -> set[str]:
    """The event features that sequences repeat."""
    return {name for group in groups for name in group.of.values() if schema.feature(name).entity == "event"}


def _check_no_events(query: SubjectQuery) -> None:
    for field in ("history_times", "history_features"):
        values = getattr(query, field)
        if values is not None and len(values):
            raise InvalidArgumentError(field, "are given without a history, accepted: beside the items of `history`")


def _as_stored_set(past: Histories) -> Histories:
    """A request's events as a set: each item once, as it came first."""
    unique, first = np.unique(past.items, return_index=True)
    order = np.argsort(place_in_set(unique))
    columns = {name: past.column(name, first[order]) for name in past.columns}
    return Histories.of_request(unique[order], columns, ordered=False)


def _counted_age(age: Age, beside: Jagged) -> Jagged:
    ends = beside.offsets[1:].repeat_interleave(beside.lengths)
    places = (ends - torch.arange(len(ends))).numpy()
    return Jagged(values=torch.from_numpy(age.ids(places)), offsets=beside.offsets)


def broadcast(columns: Mapping[str, Column], num: int) -> dict[str, Column]:
    """Columns of one row repeated to `num` rows, the others as they are."""
    first = torch.zeros(num, dtype=torch.int64)
    return {name: _repeated(column, first) if num_rows(column) == 1 else column for name, column in columns.items()}


def _repeated(column: Column, rows: Tensor) -> Column:
    return column.select(rows) if isinstance(column, Jagged) else column[rows]

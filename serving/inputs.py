"""From a request's raw values to the columns of a batch: what the bundle holds, with what the request gives before it.

Not here: which columns a model reads, and what is done with them (`serving.retrieval`, `serving.scoring`).

Shapes: B rows, N ids, L events of a history.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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
from features.spec import FeatureSchema, FeatureSpec, SequenceGroup
from recsys.components.entities import Entities
from serving.errors import InvalidArgumentError
from serving.queries import Catalogue, RawId, RawIds

Column = Tensor | Jagged
Positions = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Who is asked about. user: position, -1 if unknown or not given. history: positions of the known items of the
    request's history, None if it gives none. num_history_ids: of the request's history, unknown ones included.
    """

    user: int
    history: Positions | None
    num_history_ids: int = 0

    @property
    def unknown_history_ids(self) -> int:
        """How many items of the request's history are unknown."""
        return self.num_history_ids - (0 if self.history is None else len(self.history))


def subject_of(entities: Entities, user: RawId | None, history: RawIds | None, max_history: int) -> Subject:
    """The subject of a request; InvalidArgumentError for ids of the wrong kind or a history that is too long."""
    position = -1
    if user is not None:
        if entities.users is None:
            raise InvalidArgumentError("user", "the bundle has no table of users, accepted: the user's features")
        position = int(positions_of(entities.users.table, [user], "user")[0])
    if history is None:
        return Subject(user=position, history=None)
    if len(history) > max_history:
        raise InvalidArgumentError.got("history", f"{len(history)} ids", f"at most {max_history}")
    if entities.items is None:
        raise InvalidArgumentError("history", "the bundle has no table of items, accepted: no history")
    found = positions_of(entities.items, history, "history")
    return Subject(user=position, history=found[found >= 0], num_history_ids=len(history))


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
    return entity_features(schema, "user") + sorted(name for group in schema.sequences for name in group.of)


class Inputs:
    """The columns of a batch for one part of a bundle: `names` are the features that its model reads."""

    def __init__(self, entities: Entities, inputs: Sequence[FeatureSpec]) -> None:
        self.entities = entities
        self.schema: FeatureSchema = entities.encoder.schema
        self.names = [spec.name for spec in inputs]
        self.groups = {name: group for group in _read_groups(self.schema, self.names) for name in group.of}
        if self.groups and entities.items is None:
            raise ValueError(f"inputs {sorted(self.groups)} are histories of items, but there is no table of items")

    @property
    def max_history(self) -> int:
        """The longest history that is read; 0 when none is."""
        return max((group.max_length for group in self.groups.values()), default=0)

    def unread(self, subject: Subject) -> int:
        """Known items of the request's history that the model does not read."""
        return 0 if subject.history is None else max(0, len(subject.history) - self.max_history)

    def encoded(self, columns: Mapping[str, pa.Array], field: str, known: Collection[str]) -> dict[str, Column]:
        """The request's raw columns as rows and numbers, those that the model reads.

        Raises InvalidArgumentError naming a column that is not among `known`, or cannot be encoded.
        """
        for name in columns:
            if name not in known:
                raise InvalidArgumentError.unknown_name(field, name, known)
        given = {name: self._encoded(name, column, field) for name, column in columns.items() if name in self.names}
        self._check_aligned(given, field)
        return given

    def _check_aligned(self, given: Mapping[str, Column], field: str) -> None:
        """Sequences of one group come together, each row with as many events in one as in the others."""
        first: dict[str, Jagged] = {}
        for name, group in self.groups.items():
            column = given.get(name)
            if column is None and any(other in given for other in group.of):
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

    def sequences(self, users: Positions, history: Positions | None, given: Collection[str] = ()) -> dict[str, Column]:
        """The sequences that the model reads, of users [B], less the given ones.

        The request's history, if there is one, is that of every row.
        """
        cut: dict[str, Column] = {}
        for group in {group.name: group for name, group in self.groups.items() if name not in given}.values():
            cut |= self._stored(group, users) if history is None else self._given(group, users, history)
        return cut

    def _stored(self, group: SequenceGroup, users: Positions) -> dict[str, Jagged]:
        """What the bundle holds, all of it visible; nothing for an unknown user."""
        stored = None if self.entities.users is None else self.entities.users.histories
        if stored is None:
            return self._given(group, users, np.zeros(0, dtype=np.int64))
        return stored.cut(group, users, np.full(len(users), -1), self._items)

    def _given(self, group: SequenceGroup, users: Positions, history: Positions) -> dict[str, Jagged]:
        """The request's history for each of the rows; a set stands in the order in which sets are stored."""
        items = history if group.ordered else _as_stored_set(history)
        request = Histories.of_request(items.tolist(), self._event_columns(group, len(items)), ordered=group.ordered)
        first = np.zeros(len(users), dtype=np.int64)
        return request.cut(group, first, np.full(len(users), -1), self._items)

    @property
    def _items(self) -> EntityTable:
        assert self.entities.items is not None  # __init__ refuses sequences without items
        return self.entities.items

    def _event_columns(self, group: SequenceGroup, length: int) -> dict[str, NDArray[Any]]:
        """Event features of a request's history [L]: the request gives items only, so they are missing."""
        sources = [source for source in group.of.values() if source not in self._items.features.features]
        missing = {source: self._encoded(source, pa.nulls(length), "history") for source in sources}
        return {source: column.numpy() for source, column in missing.items() if isinstance(column, Tensor)}


def _read_groups(schema: FeatureSchema, names: Collection[str]) -> list[SequenceGroup]:
    """The sequence groups, less the sequences that the model does not read."""
    read = [{name: source for name, source in group.of.items() if name in names} for group in schema.sequences]
    return [group.model_copy(update={"of": of}) for group, of in zip(schema.sequences, read, strict=True)]


def _as_stored_set(items: Positions) -> Positions:
    unique = np.unique(items)
    return unique[np.argsort(place_in_set(unique))]


def broadcast(columns: Mapping[str, Column], num: int) -> dict[str, Column]:
    """Columns of one row repeated to `num` rows, the others as they are."""
    first = torch.zeros(num, dtype=torch.int64)
    return {name: _repeated(column, first) if num_rows(column) == 1 else column for name, column in columns.items()}


def _repeated(column: Column, rows: Tensor) -> Column:
    return column.select(rows) if isinstance(column, Jagged) else column[rows]

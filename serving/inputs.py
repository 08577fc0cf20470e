"""From a request's raw values to the columns of a batch: what the bundle holds, with what the request gives before it.

Not here: which columns a model reads, and what is done with them (`serving.retrieval`, `serving.scoring`).

Shapes: B rows, N ids, L events of a history.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from features.entities import EntityTable
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Batch, Jagged, num_rows
from features.histories import Histories
from features.spec import FeatureSchema, FeatureSpec, SequenceGroup
from recsys.components import Entities
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
    users = None if entities.users is None else entities.users.table
    position = -1 if user is None or users is None else int(positions_of(users, [user], "user")[0])
    if history is None:
        return Subject(user=position, history=None)
    if len(history) > max_history:
        raise InvalidArgumentError.got("history", f"{len(history)} ids", f"at most {max_history}")
    if entities.items is None:
        raise InvalidArgumentError("history", "the bundle has no table of items, so a history cannot be read")
    found = positions_of(entities.items, history, "history")
    return Subject(user=position, history=found[found >= 0], num_history_ids=len(history))


def positions_of(table: EntityTable, ids: RawIds | pa.Array, field: str) -> Positions:
    """Positions of raw ids [N], -1 for unknown ones; InvalidArgumentError when they are not of the catalogue's kind."""
    array = ids if isinstance(ids, pa.Array) else pa.array(ids)
    if array.null_count == len(array):
        return np.full(len(array), -1, dtype=np.int64)
    if pa.types.is_string(array.type) != holds_texts(table):
        accepted = "texts" if holds_texts(table) else "whole numbers"
        raise InvalidArgumentError.got(
            field, array.drop_null()[0].as_py(), f"{accepted}, as the catalogue writes its ids"
        )
    return table.positions(array).numpy()


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


class Inputs:
    """The columns of a batch for one part of a bundle: `names` are the features that its model reads."""

    def __init__(self, entities: Entities, inputs: Sequence[FeatureSpec]) -> None:
        self.entities = entities
        self.schema: FeatureSchema = entities.encoder.schema
        self.names = [spec.name for spec in inputs]
        self.groups = {name: group for group in self.schema.sequences for name in group.of if name in self.names}

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
        return {name: self._encoded(name, column, field) for name, column in columns.items() if name in self.names}

    def _encoded(self, name: str, values: pa.Array, field: str) -> Column:
        table = pa.table({self.schema.feature(name).column: values})
        try:
            return self.entities.encoder.encode(table, [name])[name]
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise InvalidArgumentError(f"{field}[{name}]", " ".join(str(error).split())) from None

    def of_users(self, positions: Positions) -> dict[str, Column]:
        """The features that the bundle holds for users [B], those that the model reads."""
        users = self.entities.users
        return {} if users is None else self._gathered(users.table, positions)

    def of_items(self, positions: Positions) -> dict[str, Column]:
        """The features that the bundle holds for items [B], those that the model reads."""
        items = self.entities.items
        return {} if items is None else self._gathered(items, positions)

    def _gathered(self, table: EntityTable, positions: Positions) -> dict[str, Column]:
        rows = table.gather(torch.from_numpy(positions))
        return {name: column for name, column in rows.features.items() if name in self.names}

    def sequences(self, users: Positions, history: Positions | None) -> dict[str, Column]:
        """The sequences that the model reads, of users [B]; the request's history, if any, is that of every row."""
        if not self.groups:
            return {}
        groups = {group.name: group for group in self.groups.values()}
        cut: dict[str, Column] = {}
        for group in groups.values():
            cut |= self._cut(group, users, history)
        return {name: column for name, column in cut.items() if name in self.names}

    def _cut(self, group: SequenceGroup, users: Positions, history: Positions | None) -> dict[str, Jagged]:
        items = self.entities.items
        stored = None if self.entities.users is None else self.entities.users.histories
        if items is None or (history is None and stored is None):
            nobody = Histories.of_request([], self._columns(group, 0), ordered=group.ordered)
            return nobody.cut(group, np.full(len(users), -1), np.full(len(users), -1), self._item_features())
        if history is None:
            assert stored is not None
            return stored.cut(group, users, np.full(len(users), -1), self._item_features())
        given = Histories.of_request(history.tolist(), self._columns(group, len(history)), ordered=group.ordered)
        one = given.cut(group, np.zeros(1, np.int64), np.full(1, -1), self._item_features())
        return {name: column.select(torch.zeros(len(users), dtype=torch.int64)) for name, column in one.items()}

    def _item_features(self) -> Batch:
        return Batch(features={}) if self.entities.items is None else self.entities.items.features

    def _columns(self, group: SequenceGroup, length: int) -> dict[str, NDArray[np.generic]]:
        """Event features of a request's history [L]: the request gives items only, so they are missing."""
        of_items = self._item_features().features
        sources = [source for source in group.of.values() if source not in of_items]
        encoded = {source: self._encoded(source, pa.nulls(length), "history") for source in sources}
        return {source: column.numpy() for source, column in encoded.items() if isinstance(column, Tensor)}


def broadcast(columns: Mapping[str, Column], num: int) -> dict[str, Column]:
    """Columns of one row repeated to `num` rows, the others as they are."""
    first = torch.zeros(num, dtype=torch.int64)
    return {name: _repeated(column, first) if num_rows(column) == 1 else column for name, column in columns.items()}


def _repeated(column: Column, rows: Tensor) -> Column:
    return column.select(rows) if isinstance(column, Jagged) else column[rows]

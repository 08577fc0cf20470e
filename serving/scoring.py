"""Probabilities for the rows of one request: the ranker's part of the pipeline.

Rows that share one history, a user's candidates, are scored with it once (`Ranker.candidate_logits`), and keys of its
events are kept for the whole catalogue from the start (`CatalogueKeys`). The answer is that of scoring every row by
itself.

Shapes: B rows, T tasks, L events of a history.
"""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from features.batch import Batch, num_rows
from recsys.components.parts import RankerPart
from recsys.models.catalogue_keys import CatalogueKeys
from serving.deadline import Deadline
from serving.errors import InvalidArgumentError
from serving.inputs import (
    Column,
    Inputs,
    Positions,
    Subject,
    broadcast,
    catalogue_of,
    entity_features,
    positions_of,
)
from serving.queries import Limits, RankingInfo, Scored, ScoreQuery


class Scoring:
    """Answers ScoreQuery from the ranker part of a bundle."""

    def __init__(self, part: RankerPart, limits: Limits) -> None:
        self._part = part
        self._limits = limits
        self._schema = part.entities.encoder.schema
        self._inputs = Inputs(part.entities, part.model.inputs)
        self._columns = [spec.name for spec in self._schema.inputs]
        items = part.entities.items
        self._kept = {} if items is None else CatalogueKeys.of(part.model, items)

    @property
    def info(self) -> RankingInfo:
        """What can be asked."""
        return RankingInfo(
            model=self._part.name,
            catalogue=catalogue_of(self._part.entities),
            features=tuple(self._columns),
            tasks=tuple(self._part.model.labels),
            history_features=self._inputs.history_features,
            history_times=self._inputs.reads_times,
        )

    def warm_up(self) -> None:
        """Look up the first user and item there are; a whole row would need features of an event."""
        users, items = self._part.entities.users, self._part.entities.items
        for table in (None if users is None else users.table, items):
            if table is not None and len(table):
                positions_of(table, table.raw_ids[:1], table.entity)

    def answer(self, query: ScoreQuery, deadline: Deadline) -> Scored:
        """The probabilities; InvalidArgumentError for what cannot be answered, DeadlineExpiredError between stages."""
        num = self._num_rows(query)
        subject = self._inputs.subject(query, self._limits.history)
        users, items = self._users(query, subject), self._items(query)
        deadline.check("features")
        columns, keys = self._read(query, users, np.full(1, -1) if items is None else items, subject)
        deadline.check("scores")
        logits = self._logits(columns, keys, num)
        return Scored(
            scores=self._part.probabilities(logits).numpy(),
            tasks=tuple(self._part.model.labels),
            user_known=bool((users >= 0).all()),
            unknown_item_ids=0 if items is None else int((items < 0).sum()),
            unknown_history_ids=subject.unknown_history_ids,
            unread_history_ids=self._inputs.unread(subject),
        )

    def _num_rows(self, query: ScoreQuery) -> int:
        """B: as many as there are items, or as the longest column has."""
        lengths = {f"columns[{name}]": len(column) for name, column in query.columns.items()}
        if query.items is not None:
            lengths["items"] = len(query.items)
        num = max(lengths.values(), default=0)
        if not 1 <= num <= self._limits.rows:
            field = "items" if query.items is not None else "columns"
            raise InvalidArgumentError.got(field, f"{num} rows", f"1 to {self._limits.rows}")
        for field, length in lengths.items():
            if length not in (1, num):
                raise InvalidArgumentError.got(field, f"{length} rows", f"1 or {num}, as the longest column has")
        return num

    def _users(self, query: ScoreQuery, subject: Subject) -> Positions:
        """The user of all rows [1], or of each row [B] when the user's id is given as a column."""
        column = query.columns.get(self._schema.user)
        if column is not None and query.user is not None:
            raise InvalidArgumentError("user", f"is given twice, accepted: here or as column {self._schema.user!r}")
        users = self._part.entities.users
        if column is None or users is None:
            return np.array([subject.user])
        return positions_of(users.table, column, f"columns[{self._schema.user}]")

    def _items(self, query: ScoreQuery) -> Positions | None:
        """The items of the rows, [B] or [1]; None when the request describes them by columns alone."""
        table, own = self._part.entities.items, self._schema.item
        column = query.columns.get(own)
        if query.items is not None and column is not None:
            raise InvalidArgumentError("items", f"are given twice, accepted: here or as column {own!r}")
        if query.items is not None and table is None:
            raise InvalidArgumentError("items", f"the bundle has no items, accepted: columns {self._columns}")
        if query.items is not None and table is not None:
            return positions_of(table, query.items, "items")
        if column is not None and table is not None:
            return positions_of(table, column, f"columns[{own}]")
        self._check_items_described(query)
        return None

    def _check_items_described(self, query: ScoreQuery) -> None:
        """Without ids of items, every feature of items that the model reads must be a column."""
        for name in entity_features(self._schema, "item"):
            if name in self._inputs.names and name not in query.columns:
                raise InvalidArgumentError("items", f"got none, accepted: ids of items, or a column for {name!r}")

    def _read(
        self, query: ScoreQuery, users: Positions, items: Positions, subject: Subject
    ) -> tuple[dict[str, Column], dict[str, Tensor]]:
        """What the bundle holds for users and items, and before it the columns of the request, each [B] or [1]; and
        the keys that are kept of a history's events.
        """
        inputs = self._inputs
        given = inputs.encoded(query.columns, "columns", self._columns)
        columns = given | inputs.of_users(users, given) | inputs.of_items(items, given)
        columns |= inputs.sequences(users, subject, given)
        for name in inputs.names:
            if name not in columns:
                raise InvalidArgumentError(
                    f"columns[{name}]", "got none, accepted: a value for each row, or one for all"
                )
        return columns, self._keys(users, subject, given)

    def _keys(self, users: Positions, subject: Subject, given: Collection[str]) -> dict[str, Tensor]:
        """Kept keys [L, W] of the events of the one history there is, by sequence group."""
        if not self._kept or len(users) > 1:
            return {}
        events = self._inputs.history_items(users, subject, given)
        return {
            group: self._kept[group].read(torch.from_numpy(positions))
            for group, positions in events.items()
            if group in self._kept
        }

    def _logits(self, columns: Mapping[str, Column], keys: Mapping[str, Tensor], num: int) -> Tensor:
        """Logits of the rows [B] or [B, T]."""
        model = self._part.model
        history = {name: columns[name] for name in self._inputs.groups}
        if not history or any(num_rows(column) > 1 for column in history.values()):
            return model.logits(Batch(features=broadcast(columns, num)))
        others = {name: column for name, column in columns.items() if name not in history}
        return model.candidate_logits(Batch(features=broadcast(others, num)), Batch(features=history), keys)

"""What is cut from one history: `SequenceGroup`, its `Age`, and their `Alignment` with the target of an example.

Values and the arithmetic of ages only; the events themselves stand in `histories`, and `spec` checks that what a group
names is in the schema.

Shapes: B rows, N events cut for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from features.values import Value

Pooling = Literal["sum", "mean", "none"]
Ints = NDArray[np.int64]
TIME_BUCKETS = 32  # the last one begins at 2^30 seconds, 34 years


class Age(Value):
    """How long ago the events of a sequence group were: one more sequence of ids, aligned with the others.

    by = "position": the newest event has id 1, the one before it 2, and so on. by = "time": with s the seconds between
    event and example, id = 1 + floor(log2(1 + s)). Both stop at buckets - 1. Id 0 is no event's: it is kept for the
    target itself. The ids are fixed, not learned, and read a table like any others.

    buckets: how many ids there are, 0 among them. In a sequence group it may be left out: max_length + 1 by position,
    32 by time.
    """

    name: str
    by: Literal["position", "time"]
    table: str
    chunks: int = Field(default=1, ge=1)
    buckets: int = Field(ge=2)

    @property
    def least(self) -> int:
        """The smallest distance of an event: 1 position, or 0 seconds."""
        return 1 if self.by == "position" else 0

    def ids(self, distances: Ints) -> Ints:
        """Ids [N] of events that lie so many positions, or whole seconds, before the example.

        Raises ValueError naming a distance below `least`.
        """
        if len(distances) and int(distances.min()) < self.least:
            came = int(distances.min())
            raise ValueError(f"age {self.name!r} by {self.by}: got {came}, accepted from {self.least} on")
        found = distances if self.by == "position" else np.frexp(1.0 + distances)[1].astype(np.int64)
        return np.minimum(found, self.buckets - 1)


class SequenceGroup(Value):
    """Aligned sequences cut from one history: sequence feature name -> the feature that it repeats over past events.

    `of = {history = "item", history_category = "category"}` gives two aligned ragged columns; each reads the table, the
    vocabulary and the chunks of the feature that it repeats, which must be of kind `id` and not of the user.
    ordered = false: the history is a set, an example sees all of it but its own target.
    labels: only events with a positive value of this label belong to the history ("" = every event, of ordered
    histories also those that a label drops as examples).
    age: one more sequence, of how long ago the events were; for ordered histories.
    """

    name: str
    of: Mapping[str, str]
    max_length: int = Field(ge=1)
    pooling: Pooling = "mean"
    ordered: bool = True
    label: str = ""
    age: Age | None = Field(default=None, exclude_if=lambda age: age is None)

    @model_validator(mode="before")
    @classmethod
    def _default_buckets(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(age := values.get("age"), Mapping):
            return values
        length = values.get("max_length")
        by_position = length + 1 if isinstance(length, int) else 2  # a wrong length is an error of its own
        buckets = by_position if age.get("by") == "position" else TIME_BUCKETS
        return values | {"age": {"buckets": buckets, **age}}

    @model_validator(mode="after")
    def _events_stand_in_order(self) -> Self:
        if self.age is not None and not self.ordered:
            raise ValueError(f"age {self.age.name!r} is for ordered histories; the events of a set have no order")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Its sequences, the age last."""
        return tuple(self.of) + (() if self.age is None else (self.age.name,))


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How the sequences of a group meet the target of an example, for attention.

    pairs: target feature -> the sequence that repeats it. alone: sequences that no feature of the target stands
    against: repetitions of features that only past events have, and the age.
    """

    pairs: Mapping[str, str]
    alone: tuple[str, ...]

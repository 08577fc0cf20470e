"""A small log of users, items, times and stars, prepared; and what its examples may see, by definition.

Rows are (user, item, time, stars): 2 stars are liked, 0 are not, 1 is dropped as an example. Every event has a number
of its own, which is a feature of past events, so that a history tells exactly which events it holds.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from hypothesis import strategies as st

from features.batch import Batch
from features.prepared import DataConfig, Prepared, prepare

LENGTH, SHORT = 4, 2
SCHEMA = f"""
name = "t"
user = "user"
item = "item"
timestamp = "time"
[features.user]
table = "ids"
[features.item]
table = "ids"
[features.event]
table = "ids"
history_only = true
[sequences.past]
of = {{ history = "item", history_event = "event" }}
max_length = {LENGTH}
age = {{ name = "history_age", by = "time", table = "ids" }}
[sequences.recent]
of = {{ recent_event = "event" }}
max_length = {SHORT}
age = {{ name = "recent_age", by = "position", table = "ids" }}
[labels.liked]
column = "stars"
positive = [2]
dropped = [1]
"""
Rows = list[tuple[int, int, int, int]]
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(5, 9), st.integers(0, 6), st.integers(0, 2)), min_size=1
).filter(lambda rows: any(row[3] != 1 for row in rows))


def made(folder: Path, rows: Rows, **config: Any) -> Prepared:
    """Everything in train."""
    frame = pd.DataFrame(rows, columns=["user", "item", "time", "stars"])
    frame.assign(event=range(len(rows))).to_csv(folder / "log.csv", index=False)
    (folder / "schema.toml").write_text(SCHEMA)
    values = {"name": "t", "source": "csv", "path": "log.csv", "schema": "schema.toml"}
    split = {"kind": "last", "validation": 0.0, "test": 0.0}
    data = DataConfig.model_validate(values | {"split": split} | config)
    return prepare(data, data_root=folder, schema_dir=folder, out=folder / "out")


def whole(prepared: Prepared) -> Batch:
    """All examples, in the order of the rows."""
    return next(prepared.view("train").loader(10_000, seed=0, shuffle=False).epoch(0))[0]


def seen(prepared: Prepared, batch: Batch, sequence: str, source: str) -> list[list[int]]:
    """Raw ids of a sequence, row by row."""
    column = batch.jagged(sequence)
    raw = prepared.encoder.vocabularies[source].raw(column.values.numpy())
    offsets = column.offsets.tolist()
    return [[int(one) for one in raw[start:stop]] for start, stop in pairwise(offsets)]


def examples_of(rows: Rows) -> list[int]:
    """The numbers of the rows that are examples, in order."""
    return [number for number, row in enumerate(rows) if row[3] != 1]


def before(rows: Rows, number: int) -> list[int]:
    """By definition: the numbers of the rows of the same user and an earlier time, in time order."""
    user, _, time, _ = rows[number]
    past = [other for other, row in enumerate(rows) if row[0] == user and row[2] < time]
    return sorted(past, key=lambda other: (rows[other][2], other))

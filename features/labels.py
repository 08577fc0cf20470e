"""What a row is judged by: labels, sample weight, group, and a world's planted probability, read by a schema's rules.

Shapes: B rows of a table.
"""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.columns import Column
from features.hashes import hash_ids
from features.spec import FeatureSchema, LabelSpec
from features.transforms import Floats

PROBABILITY = "probability"


def read_labels(schema: FeatureSchema, table: pa.Table, first_row: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Labels by name, float32 [B], and which rows to keep, bool [B]: not those that some label drops.

    The column that the schema names as planted probability is the label "probability". Raises ValueError naming label,
    row and value for a missing or infinite number, or a probability outside 0..1.
    """
    keep = torch.ones(table.num_rows, dtype=torch.bool)
    labels = {}
    for spec in schema.labels:
        values = _present(Column.of(table, spec.column, f"label {spec.name!r}", first_row))
        keep &= torch.from_numpy(~np.isin(values, spec.dropped))
        labels[spec.name] = torch.from_numpy(label_values(spec, values))
    if schema.probability:
        column = Column.of(table, schema.probability, PROBABILITY, first_row)
        values = _present(column)
        column.refuse_first((values < 0) | (values > 1), "a probability lies in 0..1")
        labels[PROBABILITY] = torch.from_numpy(values.astype(np.float32))
    return labels, keep


def label_values(spec: LabelSpec, values: Floats) -> NDArray[np.float32]:
    """The label [B] of raw values [B]."""
    if spec.positive:
        return np.isin(values, spec.positive).astype(np.float32)
    if spec.positive_from is not None:
        return (values >= spec.positive_from).astype(np.float32)
    return values.astype(np.float32)


def read_weights(schema: FeatureSchema, table: pa.Table, first_row: int = 0) -> Tensor | None:
    """Sample weights, float32 [B], at least 0; None where the schema names no column."""
    if not schema.weight:
        return None
    column = Column.of(table, schema.weight, "weight", first_row)
    values = _present(column)
    column.refuse_first(values < 0, "a weight must be at least 0")
    return torch.from_numpy(values.astype(np.float32))


def read_group(schema: FeatureSchema, table: pa.Table, first_row: int = 0) -> Tensor | None:
    """Groups, int64 [B]: integers as they are, strings by their hash; None where the schema names no column."""
    if not schema.group:
        return None
    column = Column.of(table, schema.group, "group", first_row)
    ids = column.ids()
    column.refuse_first(ids.is_null().to_numpy(zero_copy_only=False), "a group is needed")
    return torch.from_numpy(ids.to_numpy().copy() if pa.types.is_int64(ids.type) else hash_ids(ids))


def _present(column: Column) -> Floats:
    values, missing = column.numbers()
    column.refuse_first(missing, "a value is needed")
    return values

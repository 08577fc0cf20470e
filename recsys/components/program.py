"""A ranker as a `torch.export` program, for runtimes that have torch and none of our code (`recsys export --program`).

    program = torch.export.load("program.pt2").module()
    program({"item": ids, "history": ids of all rows, "history:offsets": offsets, "price": numbers})     -> scores [B]

It takes what a `Batch` holds, encoded: the vocabularies stay in the bundle's schema component, and ids are not checked
(a dense table's lookup refuses those out of range, a hashed one takes any). Batches of 2 rows or more, since torch
makes sizes 0 and 1 constants. It is not what our server reads: torch's loader unpickles records that are flagged so.

Shapes: B rows, N values of a ragged column, T labels.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from features import storage
from features.batch import Batch, Jagged
from recsys.models.interface import Ranker

PROGRAM, COLUMNS = "program.pt2", "columns.json"
OFFSETS, WEIGHTS = ":offsets", ":weights"


class Scores(nn.Module):
    """A ranker with its tables in their serving form: tensors by name in, scores [B] or [B, T] in 0..1 out."""

    def __init__(self, model: Ranker) -> None:
        super().__init__()
        self.ranker = model

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        """columns: as `tensors_of` names them."""
        names = [name for name in columns if ":" not in name]
        return self.ranker.logits(Batch(features={name: _column(columns, name) for name in names})).sigmoid()


def _column(columns: Mapping[str, Tensor], name: str) -> Tensor | Jagged:
    if name + OFFSETS not in columns:
        return columns[name]
    return Jagged(values=columns[name], offsets=columns[name + OFFSETS], weights=columns.get(name + WEIGHTS))


def tensors_of(batch: Batch, model: Ranker) -> dict[str, Tensor]:
    """The columns that a model reads, by name: int64 [B], float32 [B]; a ragged one as its values [N], `NAME:offsets`
    [B + 1], and `NAME:weights` [N] if it has any.
    """
    tensors: dict[str, Tensor] = {}
    for spec in model.inputs:
        column = batch[spec.name]
        if not isinstance(column, Jagged):
            tensors[spec.name] = column
            continue
        tensors |= {spec.name: column.values, spec.name + OFFSETS: column.offsets}
        if column.weights is not None:
            tensors[spec.name + WEIGHTS] = column.weights
    return tensors


def save_program(folder: Path, model: Ranker, example: Batch) -> None:
    """Write program.pt2 and columns.json (name -> dtype). model: as `Run.model` gives it; example: 2 rows or more.

    Raises ValueError for a shorter example, and where torch cannot export the model (of the user's).
    """
    if len(example) < 2:
        raise ValueError(f"a program is exported from an example of at least 2 rows, got {len(example)}")
    columns = tensors_of(example, model)
    sizes = {name: {0: torch.export.Dim.AUTO} for name in columns}
    scores = Scores(model).eval().requires_grad_(False)
    try:
        program = torch.export.export(scores, (columns,), dynamic_shapes=(sizes,))
    except torch._dynamo.exc.UserError as error:
        raise ValueError(f"model {type(model).__name__} cannot be exported as a program: {error}") from None
    torch.export.save(program, folder / PROGRAM)
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in columns.items()}
    storage.write_json(folder / COLUMNS, kinds)

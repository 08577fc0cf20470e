from collections.abc import Iterator

import torch

from features.batch import Batch
from features.prepared import View
from recsys.models.view import BatchLoader, DataView, OnDevice


def as_data(view: View) -> DataView:
    """The type checker holds the platform's view, and through it the loader, to what models ask."""
    return view


def test_the_platforms_view_has_what_models_ask() -> None:
    asked = [name for name in vars(DataView) if not name.startswith("_")]
    assert asked == ["num_items", "loader", "interactions", "user_batch", "item_batch"]
    assert all(hasattr(View, name) for name in asked)
    assert [name for name in vars(BatchLoader) if not name.startswith("_")] == ["num_batches", "epoch"]


class TwoBatches:
    """Batches 0 and 1, from a start on."""

    num_batches = 2

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch, int]]:
        for number in range(start, 2):
            yield Batch(features={"x": torch.tensor([float(epoch), float(number)])}), number + 1


def test_batches_on_a_device_are_those_of_the_loader() -> None:
    placed = OnDevice(TwoBatches(), torch.device("meta"))
    assert placed.num_batches == 2
    assert [(batch.ids("x").device.type, position) for batch, position in placed.epoch(3)] == [("meta", 1), ("meta", 2)]
    on_cpu = OnDevice(TwoBatches(), torch.device("cpu"))
    assert [batch.ids("x").tolist() for batch, _ in on_cpu.epoch(3, start=1)] == [[3.0, 1.0]]

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from features.batch import Batch
from recsys.phases import Phase, Step, Until

STEP = Step(seed=1, phase="train", epoch=2, index=3)


def draw(step: Step) -> list[int]:
    return torch.randint(10**9, (4,), generator=step.generator()).tolist()


def no_batches(epoch: int, start: int) -> Iterator[tuple[Batch, int]]:
    return iter(())


def phase(name: str = "train", num_batches: int = 1) -> Phase:
    return Phase(
        name=name, batches=no_batches, num_batches=num_batches, loss=lambda batch, step: batch.row_weights(),
        optimizers=(), until=Until(max_epochs=1),
    )  # fmt: skip


def test_step_draws_the_same_again() -> None:
    assert draw(STEP) == draw(replace(STEP))


@pytest.mark.parametrize("change", [{"seed": 2}, {"phase": "graph"}, {"epoch": 3}, {"index": 2}])
def test_step_draws_depend_on_every_field(change: dict[str, int | str]) -> None:
    assert draw(STEP) != draw(replace(STEP, **change))  # type: ignore[arg-type]


def test_step_fields_do_not_run_into_each_other() -> None:
    assert draw(replace(STEP, epoch=11, index=1)) != draw(replace(STEP, epoch=1, index=11))


@pytest.mark.parametrize("wrong", [{"max_epochs": 0}, {"max_epochs": 3, "patience": 0}])
def test_until_refuses_numbers_below_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        Until(**wrong)


def test_phase_refuses_no_name_and_negative_lengths() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        phase(name="")
    with pytest.raises(ValueError, match="'train': num_batches must not be negative, got -1"):
        phase(num_batches=-1)

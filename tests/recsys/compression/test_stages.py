"""Stages are copies of phases that say what they are before every loss."""

from dataclasses import replace

import torch

from features.batch import Batch
from recsys.compression.stages import searching, telling
from recsys.phases import Phase, Step, Until

STEP = Step(seed=0, phase="", epoch=0, index=0)
BATCH = Batch(features={"x": torch.zeros(1)})


def phase(name: str, log: list[str], on_end: bool = False) -> Phase:
    def loss(batch: Batch, step: Step) -> torch.Tensor:
        log.append(f"loss of {name}")
        return torch.zeros(1)

    plain = Phase(
        name=name, batches=lambda epoch, start: iter(()), num_batches=1, loss=loss, optimizers=(),
        until=Until(max_epochs=9, patience=2),
    )  # fmt: skip
    return replace(plain, on_end=lambda: log.append(f"end of {name}")) if on_end else plain


def test_searching_phases_have_names_epochs_and_last_weights_of_their_own() -> None:
    log: list[str] = []
    given = [phase("cf", log), phase("kg", log)]
    found = searching(given, "prune", 3, before=lambda: None, after=lambda: None)
    assert [one.name for one in found] == ["cf, prune", "kg, prune"]
    assert all(one.until == Until(max_epochs=3) and not one.keep_best for one in found)
    assert [one.name for one in given] == ["cf", "kg"]


def test_searching_ends_once_after_the_last_phase_and_after_its_own_end() -> None:
    log: list[str] = []
    found = searching(
        [phase("cf", log, on_end=True), phase("kg", log, on_end=True)],
        "prune", 1, before=lambda: None, after=lambda: log.append("after"),
    )  # fmt: skip
    for one in found:
        assert one.on_end is not None
        one.on_end()
    assert log == ["end of cf", "end of kg", "after"]


def test_searching_for_no_epochs_is_nothing() -> None:
    assert searching([phase("cf", [])], "warm-up", 0, before=lambda: None, after=lambda: None) == []


def test_phases_tell_before_every_loss() -> None:
    log: list[str] = []
    (found,) = telling([phase("cf", log)], lambda: log.append("told"))
    for _ in range(2):
        found.loss(BATCH, STEP)
    assert log == ["told", "loss of cf"] * 2
    assert (found.name, found.keep_best, found.until.patience) == ("cf", True, 2)

"""Every ranker trains under bfloat16 autocast: losses and gradients in float32, near those without it."""

import pytest
import torch

from recsys.laws.model import CASES, STEP, phases_of
from recsys.models import model_class
from recsys.models.interface import Ranker

RANKERS = [name for name in CASES if issubclass(model_class(name), Ranker)]


@pytest.mark.parametrize("name", RANKERS)
def test_ranker_under_autocast_has_float32_losses_near_its_own(name: str) -> None:
    world = CASES[name].world()
    model = CASES[name].build(world)
    assert isinstance(model, Ranker)
    (phase,) = phases_of(model, world, epochs=1, batch_size=32)
    batch, _ = next(phase.batches(0, 0))
    plain = phase.loss(batch, STEP)
    with torch.autocast("cpu", torch.bfloat16):
        half = phase.loss(batch, STEP)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, atol=0.02, rtol=0.02)
    half.mean().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} <= {torch.float32}

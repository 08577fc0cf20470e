"""`[optimizer.dense]` -> torch's optimizer of that name, against its rule written out for one step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recsys.config import DenseOptimizerConfig
from recsys.training.optimizers import OPTIMIZERS, make_optimizer

LR, DECAY = 0.1, 0.01
Rule = Callable[[Tensor, Tensor], Tensor]
FIRST_STEPS: dict[str, Rule] = {
    "sgd": lambda w, g: w - LR * (g + DECAY * w),
    "adagrad": lambda w, g: w - LR * (g + DECAY * w).sign(),
    "adam": lambda w, g: w - LR * (g + DECAY * w).sign(),
    "adamw": lambda w, g: w * (1 - LR * DECAY) - LR * g.sign(),
}


def test_dense_optimizers_are_those_of_the_config() -> None:
    accepted = DenseOptimizerConfig.model_json_schema()["properties"]["name"]["enum"]
    assert set(OPTIMIZERS) == set(accepted) == set(FIRST_STEPS)


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_dense_optimizer_takes_the_step_of_its_rule(name: str) -> None:
    start, gradient = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.25, -4.0])
    weight = nn.Parameter(start.clone())
    optimizer = make_optimizer(DenseOptimizerConfig(name=name, lr=LR, weight_decay=DECAY), [weight])
    weight.grad = gradient.clone()
    optimizer.step()
    assert torch.allclose(weight.detach(), FIRST_STEPS[name](start, gradient), atol=1e-6)

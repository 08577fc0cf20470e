"""The optimizers of the dense part, from `[optimizer.dense]`. Those of tables are in `recsys.embedding.optimizers`."""

from collections.abc import Iterable

import torch
from torch import nn

from recsys.config import DenseOptimizerConfig

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


def make_optimizer(section: DenseOptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimizer of that name over the parameters, with the section's learning rate and weight decay."""
    settings = {"lr": section.lr, "weight_decay": section.weight_decay}
    return OPTIMIZERS[section.name](parameters, **settings)  # type: ignore[arg-type]

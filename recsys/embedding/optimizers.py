"""Optimizers of embedding tables: frozen value objects, each with its exact definition in plain torch.

They are not torch.optim optimizers: the collection applies them to its stores inside `backward()`. fbgemm and torchrec
run the same updates with the same eps; Adam has no counterpart there and is for the plain backend only. Rows hit more
than once in a step take one update, with the sum of their gradients.

Shapes: n rows of a store, d its width, g the gradient of a row.
"""

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from math import sqrt
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adam import adam

from features.values import Value


def padded_dim(embedding_dim: int) -> int:
    """The next multiple of 4, the only widths that fbgemm and torchrec accept."""
    return -(-embedding_dim // 4) * 4


class TableOptimizer(Value, ABC):
    """An update rule of a store. `sparse`: it reads and writes only the rows that have a gradient."""

    sparse: ClassVar[bool] = True
    lr: float = Field(gt=0)

    @abstractmethod
    def state_shapes(self, num_embeddings: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the float32 state of one store, which starts at zero."""

    @abstractmethod
    def update(self, weight: Tensor, grad: Tensor, state: MutableMapping[str, Tensor]) -> None:
        """Write one step into weight [n, d] and state. grad [n, d] is sparse (rows may repeat) or dense."""

    def scaled(self, factor: float) -> Self:
        """The same rule with `factor` times the learning rate, 0 included: state moves, weights do not."""
        return self if factor == 1.0 else self.model_copy(update={"lr": self.lr * factor})


class SGD(TableOptimizer):
    """w -= lr g."""

    def state_shapes(self, num_embeddings: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """No state."""
        return {}

    def update(self, weight: Tensor, grad: Tensor, state: MutableMapping[str, Tensor]) -> None:
        """One step on the rows of the gradient."""
        rows, values = summed_rows(grad)
        weight.index_add_(0, rows, values, alpha=-self.lr)


class Adagrad(TableOptimizer):
    """s += g^2; w -= lr g / (sqrt(s) + eps), element by element. State: momentum s [n, d]."""

    eps: float = Field(default=1e-8, gt=0)

    def state_shapes(self, num_embeddings: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """The sum of squares of every element."""
        return {"momentum": (num_embeddings, embedding_dim)}

    def update(self, weight: Tensor, grad: Tensor, state: MutableMapping[str, Tensor]) -> None:
        """One step on the rows of the gradient."""
        rows, values = summed_rows(grad)
        momentum = state["momentum"][rows] + values.square()  # [rows, d]
        state["momentum"][rows] = momentum
        weight.index_add_(0, rows, values / (momentum.sqrt_() + self.eps), alpha=-self.lr)


class RowWiseAdagrad(TableOptimizer):
    """s += mean over the row of g^2; w -= lr g / (sqrt(s) + eps). State: momentum [n], one number per row.

    The state holds sum(g^2) / padded_dim(d), and the step carries the factor sqrt(d / padded_dim(d)) that makes it the
    rule above: this is what a kernel that knows only the padded row computes, so the state has the same bits in every
    backend and a checkpoint moves between them unchanged. For multiples of 4 the factor is 1.
    """

    eps: float = Field(default=1e-8, gt=0)

    def state_shapes(self, num_embeddings: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """The mean of squares of every row, over the padded width."""
        return {"momentum": (num_embeddings,)}

    def on_padded_rows(self, embedding_dim: int) -> tuple[float, float]:
        """The lr and eps with which a kernel that averages over padded_dim(d) elements gives the rule for d."""
        factor = sqrt(embedding_dim / padded_dim(embedding_dim))
        return self.lr * factor, self.eps * factor

    def update(self, weight: Tensor, grad: Tensor, state: MutableMapping[str, Tensor]) -> None:
        """One step on the rows of the gradient."""
        lr, eps = self.on_padded_rows(weight.shape[1])
        rows, values = summed_rows(grad)
        momentum = state["momentum"][rows] + values.square().sum(1) / padded_dim(weight.shape[1])  # [rows]
        state["momentum"][rows] = momentum
        weight.index_add_(0, rows, values / (momentum.sqrt_() + eps).unsqueeze(1), alpha=-lr)


class Adam(TableOptimizer):
    """torch.optim.Adam on the whole store, plain backend only: rows without a gradient move by their momentum too.

    State: exp_avg and exp_avg_sq [n, d], step [] (a number, in float32 as torch keeps it).
    """

    sparse: ClassVar[bool] = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def state_shapes(self, num_embeddings: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """Both moments of every element, and the number of steps."""
        shape = (num_embeddings, embedding_dim)
        return {"exp_avg": shape, "exp_avg_sq": shape, "step": ()}

    def update(self, weight: Tensor, grad: Tensor, state: MutableMapping[str, Tensor]) -> None:
        """One step on every row."""
        dense = grad.to_dense() if grad.is_sparse else grad.contiguous()
        adam(
            [weight],
            [dense],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )


def summed_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a gradient [n, d], each once, and their summed values [rows, d]; of a dense one the non-zero rows."""
    if grad.is_sparse:
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()
    rows = grad.any(1).nonzero().squeeze(1)
    return rows, grad[rows]


def zero_state(optimizer: TableOptimizer, num_embeddings: int, embedding_dim: int) -> dict[str, Tensor]:
    """The state of a store before its first step."""
    shapes = optimizer.state_shapes(num_embeddings, embedding_dim)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": Adam,
}

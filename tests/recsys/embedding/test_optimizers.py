"""The update rules of tables, against loops over single rows and against torch.optim."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from recsys.embedding.optimizers import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    RowWiseAdagrad,
    TableOptimizer,
    padded_dim,
    zero_state,
)
from tests.recsys.embedding.small_schema import OPTIMIZERS as SPARSE
from tests.recsys.embedding.small_schema import NaiveStore, pull

ROWS = torch.tensor([3, 0, 3, 5, 0, 3])


def sparse_grad(width: int, seed: int) -> Tensor:
    values = pull(len(ROWS) * width, seed).view(len(ROWS), width)
    return torch.sparse_coo_tensor(ROWS.unsqueeze(0), values, (6, width), check_invariants=True)


@pytest.mark.parametrize("width", [1, 4, 10, 30])
@pytest.mark.parametrize("optimizer", SPARSE, ids=lambda optimizer: type(optimizer).__name__)
def test_update_equals_a_loop_over_rows(optimizer: TableOptimizer, width: int) -> None:
    weight = pull(6 * width, seed=9).view(6, width)
    naive, state = NaiveStore(weight, optimizer), zero_state(optimizer, 6, width)
    for step in range(4):
        grad = sparse_grad(width, step)
        naive.update({row: grad.to_dense()[row].tolist() for row in set(ROWS.tolist())})
        optimizer.update(weight, grad, state)
    torch.testing.assert_close(weight, torch.tensor(naive.rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [*SPARSE, Adam(lr=0.1)], ids=lambda optimizer: type(optimizer).__name__)
def test_update_is_the_same_for_sparse_and_dense_gradients(optimizer: TableOptimizer) -> None:
    weights = [torch.ones(6, 4), torch.ones(6, 4)]
    states = [zero_state(optimizer, 6, 4) for _ in weights]
    for step in range(3):
        grad = sparse_grad(4, step)
        optimizer.update(weights[0], grad, states[0])
        optimizer.update(weights[1], grad.to_dense(), states[1])
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(states[0], states[1])


@pytest.mark.parametrize(
    ("optimizer", "peer"),
    [
        (SGD(lr=0.3), lambda weight: torch.optim.SGD([weight], lr=0.3)),
        (Adagrad(lr=0.3, eps=1e-4), lambda weight: torch.optim.Adagrad([weight], lr=0.3, eps=1e-4)),
        (Adam(lr=0.3, betas=(0.8, 0.9)), lambda weight: torch.optim.Adam([weight], lr=0.3, betas=(0.8, 0.9))),
    ],
)
def test_update_equals_torch_optim(optimizer: TableOptimizer, peer) -> None:  # type: ignore[no-untyped-def]
    weight, parameter = torch.ones(6, 4), torch.nn.Parameter(torch.ones(6, 4))
    state, other = zero_state(optimizer, 6, 4), peer(parameter)
    for step in range(4):
        grad = sparse_grad(4, step)
        optimizer.update(weight, grad, state)
        parameter.grad = grad.to_dense()
        other.step()
    torch.testing.assert_close(weight, parameter.data)


def test_adam_moves_rows_without_a_gradient() -> None:
    weight, state = torch.ones(6, 4), zero_state(Adam(lr=0.1), 6, 4)
    Adam(lr=0.1).update(weight, sparse_grad(4, 0), state)
    before = weight[3].clone()
    nothing = torch.zeros(6, 4)
    Adam(lr=0.1).update(weight, nothing, state)
    assert not torch.equal(weight[3], before)
    assert float(state["step"]) == 2


def test_rowwise_state_is_one_number_per_row() -> None:
    assert RowWiseAdagrad(lr=0.1).state_shapes(6, 30) == {"momentum": (6,)}
    assert Adagrad(lr=0.1).state_shapes(6, 30) == {"momentum": (6, 30)}
    assert SGD(lr=0.1).state_shapes(6, 30) == {}


def test_rowwise_factor_is_one_for_multiples_of_four() -> None:
    assert [padded_dim(width) for width in (1, 4, 10, 30)] == [4, 4, 12, 32]
    assert RowWiseAdagrad(lr=0.1, eps=1e-3).on_padded_rows(16) == (0.1, 1e-3)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizer_refuses_what_it_does_not_know(kind: type[TableOptimizer]) -> None:
    assert kind.model_validate(kind(lr=0.1).model_dump()) == kind(lr=0.1)
    for wrong in ({"lr": 0}, {"lr": 0.1, "momentun": 0.9}, {}):
        with pytest.raises(ValidationError):
            kind.model_validate(wrong)

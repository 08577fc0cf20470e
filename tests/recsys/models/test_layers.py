import pytest
import torch
from torch import nn
from torch.testing import assert_close

from features.batch import Batch, Jagged
from features.spec import FeatureSpec
from recsys.models.layers import MLP, CrossNetwork, Regular, check_pooled, dense_column, looked_up


def naive_cross(network: CrossNetwork, x0: list[float]) -> list[float]:
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, number by number."""
    x = x0
    for layer in network.layers:
        assert isinstance(layer, nn.Linear)
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        projected = [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        x = [first * p + v for first, p, v in zip(x0, projected, x, strict=True)]
    return x


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_cross_network_equals_loops(num_layers: int) -> None:
    network, x0 = CrossNetwork(5, num_layers), torch.randn(4, 5)
    assert_close(network(x0), torch.tensor([naive_cross(network, row) for row in x0.tolist()]))


def test_cross_network_follows_its_example() -> None:
    network = CrossNetwork(1, 1)
    weight, bias = network.parameters()
    nn.init.constant_(weight, 2.0)
    nn.init.zeros_(bias)
    assert network(torch.tensor([[3.0]])).item() == 21.0


def test_mlp_applies_relu_after_each_layer_or_not_after_the_last() -> None:
    x = torch.randn(6, 3)
    mlp = MLP(3, (4, 2), last_linear=True)
    first, second = (layer for layer in mlp if isinstance(layer, nn.Linear))
    assert_close(mlp(x), second(first(x).relu()))
    assert [type(layer) for layer in MLP(3, (4, 2))] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]


def test_mlp_applies_the_named_activation() -> None:
    x = torch.randn(6, 3)
    mlp = MLP(3, (4,), activation="silu")
    (linear,) = (layer for layer in mlp if isinstance(layer, nn.Linear))
    assert_close(mlp(x), linear(x) * linear(x).sigmoid())


def test_mlp_without_widths_is_the_identity() -> None:
    x = torch.randn(2, 3)
    assert MLP(3, ()).width_out == 3
    assert torch.equal(MLP(3, (), last_linear=True)(x), x)


def test_lists_of_vectors_are_refused_by_name() -> None:
    unpooled = FeatureSpec(name="history", kind="id_list", table="ids", pooling="none")
    with pytest.raises(ValueError, match="feature 'history' has pooling 'none'"):
        check_pooled([unpooled])
    with pytest.raises(ValueError, match="feature 'history' has a list of vectors"):
        looked_up({"history": Jagged.from_lists([[1]])}, "history")


def test_dense_columns_are_one_number_a_row() -> None:
    batch = Batch(features={"age": torch.tensor([1.0, 2.0]), "clip": torch.zeros(2, 3)})
    assert dense_column(batch, "age").tolist() == [[1.0], [2.0]]
    with pytest.raises(ValueError, match=r"dense feature 'clip' has shape \(2, 3\)"):
        dense_column(batch, "clip")


def test_mlp_drops_the_same_elements_of_a_row_wherever_it_stands() -> None:
    mlp = MLP(4, (6, 5), regular=Regular(dropout=0.5, batch_norm=False))
    x, ids = torch.randn(8, 4), torch.arange(8)
    whole = mlp(x, Batch(features={}, row_ids=ids))
    part = mlp(x[3:5], Batch(features={}, row_ids=ids[3:5]))
    assert_close(part, whole[3:5])
    assert not torch.equal(whole, mlp.eval()(x))


def test_mlp_with_batch_norm_centres_each_hidden_layer() -> None:
    mlp = MLP(4, (6, 5), last_linear=True, regular=Regular(batch_norm=True))
    normalised = mlp[1](mlp[0](torch.randn(64, 4)))
    assert [type(layer).__name__ for layer in mlp] == ["Linear", "BatchNorm", "ReLU", "Linear"]
    assert_close(normalised.mean(0), torch.zeros(6), atol=1e-5, rtol=0)

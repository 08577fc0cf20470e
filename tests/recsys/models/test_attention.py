import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from features.batch import offsets_of
from recsys.models.activations import Activation
from recsys.models.attention import ActivationUnit, DotAttention, Form, TargetAttention

LENGTHS = (3, 0, 5, 1, 7)
OFFSETS = offsets_of(torch.tensor(LENGTHS))


def inputs(width: int = 6) -> tuple[Tensor, Tensor]:
    """Query [5, D] and keys [16, D]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, width, generator=generator), torch.randn(16, width, generator=generator)


def naive_scores(unit: ActivationUnit, query: Tensor, keys: Tensor) -> Tensor:
    """The MLP over the concatenation, in plain words."""
    q = query.repeat_interleave(torch.tensor(LENGTHS), dim=0)
    x = torch.cat([q, keys, q - keys, q * keys], dim=1)
    for layer, activation in zip(unit.layers, unit.activations, strict=True):
        x = activation(layer(x))
    scores: Tensor = unit.last(x)
    return scores[:, 0]


@pytest.mark.parametrize("activation", ["prelu", "dice", "sigmoid"])
def test_activation_unit_is_the_mlp_over_the_concatenation(activation: Activation) -> None:
    torch.manual_seed(0)
    unit, (query, keys) = ActivationUnit(6, (5, 4), activation), inputs()
    assert_close(unit(query, keys, OFFSETS), naive_scores(unit, query, keys))
    names = [name for name, _ in unit.named_parameters()]
    fast, naive = (
        torch.autograd.grad(found.square().sum(), list(unit.parameters()))
        for found in (unit(query, keys, OFFSETS), naive_scores(unit, query, keys))
    )
    for name, mine, expected in zip(names, fast, naive, strict=True):
        assert_close(mine, expected, msg=name)


@pytest.mark.parametrize("form", ["paper", "public"])
def test_target_attention_weighs_the_values_of_each_row(form: Form) -> None:
    attention, (query, keys) = TargetAttention(6, (5, 4), form=form), inputs()
    values = keys[:, :3] + 1
    scores = naive_scores(attention.unit, query, keys).split(LENGTHS)
    weights = [(row / 6**0.5).softmax(0) if form == "public" else row for row in scores]
    naive = [w @ v for w, v in zip(weights, values.split(LENGTHS), strict=True)]
    assert_close(attention(query, keys, OFFSETS, values), torch.stack(naive))
    assert_close(attention(query, keys, OFFSETS), attention(query, keys, OFFSETS, keys))


def test_target_attention_with_constant_scores_is_the_sum() -> None:
    attention, (query, keys) = TargetAttention(6, form="paper"), inputs()
    nn.init.zeros_(attention.unit.last.weight)
    nn.init.ones_(attention.unit.last.bias)
    assert_close(attention(query, keys, OFFSETS), torch.stack([part.sum(0) for part in keys.split(LENGTHS)]))


@pytest.mark.parametrize("form", ["paper", "public"])
def test_interest_does_not_depend_on_the_other_rows(form: Form) -> None:
    attention, (query, keys) = TargetAttention(6, activation="dice", form=form).eval(), inputs()
    whole = attention(query, keys, OFFSETS)
    assert not whole[1].any()
    alone = attention(query[2:3], keys[3:8], torch.tensor([0, 5]))
    assert_close(alone[0], whole[2])


def test_rows_of_weight_zero_do_not_move_the_others() -> None:
    attention, (query, keys) = TargetAttention(6, activation="dice"), inputs()
    weights = torch.tensor([1.0, 1, 1, 1, 0])
    assert_close(attention(query, keys, OFFSETS, weights=weights)[:4], attention(query[:4], keys[:9], OFFSETS[:5]))


def test_dot_attention_is_torchs_own_row_by_row() -> None:
    query, keys = inputs()
    values = keys[:, :3] + 1
    found = DotAttention((6,))(query, keys, values, OFFSETS)
    sdpa = nn.functional.scaled_dot_product_attention
    rows = zip(query, keys.split(LENGTHS), values.split(LENGTHS), strict=True)
    assert_close(found[LENGTHS.index(0)], torch.zeros(3))
    for row, (q, k, v) in enumerate(rows):
        if len(k):
            assert_close(found[row], sdpa(q[None], k, v)[0])


def test_dot_attention_scales_its_parts_apart() -> None:
    query, keys = inputs()
    parts = DotAttention((4,)).scores(query[:, :4], keys[:, :4], OFFSETS)
    parts = parts + DotAttention((2,)).scores(query[:, 4:], keys[:, 4:], OFFSETS)
    assert_close(DotAttention((4, 2)).scores(query, keys, OFFSETS), parts)


def test_layers_refuse_widths_of_nothing() -> None:
    with pytest.raises(ValueError, match="needs at least one hidden layer"):
        ActivationUnit(6, ())
    with pytest.raises(ValueError, match=r"width of at least 1, got widths = \(4, 0\)"):
        DotAttention((4, 0))


@pytest.mark.parametrize("form", ["paper", "public"])
@pytest.mark.parametrize("num_events", [0, 1, 6])
@torch.no_grad()
def test_one_history_is_that_of_every_target(form: Form, num_events: int) -> None:
    attention = TargetAttention(3, hidden=(5, 4), activation="dice", form=form).eval()
    query, keys = torch.randn(4, 3), torch.randn(num_events, 3)
    offsets = torch.arange(5) * num_events
    assert_close(attention.of_one_history(query, keys), attention(query, keys.repeat(4, 1), offsets))

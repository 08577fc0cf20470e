import pytest
import torch
from torch import nn
from torch.testing import assert_close

from recsys.models.sequence_inputs import AlignedSequences
from recsys.models.sum_pooling import BaseModel, Pooled
from tests.recsys.models.aligned_world import LENGTHS, batch, model


def base(**options: object) -> BaseModel:
    made = model("base", options=options)
    assert isinstance(made, BaseModel)
    return made


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_base_model_is_its_formula(pooling: str) -> None:
    found = base(pooling=pooling, batch_norm=False, hidden=(5,), activation="silu")
    stores, rows = found.collection.backend.weights(), batch()
    ids = {name: rows.jagged(name).values for name in rows.features if name.startswith("history")}
    keys = torch.cat(
        [
            stores["ids.item"][ids["history"]],
            stores["ids.category"][ids["history_category"]],
            stores["actions.action"][ids["history_action"]],
            stores["actions.history_age"][ids["history_age"]],
        ],
        dim=1,
    )
    parts = keys.split(LENGTHS)
    interest = torch.stack([part.sum(0) / (max(len(part), 1) if pooling == "mean" else 1) for part in parts])
    aligned = found.aligned[0]
    assert isinstance(aligned, AlignedSequences)
    assert aligned.target is not None
    item, category = stores["ids.item"][rows.ids("item")], stores["ids.category"][rows.ids("category")]
    query = torch.cat([item, category, aligned.target.expand(6, -1)], dim=1)
    others = [stores["ids.user"][rows.ids("user")], item, category, rows.ids("price")[:, None]]
    x = torch.cat([*others, interest, interest * query], dim=1)
    first = found.deep[0]
    assert isinstance(first, nn.Linear)
    hidden = nn.functional.silu(first(x))
    assert_close(found.logits(rows), found.head(hidden)[:, 0])


def test_every_parameter_of_alone_sequences_is_trained() -> None:
    found = base()
    found.logits(batch()).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in found.named_parameters()}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    assert "aligned.0.target" in gradients


def test_batch_norm_and_dropout_have_effect_only_in_training() -> None:
    found = base(dropout=0.5)
    trained = found.logits(batch())
    torch.manual_seed(torch.initial_seed() + 1)
    assert not torch.equal(found.logits(batch()), trained)
    found.eval()
    assert torch.equal(found.logits(batch()), found.logits(batch()))


def test_activation_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="activation has no effect without hidden layers"):
        base(hidden=(), activation="silu")


def test_dropout_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="dropout has no effect without hidden layers"):
        base(hidden=(), dropout=0.5)


def test_rows_of_weight_zero_move_no_other() -> None:
    found = base()
    rows = batch()
    weighted = type(rows)(features=rows.features, weights=torch.tensor([1.0, 1, 1, 1, 0, 0]), row_ids=rows.row_ids)
    assert_close(found.logits(weighted)[:4], found.logits(rows.select(torch.arange(4))))


def test_pooled_gives_zero_for_an_empty_history() -> None:
    keys, offsets = torch.ones(2, 3), torch.tensor([0, 0, 2])
    assert Pooled("mean")(torch.zeros(2, 3), keys, offsets).tolist() == [[0.0] * 3, [1.0] * 3]
    assert Pooled("sum")(torch.zeros(2, 3), keys, offsets).tolist() == [[0.0] * 3, [2.0] * 3]


def test_base_model_needs_a_sequence() -> None:
    with pytest.raises(ValueError, match="no sequence is among its inputs"):
        model("base", features=("user", "item"))


def test_base_model_needs_something_beside_its_sequences() -> None:
    with pytest.raises(ValueError, match="a row needs something of its target or user beside them"):
        model("base", features=("history_action", "history_age"))

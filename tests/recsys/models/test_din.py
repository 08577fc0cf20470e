import pytest
import torch
from torch import nn
from torch.testing import assert_close

from features.batch import Batch, Jagged
from recsys.models.attention import TargetAttention
from recsys.models.din import DIN
from recsys.phases import Step
from tests.recsys.models.aligned_world import batch, model

STEP = Step(seed=0, phase="train", epoch=0, index=0)


def din(**options: object) -> DIN:
    made = model("din", options=options)
    assert isinstance(made, DIN)
    return made


def attention_of(found: DIN) -> TargetAttention:
    attention = found.interests[0]
    assert isinstance(attention, TargetAttention)
    return attention


def test_din_with_constant_scores_is_sum_pooling() -> None:
    found, base = din(), model("base")
    unit = attention_of(found).unit
    nn.init.zeros_(unit.last.weight)
    nn.init.ones_(unit.last.bias)
    missing, unexpected = base.load_state_dict(found.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("interests.") for name in unexpected)
    assert_close(found.logits(batch()), base.logits(batch()))


@pytest.mark.parametrize("form", ["paper", "public"])
def test_din_interest_is_that_of_its_attention(form: str) -> None:
    found = din(form=form, attention_hidden=(6,))
    assert attention_of(found).form == form
    assert [layer.out_features for layer in attention_of(found).unit.layers] == [6]
    assert attention_of(found).unit.layers[0].in_features == 4 * 14


def test_scores_depend_on_the_order_of_targets_and_events_only_together() -> None:
    """Each row is scored by itself: the other rows of its batch, their labels and their lengths have no say."""
    found = din(activation="dice").eval()
    whole = found.logits(batch())
    alone = torch.cat([found.logits(batch().select(torch.tensor([row]))) for row in range(6)])
    assert_close(whole, alone)


def test_one_batch_norm_sees_positives_and_negatives_together() -> None:
    """The leak of the paper's runs: moments of the positives apart from those of the negatives. Here labels move no
    logit, in training either, and what the BatchNorm notes are the moments of all rows.
    """
    swapped = Batch(features=batch().features, labels={"click": 1 - batch().labels["click"]}, row_ids=torch.arange(6))
    first, second = din(), din()
    assert torch.equal(first.logits(batch()), second.logits(swapped))
    assert first.norm is not None
    assert second.norm is not None
    assert torch.equal(first.norm.running_mean, second.norm.running_mean)
    positives = torch.arange(6)[batch().labels["click"] > 0]
    apart = din().logits(batch().select(positives))
    assert not torch.allclose(apart, first.logits(batch())[positives])


def test_search_attends_to_the_events_of_the_targets_category() -> None:
    """As if no other event had been."""
    found, whole = din(search="category", search_k=2).eval(), din().eval()
    rows = batch()
    expected = []
    for row in range(6):
        alone = rows.select(torch.tensor([row]))
        same = (alone.jagged("history_category").values == alone.ids("category")).nonzero()[:, 0][-2:]
        columns = dict(alone.features)
        for name in (name for name in columns if name.startswith("history")):
            columns[name] = Jagged.from_lists([alone.jagged(name).values[same].tolist()])
        expected.append(whole.logits(Batch(features=columns)))
    assert_close(found.logits(rows), torch.cat(expected))


def test_search_that_has_no_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="search and search_k need each other, got 'category' and None"):
        din(search="category")
    with pytest.raises(ValueError, match=r"search = 'user' is repeated by no sequence; those that are: \['category'"):
        din(search="user", search_k=3)


@pytest.mark.parametrize("options", [{"activation": "dice"}, {"activation": "sigmoid", "form": "public"}, {}])
def test_every_parameter_is_trained(options: dict[str, object]) -> None:
    found = din(**options)
    found.row_losses(batch(), STEP).mean().backward()
    for name, parameter in found.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name

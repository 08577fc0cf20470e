import math

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from features.batch import Batch
from features.encoder import Encoder
from features.spec import parse_schema
from recsys.config import ConfigError, ModelConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import Adam
from recsys.models import make_model
from recsys.models.interface import Ranker
from recsys.models.multitask import MMoE, SharedBottom
from recsys.phases import Step

STEP = Step(seed=0, phase="train", epoch=0, index=0)
LABELS: dict[str, dict[str, str]] = {"clicked": {}, "bought": {}}
SCHEMA = parse_schema(
    {"name": "shop", "features": {"user": {"table": "ids"}, "item": {"table": "ids"}}, "labels": LABELS}, where="test"
)
ENCODER = Encoder.fit(SCHEMA, pd.DataFrame({"user": range(9), "item": range(9)}))


def ranker(name: str, **options: object) -> Ranker:
    tables = {"ids": DenseTable(embedding_dim=4)}
    collection = EmbeddingCollection(ENCODER, tables, backend="plain", optimizer=Adam(lr=0.05))
    torch.manual_seed(0)
    section = ModelConfig(name=name, options={"labels": ("clicked", "bought"), "hidden": (8,)} | options)
    model = make_model(section, ENCODER, collection)
    assert isinstance(model, Ranker)
    return model


def batch() -> Batch:
    users, items = torch.arange(1, 9), torch.arange(8, 0, -1)
    labels = {"clicked": (users % 2).float(), "bought": (users > 4).float()}
    return Batch(features={"user": users, "item": items}, labels=labels)


def test_shared_bottom_gives_every_tower_the_same_input() -> None:
    model = ranker("shared_bottom")
    assert isinstance(model, SharedBottom)
    x = torch.randn(3, 8)
    first, second = model.shared(x, batch())
    assert first is second
    assert_close(first, model.bottom(x))


def test_mmoe_mixes_experts_by_each_labels_gate() -> None:
    model = ranker("mmoe", num_experts=3)
    assert isinstance(model, MMoE)
    x = torch.randn(2, 8)
    for gate, mixed in zip(model.gates, model.shared(x, batch()), strict=True):
        shares = torch.exp(gate(x)) / torch.exp(gate(x)).sum(1, keepdim=True)
        naive = sum(shares[:, e : e + 1] * expert(x) for e, expert in enumerate(model.experts))
        assert_close(mixed, naive)


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe"])
def test_multitask_learns_two_labels_at_once(name: str) -> None:
    model = ranker(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        model.row_losses(batch(), STEP).mean().backward()
        optimizer.step()
    logits = model.logits(batch())
    assert logits.shape == (8, 2)
    assert torch.equal((logits > 0).float(), torch.stack([*batch().labels.values()], 1))


@pytest.mark.parametrize("name", ["mmoe", "shared_bottom"])
def test_multitask_predicts_all_labels_unless_told_which(name: str) -> None:
    assert ranker(name, labels=()).labels == ("clicked", "bought")
    assert ranker(name, labels=("bought",)).labels == ("bought",)
    assert ranker("dcn", labels=()).labels == ("clicked",)


def test_label_weights_scale_each_labels_loss() -> None:
    plain, weighted = ranker("mmoe"), ranker("mmoe", label_weights={"bought": 3.0})
    clicked = ranker("mmoe", label_weights={"bought": 1e-9})
    expected = 3 * plain.row_losses(batch(), STEP) - 2 * clicked.row_losses(batch(), STEP)
    assert_close(weighted.row_losses(batch(), STEP), expected)


def test_positive_weight_keeps_the_best_logit_at_the_true_odds() -> None:
    """Of four equal rows one is positive: whatever the weight, a constant logit is best at log(1/3)."""
    model = ranker("mmoe", labels=("clicked",), positive_weight=5.0)
    same = torch.ones(4, dtype=torch.int64)
    rows = Batch(features={"user": same, "item": same}, labels={"clicked": torch.tensor([1.0, 0, 0, 0])})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        model.row_losses(rows, STEP).mean().backward()
        optimizer.step()
    assert_close(model.logits(rows), torch.full((4,), -math.log(3)), atol=1e-3, rtol=0)


def test_weights_of_unknown_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="label_weights names label 'liked', this model predicts"):
        ranker("mmoe", label_weights={"liked": 2.0})
    with pytest.raises(ConfigError, match="positive_weight"):
        ranker("mmoe", positive_weight=0.0)

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from recsys.laws.checkerboard import Checkerboard
from recsys.laws.model import Case
from recsys.models.logistic import LogisticRegression

ALL = ("user", "item", "history", "tags", "age", "price")


def logistic(
    inputs: tuple[str, ...] = ("user", "item"), embedding_dim: int = 1
) -> tuple[LogisticRegression, Checkerboard]:
    case = Case(name="lr", inputs=inputs, embedding_dim=embedding_dim)
    model = case.build(case.world())
    assert isinstance(model, LogisticRegression)
    return model, case.world()


def test_logistic_regression_adds_one_weight_per_id_and_dense_feature() -> None:
    model, world = logistic(inputs=ALL)
    nn.init.normal_(model.weights)
    weights = model.weights.tolist()
    nn.init.constant_(model.bias, 0.25)
    stores = {name: store[:, 0].tolist() for name, store in model.collection.backend.weights().items()}
    batch = world.batch(world.users[:7], world.items[:7])
    expected = []
    for row in range(7):
        one = batch.select(torch.tensor([row]))
        logit = 0.25 + stores["ids.user"][one.ids("user")] + stores["ids.item"][one.ids("item")]
        logit += sum(stores["ids.tags"][tag] for tag in one.jagged("tags").values) / len(one.jagged("tags").values)
        logit += sum(stores["ids.item"][item] for item in one.jagged("history").values) / len(
            one.jagged("history").values
        )
        logit += float(one.ids("age")) * weights[0][0] + float(one.ids("price")) * weights[1][0]
        expected.append(logit)
    assert_close(model.logits(batch), torch.tensor(expected))


def test_logistic_regression_without_dense_features_starts_at_even_odds() -> None:
    model, world = logistic()
    for store in model.collection.backend.weights().values():
        store.zero_()
    assert model.logits(world.batch(world.users[:3], world.items[:3])).tolist() == [0.0, 0.0, 0.0]


def test_logistic_regression_refuses_wider_tables() -> None:
    with pytest.raises(ValueError, match="table 'ids' of feature 'user' needs embedding_dim 1, got 8"):
        logistic(embedding_dim=8)

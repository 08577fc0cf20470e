import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from recsys.laws.checkerboard import Checkerboard
from recsys.laws.model import Case
from recsys.models.mf import MatrixFactorization


def mf(inputs: tuple[str, ...] = ("user", "item"), **options: object) -> tuple[MatrixFactorization, Checkerboard]:
    case = Case(name="mf", options=options, inputs=inputs)
    model = case.build(case.world())
    assert isinstance(model, MatrixFactorization)
    return model, case.world()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_mf_scores_are_products_of_rows(similarity: str) -> None:
    model, world = mf(similarity=similarity)
    stores = model.collection.backend.weights()
    users, items = stores["ids.user"][1:], stores["ids.item"][1:]  # row 0 is the unseen id
    if similarity == "cosine":
        users, items = F.normalize(users), F.normalize(items)
    positions = torch.tensor([4, 0, 4])
    assert_close(model.scores(world, positions), users[positions] @ items.T)


def test_mf_reads_the_ids_alone() -> None:
    model, _ = mf(inputs=("user", "item", "history", "age"))
    assert [spec.name for spec in model.user_inputs + model.item_inputs] == ["user", "item"]
    with pytest.raises(ValueError, match=r"remove features \['item', 'user'\]"):
        mf(features=("item", "user"))


def test_mf_needs_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    model, world = mf()
    monkeypatch.setattr(model.collection, "embedding_dim", {"user": 8, "item": 4}.__getitem__)
    with pytest.raises(ValueError, match=r"embedding_dim is \{'user': 8, 'item': 4\}"):
        MatrixFactorization(world.encoder, model.collection, MatrixFactorization.Config())

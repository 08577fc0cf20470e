from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import Batch
from recsys.laws.checkerboard import Checkerboard
from recsys.laws.model import Case
from recsys.models.deepfm import DeepFM, pairwise_products

LISTS = (("tags", "ids.tags"), ("history", "ids.item"))
ALL = ("user", "item", "history", "tags", "age", "price")


def deepfm(inputs: tuple[str, ...] = ALL, embedding_dim: int = 4, **options: object) -> tuple[DeepFM, Checkerboard]:
    case = Case(name="deepfm", options=options, inputs=inputs, embedding_dim=embedding_dim)
    model = case.build(case.world())
    assert isinstance(model, DeepFM)
    return model, case.world()


def rows_of(model: DeepFM, batch: Batch, row: int) -> Tensor:
    """What each field holds in a row, [F, K + 1], by hand."""
    stores = model.collection.backend.weights()
    one = batch.select(torch.tensor([row]))
    lists = [stores[store][one.jagged(name).values].mean(0) for name, store in LISTS]
    ids = [stores["ids.user"][one.ids("user")[0]], stores["ids.item"][one.ids("item")[0]], *lists]
    dense = [float(one.ids(name)) * model.dense_rows[place] for place, name in enumerate(("age", "price"))]
    return torch.stack([*ids, *dense])


@torch.no_grad()
def test_deepfm_is_its_formula_pair_by_pair() -> None:
    model, world = deepfm(hidden=(5,))
    torch.nn.init.normal_(model.dense_rows)
    batch = world.batch(world.users[:6], world.items[:6])
    assert model.head is not None
    for row, logit in enumerate(model.logits(batch)):
        fields = rows_of(model, batch, row)
        products = sum(float(one[:-1] @ other[:-1]) for one, other in combinations(fields, 2))
        deep = float(model.head(model.deep[0](fields[:, :-1].flatten()).relu()))
        assert_close(
            float(logit), float(model.bias) + float(fields[:, -1].sum()) + products + deep, rtol=1e-4, atol=1e-5
        )


def test_pairwise_products_equal_the_naive_loop() -> None:
    vectors = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    naive = [sum(float(one @ other) for one, other in combinations(row, 2)) for row in vectors]
    assert_close(pairwise_products(vectors), torch.tensor(naive, dtype=torch.float64))
    assert pairwise_products(torch.tensor([[[1.0], [2.0], [3.0]]])).item() == 11


def test_deepfm_without_hidden_layers_is_a_factorisation_machine() -> None:
    model, world = deepfm(inputs=("user", "item"), hidden=())
    batch = world.batch(world.users[:5], world.items[:5])
    stores = model.collection.backend.weights()
    users, items = stores["ids.user"][batch.ids("user")], stores["ids.item"][batch.ids("item")]
    expected = users[:, -1] + items[:, -1] + (users[:, :-1] * items[:, :-1]).sum(1)
    assert_close(model.logits(batch), expected)


def test_deepfm_refuses_rows_without_room_for_vector_and_weight() -> None:
    with pytest.raises(ValueError, match=r"embedding_dim of at least 2 \(K \+ 1\), got"):
        deepfm(embedding_dim=1)


def test_deepfm_refuses_settings_without_effect() -> None:
    with pytest.raises(ValueError, match="has no effect without hidden layers"):
        deepfm(hidden=(), activation="silu")

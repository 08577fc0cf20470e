import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.batch import Batch
from recsys.laws.checkerboard import Checkerboard
from recsys.laws.model import Case
from recsys.models.dcn import DCN


def dcn(inputs: tuple[str, ...] = ("user", "item"), **options: object) -> tuple[DCN, Checkerboard]:
    case = Case(name="dcn", options=options, inputs=inputs)
    model = case.build(case.world())
    assert isinstance(model, DCN)
    return model, case.world()


def inputs_of(model: DCN, batch: Batch) -> Tensor:
    """x_0 by hand: the stores' rows, mean-pooled lists, the dense columns."""
    stores = model.collection.backend.weights()

    def mean(name: str, store: str) -> Tensor:
        lists = batch.jagged(name)
        pieces = lists.values.split(lists.lengths.tolist())
        return torch.stack([stores[store][ids].mean(0) for ids in pieces])

    return torch.cat(
        [
            stores["ids.user"][batch.ids("user")],
            stores["ids.item"][batch.ids("item")],
            mean("tags", "ids.tags"),
            batch.ids("age")[:, None],
            batch.ids("price")[:, None],
            mean("history", "ids.item"),
        ],
        dim=1,
    )


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcn_is_its_formula(structure: str) -> None:
    names = ("user", "item", "history", "tags", "age", "price")
    model, world = dcn(inputs=names, structure=structure, hidden=(5,), cross_layers=1)
    batch = world.batch(world.users[:9], world.items[:9])
    x0 = inputs_of(model, batch)
    cross = x0 * model.cross.layers[0](x0) + x0
    deep = model.deep[0]
    last = torch.cat([cross, deep(x0).relu()], 1) if structure == "parallel" else deep(cross).relu()
    assert_close(model.logits(batch), model.head(last)[:, 0])


def inputs_of_ids(model: DCN, batch: Batch) -> Tensor:
    """x_0 of the two ids alone."""
    stores = model.collection.backend.weights()
    return torch.cat([stores["ids.user"][batch.ids("user")], stores["ids.item"][batch.ids("item")]], dim=1)


def test_dcn_without_hidden_layers_is_the_crosses_alone() -> None:
    model, world = dcn(hidden=())
    batch = world.batch(world.users[:5], world.items[:5])
    assert_close(model.logits(batch), model.head(model.cross(inputs_of_ids(model, batch)))[:, 0])


def test_dcn_has_the_named_activation_in_its_mlp() -> None:
    model, world = dcn(hidden=(5,), cross_layers=0, structure="stacked", activation="silu")
    batch = world.batch(world.users[:5], world.items[:5])
    hidden = model.deep[0](inputs_of_ids(model, batch))
    assert_close(model.logits(batch), model.head(hidden * hidden.sigmoid())[:, 0])
    with pytest.raises(ValueError, match="activation has no effect without hidden layers"):
        dcn(hidden=(), activation="silu")


def test_dcn_reads_the_named_features_only() -> None:
    model, world = dcn(inputs=("user", "item", "history", "age"), features=("item", "age"))
    assert model.head.in_features == 128 + 8 + 1
    batch = world.batch(torch.tensor([0, 2]), torch.tensor([3, 3]))
    scores = model.logits(batch)
    assert not torch.equal(batch.ids("age")[0], batch.ids("age")[1])
    assert scores[0] != scores[1]
    with pytest.raises(ValueError, match="has no feature 'itme', did you mean 'item'"):
        dcn(features=("itme",))

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from recsys.laws.checkerboard import Checkerboard, tags_of
from recsys.laws.model import Case
from recsys.models.twotower import TwoTower

ALL = ("user", "item", "history", "tags", "age", "price")


def two_tower(inputs: tuple[str, ...], **options: object) -> tuple[TwoTower, Checkerboard]:
    case = Case(name="twotower", options=options, inputs=inputs)
    model = case.build(case.world())
    assert isinstance(model, TwoTower)
    return model, case.world()


def test_sum_tower_adds_the_vectors_of_each_side() -> None:
    model, world = two_tower(inputs=("user", "item", "history", "tags"), tower="sum")
    stores = model.collection.backend.weights()
    users, items, tags = stores["ids.user"], stores["ids.item"], stores["ids.tags"]
    history = world.items[world.users == 3] + 1
    expected_user = F.normalize(users[4] + items[history].mean(0), dim=0)
    expected_item = F.normalize(items[6] + tags[torch.tensor(tags_of(5)) + 1].mean(0), dim=0)
    assert_close(model.user_vectors(world.user_batch(torch.tensor([3]))), expected_user[None, None])
    assert_close(model.item_vectors(world.item_batch(torch.tensor([5]))), expected_item[None])


def test_mlp_tower_reads_every_input() -> None:
    model, world = two_tower(inputs=ALL, layers=(6, 4))
    widths = [tower[0].in_features for tower in (model.user_tower, model.item_tower)]
    assert widths == [8 + 8 + 1, 8 + 8 + 1]
    assert model.item_matrix(world).shape == (16, 4)


def test_history_and_item_side_read_one_table() -> None:
    model, _ = two_tower(inputs=("user", "item", "history"), features=("item", "history"), tower="sum")
    assert [spec.name for spec in model.user_inputs] == ["history"]
    assert set(model.collection.stores) == {"ids.user", "ids.item"}


def test_new_user_without_history_has_a_finite_score() -> None:
    model, world = two_tower(inputs=("user", "item", "history"), features=("item", "history"), tower="sum")
    nothing = world.rows(world.users < 0)
    assert torch.equal(model.scores(nothing, torch.tensor([0])), torch.zeros(1, 16))


def test_sum_tower_refuses_dense_features() -> None:
    with pytest.raises(ValueError, match=r"tower 'sum' adds vectors of one width, .*'age': 1"):
        two_tower(inputs=ALL, tower="sum")

from pathlib import Path

import pytest
import torch

from recsys.config import ConfigError, ModelConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.laws.checkerboard import Checkerboard
from recsys.models import MODELS, make_model, model_class
from recsys.models.interface import Ranker
from recsys.models.neighbours import ItemKNN

MINE = """
from recsys.models.interface import Ranker
from recsys.models.options import RankerOptions


class Mine(Ranker):
    class Config(RankerOptions):
        scale: float = 1.0

    def logits(self, batch):
        return self.vectors(batch)["item"].sum(1) * self.config.scale


class NoModel:
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine_of_a_user.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return "mine_of_a_user"


def section(**values: object) -> ModelConfig:
    return ModelConfig.model_validate(values)


def test_every_key_names_a_model_with_its_own_settings() -> None:
    for name, model in MODELS.items():
        assert model_class(name) is model
        assert model.Config.model_validate({}) == model.Config()


def test_closed_form_models_need_no_tables() -> None:
    model = make_model(section(name="itemknn", neighbours=7))
    assert isinstance(model, ItemKNN)
    assert model.config.neighbours == 7


def test_a_model_of_the_users_is_built_by_name(package: str) -> None:
    world = Checkerboard.of(("user", "item"))
    collection = EmbeddingCollection(world.encoder, {"ids": DenseTable(embedding_dim=4)}, backend="plain")
    model = make_model(section(name=f"{package}:Mine", scale=2.0), world.encoder, collection)
    batch = world.batch(world.users[:3], world.items[:3])
    expected = 2 * collection.backend.weights()["ids.item"][batch.ids("item")].sum(1)
    assert isinstance(model, Ranker)
    assert torch.equal(model.logits(batch), expected)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": "mff"}, "there is no model 'mff'; ours are popularity, itemknn"),
        ({"name": "mf"}, "model 'mf' reads tables"),
        ({"name": "dcn", "hiden": [4]}, "model 'dcn': hiden: unknown key 'hiden', did you mean 'hidden'"),
        ({"name": "mine_of_a_user:NoModel"}, "is no subclass of Ranker, Retriever or ClosedForm"),
    ],
)
def test_what_cannot_be_built_is_named(package: str, values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_model(section(**values))


def test_code_of_a_package_that_is_not_allowed_is_not_imported(package: str) -> None:
    with pytest.raises(ConfigError, match="not allowed here"):
        make_model(section(name=f"{package}:Mine"), allowed=())

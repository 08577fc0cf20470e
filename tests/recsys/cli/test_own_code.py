"""A model and a table of the user's, in a package of their own: trained by the commands, served only when allowed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recsys.bundle import BundleStore
from recsys.cli import app, serve
from serving.client import Client
from serving.pipeline import Pipeline
from serving.server import Settings, running
from tests.recsys.small_project import CTR, write_project

MODELS = '''
"""The sum of the vectors of a user and an item, and a bias that is a setting."""

from torch import Tensor

from features.batch import Batch
from recsys.models.interface import Ranker
from recsys.models.options import RankerOptions


class Sum(Ranker):
    class Config(RankerOptions):
        bias: float = 0.0

    def logits(self, batch: Batch) -> Tensor:
        vectors = self.vectors(batch)
        return sum(vectors.values()).sum(1) + self.config.bias
'''
TABLES = '''
"""Ids that differ by a multiple of `num_embeddings` share a row."""

from recsys import EmbeddingTable, TableSpec
from recsys.embedding.store import Store


class Modulo(EmbeddingTable):
    def rows(self, ids):
        return {self.stores[0].name: (ids % self.stores[0].num_embeddings)[:, None]}

    def combine(self, vectors, ids):
        return vectors[self.stores[0].name][:, 0]


class Folded(TableSpec):
    num_embeddings: int

    def build(self, name, readers, seed):
        store = Store(name=name, num_embeddings=self.num_embeddings, embedding_dim=4)
        return {reader.name: Modulo(reader.salt, [store], 4, reader.num_embeddings) for reader in readers}
'''
SECTIONS = """[model]
name = "ownshop.models:Sum"
features = ["user", "item", "category"]
bias = -1.0

[tables]
backend = "fused"

[tables.ids]
method = "ownshop.tables:Folded"
num_embeddings = 64

[optimizer"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "code" / "ownshop"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("models", MODELS), ("tables", TABLES)):
        (package / f"{name}.py").write_text(text)
    write_project(tmp_path)
    before, _, after = CTR.partition("[model]")
    (tmp_path / "own.toml").write_text(before + SECTIONS + after.partition("[optimizer")[2])
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_own_model_and_table_are_trained_exported_and_served_when_allowed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = call("train", "own.toml", "--json")
    assert trained.exit_code == 0, trained.stderr
    assert json.loads(trained.stdout)["model"] == "ownshop.models:Sum"
    assert "auc" in json.loads(call("evaluate", "runs/own", "--json").stdout)
    assert call("export", "runs/own", "--out", "store").exit_code == 0

    monkeypatch.setattr(serve, "run", lambda load, settings, say: load())
    refused = call("serve", "store")
    assert refused.exit_code == 2
    assert "code of package 'ownshop', which is not allowed here" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert call("serve", "store", "--allow", "other").exit_code == 2
    assert call("serve", "store", "--allow", "ownshop").exit_code == 0

    bundle = BundleStore("store").open()
    served = running(lambda: Pipeline.load(bundle, allowed=["ownshop"]), Settings(port=0))
    with served as address, Client(address, timeout_s=10.0) as client:
        scored = client.score(user="u00001", items=[10001, 10002], columns={"device": ["phone"], "hour": [3]})
    assert scored.scores.shape == (2, 1)
    assert ((scored.scores > 0) & (scored.scores < 1)).all()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.bais=1.0", "unknown key 'bais', did you mean 'bias'"),
        ("model.name=ownshop.models:Product", "module 'ownshop.models' has no 'Product'"),
        ("model.name=ownshop.modles:Sum", "No module named 'ownshop.modles'; is it installed, or on PYTHONPATH?"),
        ("model.name=ownshop.tables:Folded", "is no subclass of Ranker, Retriever or ClosedForm"),
        ("model.name=.models:Sum", "not of the form 'package.module:Name'"),
        ("tables.ids.num_embedings=3", "unknown key 'num_embedings', did you mean 'num_embeddings'"),
        ("tables.ids.method=ownshop.models:Sum", "is no subclass of recsys.TableSpec"),
    ],
)
def test_own_code_that_does_not_fit_is_named(project: Path, override: str, says: str) -> None:
    refused = call("train", "own.toml", override)
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (project / "runs").exists()


def test_own_code_that_cannot_be_imported_is_named(project: Path) -> None:
    broken = project / "code" / "ownbroken.py"
    for text, says in (("def f(:\n", "invalid syntax"), ("from os import nothing\n", "cannot import name 'nothing'")):
        broken.write_text(text)
        refused = call("train", "own.toml", "model.name=ownbroken:Sum")
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert says in refused.stderr

"""`recsys laws` over a stranger's package, found in the current directory, and over methods of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from recsys.cli import app
from recsys.compression import COMPRESSIONS
from recsys.laws.table import LAWS
from tests.recsys.forked import ROOT

TABLES = '''
"""Ids that differ by a multiple of `rows` share a row; and a spoiled form of it."""

from typing import ClassVar

from recsys import EmbeddingTable, TableSpec
from recsys.embedding.store import Store


class Modulo(EmbeddingTable):
    def rows(self, ids):
        return {self.stores[0].name: (ids % self.stores[0].num_embeddings)[:, None]}

    def combine(self, vectors, ids):
        return vectors[self.stores[0].name][:, 0]

    def settings(self):
        return {"name": self.name, "num_embeddings": self.num_embeddings}

    @classmethod
    def from_settings(cls, settings, stores):
        (store,) = stores.values()
        return cls(settings["name"], [store], store.embedding_dim, settings["num_embeddings"])


class Folded(TableSpec):
    rows: int
    table: ClassVar[type[Modulo]] = Modulo

    def build(self, name, readers, seed=0):
        store = Store(name=name, num_embeddings=self.rows, embedding_dim=4, precision=self.precision)
        return {reader.name: self.table(reader.salt, [store], 4, reader.num_embeddings) for reader in readers}


class Deaf(Modulo):
    def combine(self, vectors, ids):
        return super().combine(vectors, ids).detach().requires_grad_()


class Broken(Folded):
    table: ClassVar[type[Modulo]] = Deaf


class NoTable:
    pass
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of its own name, since modules stay imported."""
    name = f"stranger_{abs(hash(tmp_path)) % 10**9}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "tables.py").write_text(TABLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return f"{name}.tables"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["laws", *arguments], catch_exceptions=False)


def test_laws_hold_for_a_strangers_sound_table(package: str) -> None:
    ended = call(f"{package}:Folded", "--set", "rows=30")
    assert ended.exit_code == 0, ended.output
    assert f"{len(LAWS)} of {len(LAWS)} laws hold" in " ".join(ended.stdout.split())
    assert all(law in ended.stdout for law in LAWS)


def test_laws_name_what_a_strangers_broken_table_breaks(package: str) -> None:
    ended = call(f"{package}:Broken", "--set", "rows=30", "--json")
    assert (ended.exit_code, ended.stdout.count("\n")) == (1, 1)
    found = json.loads(ended.stdout)
    assert "gradient of" in found["broken"]["gradients_are_those_of_the_definition"]
    assert "is not changed by a step" in found["broken"]["every_parameter_is_trained"]
    assert found["laws"] == len(LAWS)
    shown = call(f"{package}:Broken", "--set", "rows=30")
    assert shown.exit_code == 1
    assert "broken: gradient of" in shown.stdout
    assert "out_of_range_ids_are_refused" in shown.stdout


def test_laws_are_a_command_of_their_own_process(package: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from recsys.cli import main; main()",
        "laws",
        f"{package}:Broken",
        "--set",
        "rows=3",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
    }  # as the installed command: no "" there
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "gradients_are_those_of_the_definition" in ended.stdout


@pytest.mark.parametrize(
    ("method", "setting"),
    [("unified", "num_embeddings=50"), ("dense", "embedding_dim=4")],
)
def test_laws_take_a_method_of_ours(method: str, setting: str) -> None:
    assert method in COMPRESSIONS
    ended = call(method, "--set", setting, "--json")
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["broken"] == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{package}:Folded",), "rows: Field required"),
        (("{package}:Folded", "--set", "rows=30", "--set", "row=3"), "did you mean 'rows'"),
        (("{package}:NoTable",), "is no subclass of recsys.TableSpec"),
        (("{package}:Modulo",), "is no subclass of recsys.TableSpec"),
        (("{package}:Absent",), "has no 'Absent'"),
        (("nowhere_at_all.tables:Folded",), "cannot be imported"),
        (("unifed",), "there is no table method 'unifed'"),
        (("unified", "--set", "num_embeddings"), "not of the form"),
    ],
)
def test_laws_of_what_is_no_table_are_refused_in_one_line(
    package: str, arguments: tuple[str, ...], says: str
) -> None:  # fmt: skip
    ended = call(*(part.format(package=package) for part in arguments))
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert says in ended.stderr


@pytest.mark.parametrize("fault", ["1 / 0", "undefined_name", "{}['key']"])
def test_laws_tell_faults_of_a_strangers_code_as_broken_laws(package: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / package.partition(".")[0] / "tables.py"
    path.write_text(
        TABLES + f"\n\nclass Faulty(Folded):\n    def build(self, name, readers, seed=0):\n        {fault}\n"
    )
    ended = call(f"{package}:Faulty", "--set", "rows=30", "--json")
    assert ended.exit_code == 1
    assert all("Error: " in why for why in json.loads(ended.stdout)["broken"].values())

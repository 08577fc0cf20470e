import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recsys.cli.conftest import call

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SMALLER = (
    "data.path=planted_small", "data.name=planted_small", "training.max_epochs=1", "training.batch_size=128",
    "model.hidden=[8]",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("diagnose")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("din", "twin", "dare"):
            ended = call("train", CONFIGS / f"planted_{name}.toml", *SMALLER)
            assert ended.exit_code == 0, ended.stderr
        ended = call("train", CONFIGS / "planted_twin.toml", *SMALLER, "--name", "base", "model.name=base")
        assert ended.exit_code == 0, ended.stderr
        yield folder


@pytest.mark.parametrize("name", ["din", "twin", "dare"])
def test_diagnose_compares_gradients_and_draws_a_page(runs: Path, name: str) -> None:
    ended = call("diagnose", f"runs/planted_{name}", "--steps", "2", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert set(found["features"]) == {"category", "history_age"}
    for feature in found["features"].values():
        assert feature["ratio"] > 0
        apart = feature["table"] != feature["attention_table"]
        assert apart == (name == "dare") == (feature["conflict"] is None)
    assert (found["conflict_by_id"] == {}) == (name == "dare")
    assert found["by"] == "category"
    page = (runs / found["page"]).read_text()
    assert page.count("<svg xmlns") == 6
    assert "category " in page


def test_diagnose_says_it_in_words(runs: Path) -> None:
    ended = call("diagnose", "runs/planted_twin", "--steps", "1", "--html", "page.html", "--categories", "5")
    assert ended.exit_code == 0, ended.stderr
    assert "ids/category" in ended.stdout
    assert "agreement of attention" in ended.stderr
    assert (runs / "page.html").exists()


def test_diagnose_refuses_a_model_without_attention_and_a_feature_that_is_not_repeated(runs: Path) -> None:
    ended = call("diagnose", "runs/base")
    assert ended.exit_code == 2
    assert "model 'base' has no target attention; din, twin and dare have" in ended.stderr
    ended = call("diagnose", "runs/planted_twin", "--by", "user")
    assert ended.exit_code == 2
    assert "feature 'user' is repeated by no sequence of the model" in ended.stderr

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from features.view import Prepared
from recsys.config import ConfigError, RunConfig, TrainingConfig, load_config
from recsys.training.checks import check_labels, check_settings, check_splits
from tests.recsys.small_project import write_project


def config(folder: Path, name: str, *overrides: str) -> RunConfig:
    return load_config(write_project(folder) / f"{name}.toml", overrides)


@pytest.mark.parametrize("name", ["ctr", "retriever", "popularity"])
def test_checks_pass_what_can_be_trained(tmp_path: Path, name: str) -> None:
    check_settings(config(tmp_path, name))


@pytest.mark.parametrize(
    ("name", "override", "says"),
    [
        ("ctr", "model.hiden=[3]", "hidden"),
        ("ctr", "tables.ids.method=hashed", "hashed"),
        ("ctr", "optimizer.tables.eps=-1", "eps"),
        ("popularity", "training.max_epochs=9", "'training' has no effect"),
        ("popularity", "optimizer.tables.lr=0.5", "'optimizer' has no effect"),
        ("ctr", "training.device=cuda", "training.device"),
        ("refitted", "data.downsample={rate = 0.1}", "no correction makes its scores probabilities"),
    ],
)
def test_checks_name_what_cannot(tmp_path: Path, name: str, override: str, says: str) -> None:
    more = ["training.refit=true"] if name == "refitted" else []
    with pytest.raises(ConfigError, match=says):
        check_settings(config(tmp_path, "ctr" if more else name, override, *more))


class Labelled:
    """Prepared data of which only labels are known."""

    def __init__(self, **values: list[float]) -> None:
        self.splits, self.values = tuple(values), values

    def labels(self, split: str, label: str) -> list[Any]:
        return [np.array([0.0, 1.0], np.float32), np.array(self.values[split], np.float32)]


def test_checks_name_a_label_that_is_no_click() -> None:
    check_labels(("click",), cast(Prepared, Labelled(train=[0, 1, 0.25], validation=[0, 1], test=[1])))
    with pytest.raises(
        ConfigError, match="label 'click' is 2 in some row of 'train', accepted is from 0 to 1: say which"
    ):
        check_labels(("click",), cast(Prepared, Labelled(train=[0, 2])))
    with pytest.raises(ConfigError, match=r"is 0\.25 in some row of 'test', accepted is 0 or 1 where it is measured"):
        check_labels(("click",), cast(Prepared, Labelled(train=[0], test=[0.25])))


def test_checks_name_a_setting_that_needs_a_split() -> None:
    check_splits(TrainingConfig(refit=True), ("train", "validation", "test"))
    with pytest.raises(ConfigError, match=r"training\.refit has no effect without a validation split"):
        check_splits(TrainingConfig(refit=True), ("train", "test"))
    with pytest.raises(ConfigError, match="no train examples"):
        check_splits(TrainingConfig(), ("test",))


def test_checks_refuse_two_tables_that_train_in_stages(tmp_path: Path) -> None:
    one = config(tmp_path, "ctr")
    specs = {name: {"method": "deeplight", "embedding_dim": 4, "budget": "50%"} for name in ("ids", "others")}
    two = RunConfig.model_validate({**one.model_dump(mode="json"), "tables": {"specs": specs}})
    with pytest.raises(ConfigError, match=r"tables \['ids', 'others'\] each train in stages"):
        check_settings(two)


def test_checks_refuse_bf16_where_it_would_be_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = config(tmp_path, "ctr", "training.precision=bf16")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"cpu_name": "Old One", "avx512_bf16": False})
    with pytest.raises(ConfigError, match=r"this cpu \(Old One\) .* accepted is 'float32'"):
        check_settings(half)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    check_settings(half)

"""Leakage: planted signs are found and named, honest data are not accused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.data_config import DataConfig
from features.prepared import Prepared, prepare

ROWS = 6000
IDS = ("user", "item", "shop")


def frame() -> pd.DataFrame:
    """An honest log: ids of very different frequency, a click that depends on them, a price with gaps."""
    rng = np.random.default_rng(0)
    ids = {name: rng.geometric(share, ROWS) for name, share in zip(IDS, (0.01, 0.02, 0.2), strict=True)}
    chance = 0.1 + 0.4 * (np.sin(ids["user"]) > 0.3) + 0.3 * (np.cos(ids["item"]) > 0)
    click = (rng.random(ROWS) < chance).astype(int)
    price = np.where(rng.random(ROWS) < 0.1, np.nan, rng.random(ROWS) + 0.3 * click)
    return pd.DataFrame(ids | {"price": price, "time": np.arange(ROWS), "click": click})


def warnings(folder: Path, log: pd.DataFrame, **columns: str) -> tuple[str, ...]:
    """columns: name -> kind of further features."""
    kinds = dict.fromkeys(IDS, "id") | {"price": "dense"} | columns
    settings = {"id": 'table = "ids"', "dense": 'kind = "dense"\nmissing = 0.0'}
    settings["item"] = 'entity = "item"\ntable = "ids"'
    features = "".join(f"[features.{name}]\n{settings[kind]}\n" for name, kind in kinds.items())
    (folder / "schema.toml").write_text(
        f'name = "made"\nuser = "user"\nitem = "item"\ntimestamp = "time"\n{features}[labels.click]\n'
    )
    log.to_parquet(folder / "log.parquet")
    return made(folder).warnings


def made(folder: Path) -> Prepared:
    values = {"name": "made", "source": "parquet", "path": "log.parquet", "schema": "schema.toml"}
    config = DataConfig.model_validate(values | {"split": {"kind": "order"}})
    return prepare(config, data_root=folder, schema_dir=folder, out=folder / "out")


def test_honest_data_are_not_accused(tmp_path: Path) -> None:
    assert warnings(tmp_path, frame()) == ()
    assert made(tmp_path).manifest["warnings"] == []


def test_a_number_that_gives_the_label_is_named(tmp_path: Path) -> None:
    log = frame()
    log["seconds"] = np.random.default_rng(1).random(ROWS) - 0.9 * log["click"]
    assert [text.split(" alone")[0] for text in warnings(tmp_path, log, seconds="dense")] == ["feature 'seconds'"]


def test_a_number_that_is_missing_without_a_click_is_named(tmp_path: Path) -> None:
    log = frame()
    log["paid"] = np.where(log["click"] > 0, np.random.default_rng(1).random(ROWS), np.nan)
    (found,) = warnings(tmp_path, log, paid="dense")
    assert found.startswith("feature 'paid' alone orders the train rows by label 'click' with AUC 1.0000")


@pytest.mark.parametrize("kind", ["id", "item"])
def test_an_id_that_gives_the_label_is_named(tmp_path: Path, kind: str) -> None:
    log = frame()
    if kind == "item":
        log["click"] = ((log["item"] % 3 > 0) ^ (np.arange(ROWS) % 100 == 0)).astype(int)
    log["verdict"] = np.where(log["item"] % 3 > 0, "buy", "leave") if kind == "item" else log["click"].map(str)
    found = warnings(tmp_path, log, verdict=kind)
    assert any(text.startswith("feature 'verdict' alone orders the train rows") for text in found)


def test_rare_ids_are_no_sign(tmp_path: Path) -> None:
    """An id of each row's own tells the label of each train row, and nothing of the others."""
    log = frame()
    log["session"] = np.arange(ROWS)
    assert warnings(tmp_path, log, session="id") == ()


def test_frequent_ids_with_one_label_are_named(tmp_path: Path) -> None:
    log = frame()
    log["page"] = np.where((log["click"] > 0) & (np.arange(ROWS) % 4 == 0), "thanks", "list")
    (found,) = warnings(tmp_path, log, page="id")
    assert found.startswith("feature 'page': 1 ids (as 'thanks')")
    assert "have a positive label 'click' in every one" in found


def test_ids_without_a_positive_are_said_to_have_none(tmp_path: Path) -> None:
    """Also where both kinds of rows are as many."""
    log = frame()
    log["click"] = np.arange(ROWS) % 2
    log["page"] = np.where(np.arange(ROWS) % 4 == 0, "skipped", "list")
    (found,) = warnings(tmp_path, log, page="id")
    assert found.startswith("feature 'page': 1 ids (as 'skipped')")
    assert "have no positive label 'click' in every one" in found


def test_test_rows_that_were_trained_on_are_counted(tmp_path: Path) -> None:
    log = frame()
    log.loc[ROWS - 300 :, :] = log.iloc[:300].to_numpy()
    log = log.astype({"user": int, "item": int, "shop": int, "time": int, "click": int})
    (found,) = warnings(tmp_path, log)
    assert found.startswith("300 of 600 test rows stand in train too, with the same user, item, time and features")


def test_rows_that_repeat_by_themselves_are_no_sign(tmp_path: Path) -> None:
    """Without a time, and with few values, most rows of any split stand in train."""
    log = frame().assign(user=1, item=2, time=3, price=0.5)
    log["click"] = np.random.default_rng(2).integers(0, 2, ROWS)
    assert warnings(tmp_path, log) == ()


def test_too_few_rows_of_a_label_are_not_judged(tmp_path: Path) -> None:
    log = frame()
    log["click"] = (np.arange(ROWS) % 150 == 0).astype(int)
    log["copy"] = log["click"].map(str)
    assert warnings(tmp_path, log, copy="id") == ()


def test_a_large_log_is_sampled_by_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.leakage.ROWS", 1000)
    log = frame()
    log["copy"] = log["click"].map(str)
    (found,) = warnings(tmp_path, log, copy="id")
    assert found.startswith("feature 'copy' alone")


def test_labels_may_be_absent(tmp_path: Path) -> None:
    warnings(tmp_path, frame())
    schema = tmp_path / "schema.toml"
    schema.write_text(schema.read_text().replace("[labels.click]", ""))
    assert made(tmp_path).warnings == ()

"""From log to batch: several labels, weights and sessions; constant features, missing numbers, labels beyond 0, 1."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from features.batch import Batch
from features.hashes import hash64
from features.prepared import DataConfig, Prepared, prepare

ROWS = 120
SCHEMA = """
name = "odd"
user = "user"
item = "item"
weight = "importance"
group = "session"
[features.user]
table = "ids"
[features.item]
table = "ids"
[features.country]
table = "ids"
[features.always]
kind = "dense"
transforms = [{ kind = "standardise" }]
[features.price]
kind = "dense"
missing = -1.0
[labels.click]
[labels.liked]
column = "stars"
positive_from = 4
dropped = [3]
[labels.rating]
column = "stars"
"""


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"user": rng.integers(0, 9, ROWS), "item": rng.integers(0, 20, ROWS), "country": "at"}
    columns |= {"always": 7.5, "price": np.where(rng.random(ROWS) < 0.3, np.nan, rng.random(ROWS))}
    columns |= {"importance": rng.integers(0, 4, ROWS) / 2, "session": [f"s{number // 5}" for number in range(ROWS)]}
    return pd.DataFrame(columns | {"click": rng.integers(0, 2, ROWS), "stars": rng.integers(1, 6, ROWS)})


def made(folder: Path, log: pd.DataFrame, schema: str = SCHEMA, **changed: Any) -> Prepared:
    log.to_parquet(folder / "log.parquet")
    (folder / "odd.toml").write_text(schema)
    values = {"name": "odd", "source": "parquet", "path": "log.parquet", "schema": "odd.toml"}
    config = DataConfig.model_validate(values | {"split": {"kind": "order"}} | changed)
    return prepare(config, data_root=folder, schema_dir=folder, out=folder / "out")


def whole(prepared: Prepared) -> list[Batch]:
    """The batches of all splits, rows in the order of the log."""
    loaders = [prepared.view(split).loader(32, seed=0, shuffle=False) for split in prepared.splits]
    return [batch for loader in loaders for batch, _ in loader.epoch(0)]


def column(batches: list[Batch], name: str) -> list[float]:
    found: list[Tensor] = [batch[name] for batch in batches]  # type: ignore[misc]
    return torch.cat(found).tolist()


def test_labels_weights_and_sessions_reach_the_batch(tmp_path: Path) -> None:
    log = frame()
    batches = whole(made(tmp_path, log))
    kept = log[log["stars"] != 3]
    for name, expected in {"click": kept["click"], "liked": kept["stars"] >= 4, "rating": kept["stars"]}.items():
        assert torch.cat([batch.labels[name] for batch in batches]).tolist() == expected.astype(float).tolist()
    weights, groups = [batch.weights for batch in batches], [batch.group for batch in batches]
    assert torch.cat([some for some in weights if some is not None]).tolist() == kept["importance"].tolist()
    sessions = [hash64(session) for session in kept["session"]]
    assert torch.cat([some for some in groups if some is not None]).tolist() == sessions


def test_integer_groups_stay_as_they_are(tmp_path: Path) -> None:
    log = frame().assign(session=np.arange(ROWS) // 5)
    groups = [batch.group for batch in whole(made(tmp_path, log)) if batch.group is not None]
    assert torch.cat(groups).tolist() == log[log["stars"] != 3]["session"].tolist()


def test_negatives_have_no_label_of_any_kind_and_the_weight_of_their_positive(tmp_path: Path) -> None:

    batches = whole(made(tmp_path, frame(), negatives={"per_positive": 1}))
    click = torch.cat([batch.labels["click"] for batch in batches])
    rating = torch.cat([batch.labels["rating"] for batch in batches])  # at least 1 in the log
    drawn = rating == 0
    assert (click.roll(1)[drawn] == 1).all()
    weights = torch.cat([batch.weights for batch in batches if batch.weights is not None])
    assert drawn.sum() == (click == 1).sum()
    assert torch.equal(weights[drawn], weights[:-1][drawn[1:]])
    assert not torch.cat([batch.labels["liked"] for batch in batches])[drawn].any()


def test_constant_features_are_constant_inputs(tmp_path: Path) -> None:
    """A constant number has no deviation to divide by and becomes 0; a constant id is one row, beside row 0."""
    prepared = made(tmp_path, frame())
    batches = whole(prepared)
    assert set(column(batches, "always")) == {0.0}
    assert set(column(batches, "country")) == {1}
    assert prepared.encoder.num_embeddings("country") == 2


def test_missing_numbers_take_the_value_that_the_schema_gives(tmp_path: Path) -> None:
    log = frame()
    expected = log[log["stars"] != 3]["price"].fillna(-1.0).astype(np.float32).tolist()
    assert column(whole(made(tmp_path, log)), "price") == expected


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_must_be_finite_are_bad_rows(tmp_path: Path, wrong: float) -> None:
    log = frame()
    log.loc[4, "always"] = wrong
    problem = "is missing" if np.isnan(wrong) else "is not finite"
    with pytest.raises(ValueError, match=rf"log\.parquet row 5: always .*{problem}"):
        made(tmp_path, log)
    assert made(tmp_path, log, bad_rows="quarantine").counts["bad"] == 1


@pytest.mark.parametrize(("label", "wrong"), [("click", np.nan), ("stars", np.inf)])
def test_labels_must_be_finite_numbers(tmp_path: Path, label: str, wrong: float) -> None:
    log = frame().astype({label: float})
    log.loc[4, label] = wrong
    with pytest.raises(ValueError, match=rf"log\.parquet row 5: {label} "):
        made(tmp_path, log)


def test_a_label_of_one_kind_is_prepared(tmp_path: Path) -> None:
    batches = whole(made(tmp_path, frame().assign(click=1)))
    assert all(bool((batch.labels["click"] == 1).all()) for batch in batches)

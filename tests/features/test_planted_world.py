"""The planted world: its clicks against a naive sum, its histories, and that its schema cuts what the truth saw."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.data_config import DataConfig
from features.planted_world import NOT_SHOWN, Planted, _truth
from features.prepared import Prepared, prepare
from features.worlds import WORLDS, generate

SCHEMA = Path(__file__).resolve().parents[2] / "configs" / "schemas" / "planted.toml"
SMALL = Planted(num_users=3, num_items=24, num_categories=8, length=12, num_impressions=4)


@cache
def events() -> pa.Table:
    return generate("planted_small").events


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    values = {"name": "planted", "source": "world", "path": "planted_small", "schema": str(SCHEMA)}
    config = DataConfig.model_validate(values | {"split": {"kind": "last", "validation": 0.1, "test": 0.15}})
    folder = tmp_path_factory.mktemp("planted")
    return prepare(config, data_root=None, schema_dir=folder, out=folder / "out")


def naive_probability(row: dict[str, Any], views: list[dict[str, Any]], category: dict[int, int]) -> float:
    truth = _truth(np.random.default_rng(3), SMALL)
    total, weighted = 0.0, 0.0
    for view in views[-SMALL.length :]:
        seconds = row["timestamp"] - view["timestamp"]
        doublings = 1 + int(np.floor(np.log2(1 + seconds)))
        pair = category[view["item"]], category[row["item"]]
        weight = np.exp(truth.relevance[pair] - SMALL.forgetting * doublings)
        total, weighted = total + weight, weighted + weight * truth.meaning[pair]
    return float(1 / (1 + np.exp(-(SMALL.bias + SMALL.gain * weighted / total))))


def test_planted_probability_equals_a_naive_sum() -> None:
    made = SMALL.make(np.random.default_rng(3))
    category = {row["item"]: int(row["category"].split()[1]) for row in made.items.to_pylist()}
    views: dict[str, list[dict[str, Any]]] = {}
    shown = 0
    for row in made.events.to_pylist():
        earlier = views.setdefault(row["user"], [])
        if row["viewed"]:
            earlier.append(row)
        else:
            shown += 1
            assert row["probability"] == pytest.approx(naive_probability(row, earlier, category), abs=2e-6)
    assert shown == SMALL.num_users * SMALL.num_impressions


def test_every_impression_has_a_whole_history_before_it() -> None:
    world = Planted()
    seen: dict[str, int] = {}
    made = Planted(num_users=5).make(np.random.default_rng(0)).events
    for user, viewed in zip(made["user"].to_pylist(), made["viewed"].to_pylist(), strict=True):
        if not viewed:
            assert seen[user] >= world.length
        seen[user] = seen.get(user, 0) + viewed
    assert set(seen.values()) == {world.num_views}


def test_events_stand_in_time_order_and_no_user_has_two_at_once() -> None:
    time, user = events()["timestamp"].to_numpy(), events()["user"].to_numpy(zero_copy_only=False)
    assert (np.diff(time) >= 0).all()
    assert len(set(zip(user, time, strict=True))) == len(time)


def test_views_have_no_click_and_impressions_follow_their_probability() -> None:
    click, probability = events()["click"].to_numpy(), events()["probability"].to_numpy()
    shown = click != NOT_SHOWN
    assert (events()["viewed"].to_numpy() == ~shown).all()
    assert set(click[shown]) == {0, 1}
    deviation = np.sqrt((probability * (1 - probability))[shown].sum())
    assert abs(click[shown].sum() - probability[shown].sum()) < 4 * deviation
    assert 0 < probability[shown].min() < probability[shown].max() < 1


def test_truth_asks_near_vectors_of_attention_and_opposite_ones_of_representation() -> None:
    """Relevance has rank 2 and is highest for the own category; what the own category says is as often no as yes."""
    truth = _truth(np.random.default_rng(0), Planted(num_categories=200))
    assert np.linalg.matrix_rank(truth.relevance, tol=1e-3) == 2
    assert (truth.relevance.argmax(axis=1) == np.arange(200)).all()
    assert np.linalg.matrix_rank(truth.meaning, tol=1e-3) == 16
    assert (np.diag(truth.meaning) > 0).mean() == pytest.approx(0.5, abs=0.1)
    correlation = np.corrcoef(truth.relevance.flatten(), truth.meaning.flatten())[0, 1]
    assert correlation == pytest.approx(0, abs=0.05)


def test_schema_cuts_the_views_that_the_truth_saw(prepared: Prepared) -> None:
    assert prepared.counts["train"] + prepared.counts["validation"] + prepared.counts["test"] == 60 * 20
    batch, _ = next(iter(prepared.view("test").loader(64, seed=0).epoch(0)))
    assert set(batch.labels) >= {"click", "probability"}
    assert batch.jagged("history").lengths.min() >= 40
    assert set(batch.labels["click"].tolist()) == {0.0, 1.0}
    ages = batch.jagged("history_age").values
    assert 6 <= int(ages.min()) < int(ages.max()) < 32


def test_sizes_of_the_named_worlds() -> None:
    assert Planted().length == 200
    assert {"planted", "planted_small"} <= set(WORLDS)

"""The world of many ids: its batches against each other, its ids, and what is planted in its clicks."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from features import bigids_world
from features.bigids_world import FEW_IDS, MANY_IDS, BigIds, _normal, _uniform
from features.data_config import DataConfig
from features.prepared import prepare
from features.worlds import open_world

SCHEMA = Path(__file__).resolve().parents[2] / "configs" / "schemas" / "bigids.toml"


@cache
def events() -> dict[str, NDArray[Any]]:
    table = open_world("bigids_small").readers()["events"].read_all()
    return {name: table[name].to_numpy() for name in table.column_names}


def auc(label: NDArray[Any], score: NDArray[Any]) -> float:
    """Mann-Whitney with ties counted half."""
    positive = label == 1
    ranks = rankdata(score)[positive]
    return float((ranks.mean() - (len(ranks) + 1) / 2) / (~positive).sum())


def test_rows_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    world = BigIds(num_rows=1_000, cardinalities=FEW_IDS)
    whole = world.make(np.random.default_rng(3))
    monkeypatch.setattr(bigids_world, "BATCH_ROWS", 137)
    pieces = world.make(np.random.default_rng(3))
    assert len(list(pieces.batches())) == 8
    assert pa.Table.from_batches(pieces.batches()).combine_chunks() == pa.Table.from_batches(whole.batches())
    assert pieces.content_hash == whole.content_hash


def test_shorter_world_is_the_beginning_of_a_longer_one() -> None:
    made = [BigIds(num_rows=rows, cardinalities=FEW_IDS).make(np.random.default_rng(3)) for rows in (50, 70)]
    short, long = (pa.Table.from_batches(stream.batches()) for stream in made)
    assert short == long.slice(0, 50)


def test_ids_of_the_large_world_are_many() -> None:
    assert len(MANY_IDS) == len(FEW_IDS) == 20
    assert sum(MANY_IDS) > 8_000_000
    assert MANY_IDS[0] * MANY_IDS[14] == 10**9  # the ids of the cross
    assert list(MANY_IDS) == sorted(MANY_IDS, reverse=True)


@pytest.mark.parametrize(("place", "size"), list(enumerate(FEW_IDS)))
def test_ids_follow_their_power_law(place: int, size: int) -> None:
    ids = events()[f"c{place + 1:02d}"]
    assert ids.min() >= 0
    assert ids.max() < size
    counts = np.sort(np.bincount(ids, minlength=size))[::-1]
    most = counts[: max(1, size // 16)].sum() / len(ids)  # of the ids in the first sixteenth
    assert most == pytest.approx((max(1, size // 16) / size) ** 0.25, abs=0.03)


def test_cross_is_a_pair_of_ids() -> None:
    made = events()
    assert (made["cross"] // FEW_IDS[14] == made["c01"]).all()
    assert (made["cross"] % FEW_IDS[14] == made["c15"]).all()


def test_clicks_have_the_planted_probability() -> None:
    made = events()
    deviation = np.sqrt((made["probability"] * (1 - made["probability"])).sum())
    assert abs(made["click"].sum() - made["probability"].sum()) < 4 * deviation
    for part in np.array_split(np.argsort(made["probability"]), 10):
        assert made["click"][part].mean() == pytest.approx(made["probability"][part].mean(), abs=0.03)


def test_ceiling_is_clear_of_the_best_single_feature() -> None:
    made = events()
    logit = np.log(made["probability"] / (1 - made["probability"]))
    means = {name: np.bincount(made[name], weights=logit) for name in ("c01", "c20")}
    alone = [auc(made["click"], (means[name] / np.bincount(made[name]).clip(1))[made[name]]) for name in means]
    assert auc(made["click"], made["probability"]) > max(alone) + 0.1


def test_planted_logits_equal_a_naive_sum() -> None:
    world = BigIds(num_rows=20, cardinalities=FEW_IDS)
    rng = np.random.default_rng(3)
    effects = [rng.integers(1 << 62, size=20) for _ in range(2)][1]
    crosses = [[[int(salt) for salt in rng.integers(1 << 62, size=2)] for _ in range(2)] for _ in world.pairs]
    (batch,) = world.make(np.random.default_rng(3)).batches()
    for row in batch.to_pylist():
        logit = world.bias
        for place, name in enumerate(world.features):
            logit += (0.8 if place < 7 else 0.3) * one(row[name], int(effects[place]))
        for (left, right), salts in zip(world.pairs, crosses, strict=True):
            parts = [one(row[left], first) * one(row[right], second) for first, second in zip(*salts, strict=True)]
            logit += world.crossing * sum(parts) / np.sqrt(2)
        assert row["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=2e-6)


def one(number: int, salt: int) -> float:
    return float(_normal(np.array([number]), salt)[0])


def test_hashed_numbers_have_their_distributions() -> None:
    numbers = np.arange(100_000)
    normal, uniform = _normal(numbers, 5), _uniform(numbers, 5)
    assert normal.mean() == pytest.approx(0, abs=0.015)
    assert normal.std() == pytest.approx(1, abs=0.01)
    assert abs(normal).max() < 3.5
    assert 0 <= uniform.min() < uniform.max() < 1
    assert np.histogram(uniform, 10, (0, 1))[0] == pytest.approx(np.full(10, 10_000), rel=0.05)


def test_world_prepares_with_its_schema(tmp_path: Path) -> None:
    values = {"name": "few", "source": "world", "path": "bigids_small", "schema": str(SCHEMA)}
    config = DataConfig.model_validate(values | {"split": {"kind": "random", "validation": 0.05, "test": 0.1}})
    prepared = prepare(config, data_root=None, schema_dir=tmp_path, out=tmp_path / "out")
    assert prepared.counts["events"] == 50_000
    batch, _ = next(iter(prepared.view("test").loader(64, seed=0).epoch(0)))
    assert set(batch.features) == {f"c{number:02d}" for number in range(1, 21)}
    assert set(batch.labels) == {"click", "probability"}

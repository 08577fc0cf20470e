"""What is planted in the demo world, and recency against a naive loop."""

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from features.shop_world import CATEGORIES, DAY, START, Shop, _clicks, _Visits
from features.world_tables import WorldTables
from features.worlds import generate


@cache
def world() -> WorldTables:
    return generate("demo")


def joined() -> dict[str, NDArray[Any]]:
    """The events of the demo world with the attributes of their users and items."""
    tables = world()
    table = tables.events.join(tables.users, "user").join(tables.items, "item").sort_by("timestamp")
    return {name: table[name].to_numpy() for name in table.column_names}


def auc(label: NDArray[Any], score: NDArray[Any]) -> float:
    """Mann-Whitney with ties counted half."""
    positive = label == 1
    ranks = rankdata(score)[positive]
    return float((ranks.mean() - (len(ranks) + 1) / 2) / (~positive).sum())


def test_events_name_known_users_and_items() -> None:
    tables = world()
    assert [table.num_rows for table in (tables.events, tables.users, tables.items)] == [200_000, 5_000, 3_000]
    assert set(tables.events["user"].to_pylist()) <= set(tables.users["user"].to_pylist())
    assert set(tables.events["item"].to_pylist()) <= set(tables.items["item"].to_pylist())
    assert (tables.users["user"].type, tables.items["item"].type) == (pa.string(), pa.int64())
    assert all(table[name].null_count == 0 for table in (tables.events, tables.users) for name in table.column_names)


def test_events_stand_in_time_order_within_thirty_days() -> None:
    time = world().events["timestamp"].to_numpy() - START
    assert (np.diff(time) >= 0).all()
    assert 0 <= time[0] < DAY
    assert 29 * DAY <= time[-1] < 30 * DAY
    assert np.array_equal(world().events["hour"].to_numpy(), time % DAY // 3_600)


def test_clicks_follow_their_probability() -> None:
    events = world().events
    click, probability = events["click"].to_numpy(), events["probability"].to_numpy()
    assert 0.15 < click.mean() < 0.25
    for low in np.arange(0, 1, 0.1):
        inside = (probability >= low) & (probability < low + 0.1)
        error = (click - probability)[inside].mean()
        spread = np.sqrt((probability * (1 - probability))[inside].mean() / inside.sum())
        assert abs(error) < 4 * spread


def test_ceiling_leaves_room_below_and_above() -> None:
    events = world().events
    assert 0.80 < auc(events["click"].to_numpy(), events["probability"].to_numpy()) < 0.87


def test_crosses_tell_more_than_their_parts() -> None:
    table = joined()
    late = table["timestamp"] >= np.quantile(table["timestamp"], 0.9)
    columns = [np.unique(table[name], return_inverse=True)[1] for name in ("age_group", "gender", "category")]
    segment = columns[0] * 2 + columns[1]

    def rates(cells: NDArray[np.int64]) -> NDArray[np.float64]:
        clicks = np.bincount(cells[~late], table["click"][~late].astype(float), minlength=cells.max() + 1)
        rate = (clicks + 1) / (np.bincount(cells[~late], minlength=cells.max() + 1) + 5)
        logit: NDArray[np.float64] = np.log(rate / (1 - rate))[cells[late]]
        return logit

    click = table["click"][late]
    crossed = auc(click, rates(segment * len(CATEGORIES) + columns[2]))
    assert crossed > auc(click, rates(segment) + rates(columns[2])) + 0.03


def test_items_appear_daily_and_one_category_on_day_six() -> None:
    table = joined()
    assert (table["timestamp"] >= table["launched"]).all()
    new_items = world().items["launched"].to_numpy()
    assert set(range(1, 30)) <= set(((new_items - START) // DAY).tolist())
    first = {name: table["timestamp"][table["category"] == name].min() for name in CATEGORIES}
    assert [name for name in CATEGORIES if first[name] >= START + DAY] == ["drones"]
    assert (first["drones"] - START) // DAY == 6


def test_some_items_and_users_are_cold() -> None:
    events, items = world().events, world().items
    train = events["timestamp"].to_numpy() < np.quantile(events["timestamp"].to_numpy(), 0.8)
    shown = np.unique(events["item"].to_numpy())
    assert 20 <= items.num_rows - len(shown) <= 100
    assert len(shown) - len(np.unique(events["item"].to_numpy()[train])) > 100
    users = np.array(events["user"].to_pylist())
    assert len(np.unique(users)) - len(np.unique(users[train])) > 100


def test_triples_tell_of_every_item() -> None:
    triples = world().triples.to_pydict()
    assert set(triples["relation"]) == {"made_by", "is_a", "tagged", "belongs_to"}
    heads = [head for head, relation in zip(triples["head"], triples["relation"], strict=True) if relation == "is_a"]
    assert heads == [f"item:{item}" for item in world().items["item"].to_pylist()]


def test_recency_equals_a_loop_over_past_clicks() -> None:
    rng = np.random.default_rng(0)
    user, time = np.sort(rng.integers(0, 5, 200)), rng.integers(0, 5 * DAY, 200)
    order = np.lexsort((time, user))
    visits = _Visits(user[order], time[order], np.zeros(200, np.int64))
    category, logits = rng.integers(0, 4, 200), rng.standard_normal(200)
    shop = Shop(num_users=5, recency=2.0)
    probability, click = _clicks(np.random.default_rng(1), shop, visits, category, logits)
    assert 20 < click.sum() < 180
    for row in range(200):
        speed, weight = [(0.25, 1.0), (1.0, 0.8), (4.0, 0.6)][category[row] % 3]
        earlier = (
            (visits.user == visits.user[row]) & (np.arange(200) < row) & (category == category[row]) & (click == 1)
        )
        decayed = np.exp((visits.time[earlier] - visits.time[row]) / (speed * DAY)).sum()
        logit = logits[row] + 2.0 * weight * min(1.0, decayed)
        assert probability[row] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)

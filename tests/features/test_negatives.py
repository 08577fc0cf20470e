"""Negatives: never what a user has, everything else inherited, a pure function of the rows; thinning by a hash."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.data_config import DataConfig, DownsampleConfig, NegativesConfig
from features.database import Database
from features.hashes import hash64, mix64
from features.log_columns import CODE, EXAMPLE, NEGATIVE, NUMBER
from features.negatives import check_negatives, thinned, with_negatives
from features.spec import FeatureSchema, parse_schema

NUM_ROWS, NUM_ITEMS = 800, 40
VALUES: dict[str, Any] = {
    "name": "shop", "user": "user", "item": "item",
    "features": {"user": {"table": "ids"}, "item": {"table": "ids"}, "place": {"table": "ids"}},
    "labels": {"click": {}, "bought": {}},
}  # fmt: skip
SETS = {"past": {"of": {"history": "item"}, "max_length": 5, "ordered": False}}
SCHEMA = parse_schema(VALUES, "test")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path) as opened:
        yield opened


def log(num_rows: int = NUM_ROWS, num_items: int = NUM_ITEMS, **columns: Any) -> pa.Table:
    """Rows with gaps in their numbers; low items are popular, a tenth are views, a tenth no examples."""
    rng = np.random.default_rng(0)
    click = (rng.random(num_rows) < 0.9).astype(np.float64)
    made = {
        NUMBER: np.cumsum(rng.integers(1, 3, num_rows)),
        "user": rng.integers(0, 60, num_rows),
        "item": np.minimum(rng.geometric(0.1, num_rows), num_items) - 1,
        "place": rng.integers(0, 5, num_rows),
        "label:click": click,
        "label:bought": click,
        EXAMPLE: rng.random(num_rows) < 0.9,
        CODE: rng.integers(0, 3, num_rows).astype(np.int8),
    }
    return pa.table(made | columns)


def drawn(database: Database, table: pa.Table, **config: Any) -> list[dict[str, Any]]:
    for name in (
        "log", "known_pairs", "negatives_pool", "drawn", "events_with_negatives", *(f"open_{n}" for n in range(18))
    ):  # fmt: skip
        database.drop(name)
    events = database.store_arrow("log", table)
    rows: list[dict[str, Any]] = database.fetch(
        with_negatives(database, events, SCHEMA, NegativesConfig(**config))
    ).to_pylist()
    return rows


def by_positive(rows: list[dict[str, Any]], per_positive: int) -> dict[int, list[dict[str, Any]]]:
    """Negatives by the number of the row that they were drawn for."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row[NEGATIVE]:
            found[row[NUMBER] // (per_positive + 1)].append(row)
    return found


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_negatives_are_never_items_that_the_user_has(database: Database, kind: str) -> None:
    table = log()
    known = set(zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True))
    negatives = by_positive(drawn(database, table, kind=kind, per_positive=3), 3)
    for row in table.to_pylist():
        mine = negatives.get(row[NUMBER], [])
        positive = row[EXAMPLE] and row["label:click"] > 0
        assert len({one["item"] for one in mine}) == len(mine) == (3 if positive else 0)
        assert not any((one["user"], one["item"]) in known for one in mine)


def test_negatives_inherit_everything_but_item_and_labels(database: Database) -> None:
    table = log()
    rows = drawn(database, table, per_positive=2)
    originals = {row[NUMBER]: row for row in table.to_pylist()}
    for number, mine in by_positive(rows, 2).items():
        for one in mine:
            kept = {name: one[name] for name in ("user", "place", EXAMPLE, CODE)}
            assert kept == {name: originals[number][name] for name in kept}
            assert one["label:click"] == one["label:bought"] == 0


def test_the_log_itself_stays_and_numbers_rise(database: Database) -> None:
    table = log()
    rows = drawn(database, table, per_positive=2)
    numbers = [row[NUMBER] for row in rows]
    assert numbers == sorted(set(numbers))
    own = [{**row, NUMBER: row[NUMBER] // 3} for row in rows if not row[NEGATIVE]]
    assert [{name: row[name] for name in table.column_names} for row in own] == table.to_pylist()


def test_the_first_accepted_draw_is_the_stated_one(database: Database) -> None:
    """Equality with a loop over rows, for one uniform negative."""
    table = log()
    known = set(zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True))
    pool = sorted(set(table["item"].to_pylist()))
    negatives = by_positive(drawn(database, table, seed=5), 1)
    for row in table.to_pylist():
        attempts = (hash64(f"5/0/{attempt}", salt="negatives") for attempt in range(16))
        items = (pool[((mix64(row[NUMBER], salt) % (1 << 64)) & ((1 << 63) - 1)) % len(pool)] for salt in attempts)
        expected = next(item for item in items if (row["user"], item) not in known)
        assert [one["item"] for one in negatives.get(row[NUMBER], [])] in ([expected], [])


def test_negatives_depend_on_number_and_seed_alone(database: Database) -> None:
    table = log()
    first = drawn(database, table, per_positive=2, seed=1)
    shuffled = table.take(np.random.default_rng(1).permutation(NUM_ROWS))
    assert drawn(database, shuffled, per_positive=2, seed=1) == first
    assert drawn(database, table, per_positive=2, seed=2) != first


def test_users_with_nearly_everything_get_what_is_left(database: Database) -> None:
    """User 0 has all items but two, user 1 all of them."""
    users, items = [0] * 38 + [1] * 40, [*range(38), *range(40)]
    ones = np.ones(78)
    columns = {"user": users, "item": items, NUMBER: np.arange(78), "place": users, "label:click": ones}
    columns |= {"label:bought": ones, EXAMPLE: ones > 0, CODE: np.zeros(78, np.int8)}
    negatives = by_positive(drawn(database, pa.table(columns), per_positive=3), 3)
    assert sorted(negatives) == list(range(38))
    assert all({one["item"] for one in mine} == {38, 39} for mine in negatives.values())


def test_text_ids_and_rows_without_user_or_item(database: Database) -> None:
    table = log()
    users = [None if row % 7 == 0 else f"u{user}" for row, user in enumerate(table["user"].to_pylist())]
    items = [None if row % 11 == 0 else f"i{item}" for row, item in enumerate(table["item"].to_pylist())]
    rows = drawn(database, log(user=users, item=items), per_positive=1)
    negatives = by_positive(rows, 1)
    originals = {row[NUMBER] // 2: row for row in rows if not row[NEGATIVE]}
    for number, (one,) in negatives.items():
        assert one["item"] is not None
        assert one["item"] != originals[number]["item"] is not None
    assert any(one["user"] is None for (one,) in negatives.values())


def test_popularity_draws_in_proportion_to_positive_train_examples(database: Database) -> None:
    rng = np.random.default_rng(0)
    item = np.minimum(rng.geometric(0.1, 6000), NUM_ITEMS) - 1
    table = log(6000, user=np.arange(6000), item=item)
    rows = drawn(database, table, kind="popularity", per_positive=1)
    trained = [r for r in table.to_pylist() if r[EXAMPLE] and r["label:click"] > 0 and r[CODE] == 0]
    shares = np.bincount([r["item"] for r in trained], minlength=NUM_ITEMS) / len(trained)
    own = np.array([r["item"] for r in rows if not r[NEGATIVE] and r[EXAMPLE] and r["label:click"] > 0])
    expected = (shares * (1 / (1 - shares[own])).sum()) - shares * np.bincount(own, 1 / (1 - shares[own]), NUM_ITEMS)
    found = np.bincount([r["item"] for r in rows if r[NEGATIVE]], minlength=NUM_ITEMS)
    assert np.abs(found - expected).max() < 5 * np.sqrt(expected.max())
    assert not found[shares == 0].any()


def test_nothing_to_draw_for_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="there is no positive example to draw negatives for"):
        drawn(database, log(NUM_ROWS, NUM_ITEMS, **{CODE: np.full(NUM_ROWS, 2, np.int8)}), kind="popularity")


def test_thinning_keeps_a_hashed_share_of_negative_train_examples(database: Database) -> None:
    table = log(3000, NUM_ITEMS, **{"label:click": np.arange(3000) % 2.0})
    events = database.store_arrow("log", table)
    kept = database.fetch(thinned(events, SCHEMA, DownsampleConfig(rate=0.25, seed=3)))[EXAMPLE].to_numpy()
    hashes = mix64(table[NUMBER].to_numpy(), hash64("3", salt="downsample"))
    spared = (table[CODE].to_numpy() != 0) | (table["label:click"].to_numpy() > 0)
    low = hashes.astype(np.float64) < (0.25 - 0.5) * 2.0**64
    assert np.array_equal(kept, table[EXAMPLE].to_numpy() & (spared | low))
    assert abs(low.mean() - 0.25) < 0.03


def schema(**changed: Any) -> FeatureSchema:
    return parse_schema({**VALUES, **changed}, "test")


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ({"negatives": {}}, {"labels": {}}, "data.negatives needs `user`, `item` and a label"),
        ({"negatives": {}}, {"item": ""}, "data.negatives needs `user`, `item` and a label"),
        ({"negatives": {}}, {"probability": "truth"}, "names a planted probability, which negatives lack"),
        ({"negatives": {}}, {"sequences": SETS}, "a history without order would show each negative the positive"),
        ({"downsample": {"rate": 0.5}}, {"labels": {}}, "data.downsample needs a label"),
        ({"downsample": {"rate": 0.5}, "examples": "positive"}, {}, "there are no negatives to leave out"),
    ],
)
def test_schemas_that_negatives_cannot_serve_are_refused(
    given: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    values = {"name": "x", "source": "csv", "path": "x", "schema": "x", "split": {"kind": "random"}} | given
    with pytest.raises(ValueError, match=message):
        check_negatives(schema(**changed), DataConfig.model_validate(values))


def test_most_common_items_are_drawn_evenly_when_uniform(database: Database) -> None:
    rows = drawn(database, log(4000, user=np.arange(4000)), per_positive=2)
    found = Counter(row["item"] for row in rows if row[NEGATIVE])
    counts = np.array([found[item] for item in range(1, NUM_ITEMS)])
    assert len(found) == NUM_ITEMS
    assert counts.min() > 0.7 * counts.mean()

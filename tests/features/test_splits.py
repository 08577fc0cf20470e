"""Splits: exact shares, point-in-time order, a pure function of rows, and equality with naive loops."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest

from features.data_config import SplitConfig
from features.database import Database
from features.hashes import hash64, mix64
from features.log_columns import CODE, EXAMPLE, NUMBER, TIME
from features.source_files import SPLIT
from features.splits import Splitter

NUM_ROWS = 3000


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path) as opened:
        yield opened


def log(**columns: Any) -> pa.Table:
    """Rows in file order, times with ties, users of very different activity; gaps in the numbers."""
    rng = np.random.default_rng(0)
    made = {
        NUMBER: np.cumsum(rng.integers(1, 3, NUM_ROWS)),
        "user": np.minimum(rng.geometric(0.02, NUM_ROWS), 200),
        TIME: rng.integers(0, 500, NUM_ROWS),
        EXAMPLE: np.ones(NUM_ROWS, bool),
    }
    return pa.table(made | columns)


def codes(database: Database, table: pa.Table, user: str = "user", **config: Any) -> np.ndarray[Any, Any]:
    database.drop("log", "events", "events_codes")
    events = database.store_arrow("log", table)
    stored = database.fetch(Splitter(database, SplitConfig(**config), user=user).assign(events, "events"))
    assert stored[NUMBER].to_pylist() == table[NUMBER].to_pylist()
    return stored[CODE].to_numpy()  # type: ignore[no-any-return]


def by_user(table: pa.Table, order: Any) -> dict[int, list[int]]:
    """Rows of each user, in the given order of rows."""
    rows: dict[int, list[int]] = defaultdict(list)
    users = table["user"].to_pylist()
    for row in order:
        rows[users[row]].append(row)
    return rows


def test_random_shares_are_exact_and_follow_the_hash(database: Database) -> None:
    table = log()
    found = codes(database, table, kind="random", validation=0.1, test=0.25, seed=7)
    order = np.argsort(mix64(table[NUMBER].to_numpy(), hash64("rows/7", salt="splits")))
    expected = np.zeros(NUM_ROWS, np.int64)
    expected[order[:750]], expected[order[750:1050]] = 2, 1
    assert np.array_equal(found, expected)


def test_random_depends_on_number_and_seed_alone(database: Database) -> None:
    table = log()
    found = codes(database, table, kind="random", seed=1)
    shuffled = table.take(np.random.default_rng(0).permutation(NUM_ROWS))
    again = codes(database, shuffled.sort_by(NUMBER), kind="random", seed=1)
    assert np.array_equal(found, again)
    assert not np.array_equal(found, codes(database, table, kind="random", seed=2))


def test_random_counts_examples_alone(database: Database) -> None:
    table = log().set_column(3, EXAMPLE, pa.array(np.arange(NUM_ROWS) % 3 == 0))
    found = codes(database, table, kind="random", test=0.1, validation=0.1)
    assert np.bincount(found[::3]).tolist() == [800, 100, 100]


def test_time_split_is_point_in_time(database: Database) -> None:
    table = log()
    found, times = codes(database, table, kind="time", validation=0.1, test=0.2), table[TIME].to_numpy()
    assert times[found == 0].max() < times[found == 1].min()
    assert times[found == 1].max() < times[found == 2].min()
    ranked = np.sort(times)
    assert np.array_equal(found == 2, times >= ranked[NUM_ROWS - 600])
    assert np.array_equal(found >= 1, times >= ranked[NUM_ROWS - 900])


def test_time_split_places_other_events_by_their_time(database: Database) -> None:
    table = log().set_column(3, EXAMPLE, pa.array(np.arange(NUM_ROWS) % 2 == 0))
    found, times = codes(database, table, kind="time"), table[TIME].to_numpy()
    assert times[found == 0].max() < times[found == 1].min() <= times[found == 1].max() < times[found == 2].min()


def test_order_split_cuts_the_file_where_shares_say(database: Database) -> None:
    found = codes(database, log().drop_columns([TIME, "user"]), user="", kind="order", validation=0.1, test=0.2)
    assert np.array_equal(found, np.repeat([0, 1, 2], [2100, 300, 600]))


def test_order_split_counts_examples_alone(database: Database) -> None:
    table = log().set_column(3, EXAMPLE, pa.array(np.arange(NUM_ROWS) % 3 == 0))
    found = codes(database, table, kind="order", test=0.1, validation=0.1)
    assert np.bincount(found[::3]).tolist() == [800, 100, 100]
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("text", [False, True])
def test_user_split_follows_the_hash_of_the_user(database: Database, text: bool) -> None:
    users = log()["user"].to_pylist()
    named: list[Any] = [f"u{user}" if text else user for user in users]
    found = codes(database, log(user=named), kind="user", validation=0.2, test=0.3, seed=4)
    ids = np.array([hash64(user) if text else user for user in named])
    place = (mix64(ids, hash64("users/4", salt="splits")).astype(np.float64) + 2.0**63) / 2.0**64
    assert np.array_equal(found, np.where(place < 0.3, 2, np.where(place < 0.5, 1, 0)))


def test_user_split_keeps_users_whole_when_others_join(database: Database) -> None:
    table = log()
    found = codes(database, table, kind="user")
    few = table.filter(pa.compute.less(table["user"], 60))
    again = codes(database, few, kind="user", test=0.1)
    both = found[table["user"].to_numpy() < 60]
    assert np.array_equal(both, again)
    assert all(len(set(found[rows])) == 1 for rows in by_user(table, range(NUM_ROWS)).values())


def test_user_split_trains_on_rows_without_a_user(database: Database) -> None:
    users = [None if row % 2 else user for row, user in enumerate(log()["user"].to_pylist())]
    found = codes(database, log(user=users), kind="user", validation=0.2, test=0.2)
    assert not found[1::2].any()
    assert set(found[::2].tolist()) == {0, 1, 2}


def naive_last(table: pa.Table, test: float, validation: float) -> np.ndarray[Any, Any]:
    expected = np.zeros(NUM_ROWS, np.int64)
    for rows in by_user(table, np.lexsort((table[NUMBER].to_numpy(), table[TIME].to_numpy()))).values():
        left = len(rows)
        for code, size in ((2, test), (1, validation)):
            wanted = int(size) if size >= 1 else int(size * len(rows) + 0.5)
            taken = max(min(wanted, left - 1), 0)
            expected[rows[left - taken : left]] = code
            left -= taken
    return expected


@pytest.mark.parametrize(("test", "validation"), [(1, 1), (2, 0), (0.1, 0.1), (0.3, 2)])
def test_last_split_equals_a_loop_over_users(database: Database, test: float, validation: float) -> None:
    table = log()
    found = codes(database, table, kind="last", test=test, validation=validation)
    assert np.array_equal(found, naive_last(table, test, validation))


def test_last_split_keeps_other_events_before_later_examples(database: Database) -> None:
    table = log().set_column(3, EXAMPLE, pa.array(np.arange(NUM_ROWS) % 4 == 0))
    found = codes(database, table, kind="last", test=1, validation=1)
    order = np.lexsort((table[NUMBER].to_numpy(), table[TIME].to_numpy()))
    for rows in by_user(table, order).values():
        assert (np.diff(found[rows]) >= 0).all()
        examples = [code for row, code in zip(rows, found[rows], strict=True) if row % 4 == 0]
        assert examples.count(2) == min(1, max(len(examples) - 1, 0))


def published() -> pa.Array:
    return pa.array(np.where(np.arange(NUM_ROWS) % 5 == 0, "test", "train"))


def test_published_split_is_kept(database: Database) -> None:
    parts = np.array(["train", "validation", "test"])[np.arange(NUM_ROWS) % 3]
    assert np.array_equal(codes(database, log(**{SPLIT: parts}), kind="published"), np.arange(NUM_ROWS) % 3)


def test_published_validation_is_drawn_per_user_by_hash(database: Database) -> None:
    table = log(**{SPLIT: published()}).drop_columns([TIME])
    found = codes(database, table, kind="published", validation=0.1, seed=3)
    hashes = mix64(table[NUMBER].to_numpy(), hash64("validation/3", salt="splits"))
    expected = np.where(np.arange(NUM_ROWS) % 5 == 0, 2, 0)
    for rows in by_user(table, np.argsort(hashes)).values():
        train = [row for row in rows if expected[row] == 0]
        expected[train[: max(min(int(0.1 * len(train) + 0.5), len(train) - 1), 0)]] = 1
    assert np.array_equal(found, expected)


def test_published_validation_is_the_latest_where_there_are_times(database: Database) -> None:
    table = log(**{SPLIT: published()})
    found = codes(database, table, kind="published", validation=0.2)
    times, numbers = table[TIME].to_numpy(), table[NUMBER].to_numpy()
    assert np.array_equal(found == 2, np.arange(NUM_ROWS) % 5 == 0)
    for rows in by_user(table, np.lexsort((numbers, times))).values():
        train = [found[row] for row in rows if found[row] < 2]
        assert train == sorted(train)
        assert train.count(1) == max(min(int(0.2 * len(train) + 0.5), len(train) - 1), 0)


def test_published_validation_without_users_is_a_share_of_all(database: Database) -> None:
    table = log(**{SPLIT: published()}).drop_columns([TIME, "user"])
    found = codes(database, table, user="", kind="published", validation=0.1)
    assert np.bincount(found).tolist() == [2160, 240, 600]


def test_published_validation_can_be_left_out(database: Database) -> None:
    found = codes(database, log(**{SPLIT: published()}), kind="published", validation=0)
    assert set(found.tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("absent", "config", "message"),
    [
        ([], {"kind": "published"}, "the source has no published split"),
        ([TIME], {"kind": "time"}, "which needs `timestamp` in the schema"),
        ([TIME], {"kind": "last"}, "which needs `timestamp` in the schema"),
    ],
)
def test_a_split_names_what_it_needs(
    database: Database, absent: list[str], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codes(database, log().drop_columns(absent), **config)


@pytest.mark.parametrize("kind", ["last", "user"])
def test_splits_of_users_need_users(database: Database, kind: str) -> None:
    with pytest.raises(ValueError, match="needs `user` in the schema"):
        codes(database, log(), user="", kind=kind)


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (4, {"kind": "random"}, "no example is left for 'validation', of 4 examples"),
        (0, {"kind": "random"}, "0 examples leave none to train on"),
        (3000, {"kind": "last", "test": 0, "validation": 0.0001}, "no example is left for 'validation'"),
    ],
)
def test_an_empty_split_is_refused(database: Database, rows: int, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codes(database, log().slice(0, rows), **config)

"""A day's folder against one prepared from the whole log, and what a day may hold: late events, nothing, a kill."""

import os
import shutil
import signal
from collections.abc import Mapping
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.data_config import DataConfig
from features.days import Places, prepare_day
from features.prepared import Prepared, prepare
from features.storage import inject
from features.utc_day import UtcDay
from features.worlds import generate
from tests.recsys.small_project import SCHEMA

START, DAY = 1_767_225_600, 86_400  # 2026-01-01
FIRST, SECOND, THIRD, FOURTH = (UtcDay(date(2026, 1, number)) for number in range(1, 5))
SHOP = """
name = "shop"
user = "user"
item = "item"
timestamp = "time"
[features.user]
table = "ids"
[features.item]
table = "ids"
[features.price]
kind = "dense"
entity = "item"
transforms = [{ kind = "standardise" }]
[features.action]
table = "ids"
[sequences.past]
of = { history = "item", history_action = "action" }
max_length = 3
[labels.click]
"""
CONFIG: dict[str, Any] = {
    "name": "shop", "source": "csv", "path": "log.csv", "schema": "shop.toml", "split": {"kind": "day"},
}  # fmt: skip


def log(days: int = 4, rows: int = 40) -> pd.DataFrame:
    """Users, items and actions that join day by day."""
    return pd.concat([log_of(day, rows) for day in range(days)], ignore_index=True)


def log_of(day: int, rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(day)
    items = rng.integers(0, 5 + 4 * day, rows)
    return pd.DataFrame(
        {
            "user": [f"u{number}" for number in rng.integers(0, 4 + 3 * day, rows)],
            "item": items,
            "price": items / 2 + 1,
            "action": rng.integers(0, 2 + day, rows),
            "time": START + day * DAY + np.sort(rng.integers(0, DAY, rows)),
            "click": rng.integers(0, 2, rows),
        }
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.toml").write_text(SHOP)
    write(tmp_path, log())
    return tmp_path


def write(shop: Path, frame: pd.DataFrame) -> None:
    """As one log, and as a file a day."""
    frame.to_csv(shop / "log.csv", index=False)
    for number, rows in frame.groupby((frame["time"] - START) // DAY):
        rows.to_csv(shop / f"2026-01-0{number + 1}.csv", index=False)


def make(shop: Path, day: UtcDay, yesterday: Prepared | None, stages: list[str] | None = None, **changed: Any) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        if stages is not None and done == total:
            stages.append(stage)

    places = Places(data_root=shop, schema_dir=shop, out=shop / "out")
    return prepare_day(DataConfig.model_validate(CONFIG | changed), day, yesterday, places, progress=progress)


def chain(shop: Path, *days: UtcDay, **changed: Any) -> list[Prepared]:
    made: list[Prepared] = []
    for day in days:
        made.append(make(shop, day, made[-1] if made else None, **changed))
    return made


def seen(prepared: Prepared, split: str, max_length: int, columns: Mapping[str, str]) -> list[Any]:
    """For each example its raw user and item, and the raw events that it sees."""
    rows = pq.read_table(prepared.files(split)[0])
    users, items, histories = prepared.users, prepared.items, prepared.histories
    assert users is not None
    assert items is not None
    assert histories is not None
    events, offsets = histories.slice(rows["user"].to_numpy(), rows["position"].to_numpy(), max_length)
    named = [items.raw(histories.column("items", events).tolist())]
    for feature in columns:
        named.append(prepared.encoder.vocabularies[feature].raw(histories.column(feature, events)))
    past = [tuple(values) for values in zip(*named, strict=True)]
    pairs = zip(users.raw(rows["user"].to_pylist()), items.raw(rows["item"].to_pylist()), strict=True)
    return [(pair, past[offsets[row] : offsets[row + 1]]) for row, pair in enumerate(pairs)]


def test_day_sees_the_histories_of_the_whole_log(shop: Path) -> None:
    columns = {"action": "history_action"}
    split = {"kind": "time", "validation": 0.25, "test": 0.25}
    whole = prepare(
        DataConfig.model_validate(CONFIG | {"split": split}), data_root=shop, schema_dir=shop, out=shop / "whole"
    )
    third, fourth = chain(shop, FIRST, SECOND, THIRD, FOURTH)[2:]
    known = set(whole.encoder.vocabularies["action"].raw_ids) | {None}
    for day, part in ((third, "validation"), (fourth, "test")):
        expected, found = seen(whole, part, 3, columns), seen(day, "train", 3, columns)
        found = [(pair, [(i, a if a in known else None) for i, a in past]) for pair, past in found]
        assert found == expected


def test_days_grow_what_there_was(shop: Path) -> None:
    made = chain(shop, FIRST, SECOND, THIRD)
    for older, newer in pairwise(made):
        newer.encoder.check_extends(older.encoder)
        assert older.users is not None and newer.users is not None  # noqa: PT018
        assert newer.users.raw_ids[: len(older.users)].tolist() == older.users.raw_ids.tolist()
        assert newer.counts["new_users"] == len(newer.users) - len(older.users) > 0
        assert newer.counts["new_ids"] > 0
    assert made[0].counts["new_items"] == made[0].counts["items"]
    assert made[1].splits == ("train",)


def test_days_of_files_hold_what_days_of_one_log_hold(shop: Path) -> None:
    ones = chain(shop, FIRST, SECOND)
    others = chain(shop, FIRST, SECOND, path="{day}.csv", name="files")
    for one, other in zip(ones, others, strict=True):
        assert one.manifest["files"].keys() == other.manifest["files"].keys()
        assert one.encoder.content_hash == other.encoder.content_hash
        assert seen(one, "train", 3, {}) == seen(other, "train", 3, {})


def test_rows_of_a_day_know_no_value_that_an_item_takes_later_in_it(shop: Path) -> None:
    frame = log()
    rows = frame.index[(frame["item"] == 1) & ((frame["time"] - START) // DAY == 1)]
    assert len(rows) > 1
    frame.loc[rows, "price"] = [2.5, *[99.0] * (len(rows) - 1)]
    write(shop, frame)
    _, second = chain(shop, FIRST, SECOND)
    assert second.items is not None
    assert second.items.column("price")[int(second.items.positions([1])[0])].as_py() == 2.5


def test_day_opens_its_own_file_alone(shop: Path) -> None:
    first = make(shop, FIRST, None, path="{day}.csv")
    (shop / "2026-01-01.csv").unlink()
    (shop / "2026-01-03.csv").unlink()
    assert make(shop, SECOND, first, path="{day}.csv").counts["train"] == 40


def test_day_is_reused(shop: Path) -> None:
    first, second = chain(shop, FIRST, SECOND)
    before = sorted((shop / "out").iterdir())
    for path in ("log.csv", "{day}.csv"):
        stages: list[str] = []
        again = make(shop, SECOND, first, stages, path=path)
        assert (again.path == second.path) == (path == "log.csv")
    assert "reused" not in stages
    make(shop, SECOND, first, stages, path="{day}.csv")
    assert stages[-1] == "reused"
    assert set(before) < set((shop / "out").iterdir())


def test_log_that_goes_on_changes_no_earlier_day(shop: Path) -> None:
    first, second = chain(shop, FIRST, SECOND)
    write(shop, log(days=6))
    assert [made.path for made in chain(shop, FIRST, SECOND)] == [first.path, second.path]
    changed = log()
    changed.loc[0, "action"] = 7
    write(shop, changed)
    assert make(shop, FIRST, None).path != first.path


def test_day_depends_on_all_days_before(shop: Path) -> None:
    first, second, third = chain(shop, FIRST, SECOND, THIRD)
    assert make(shop, THIRD, first).path != third.path
    assert third.manifest["yesterday"] == second.content_hash


def test_day_without_rows_is_skipped(shop: Path) -> None:
    assert make(shop, UtcDay(date(2025, 12, 31)), None) is None
    assert make(shop, UtcDay(date(2025, 12, 31)), None, path="{day}.csv") is None
    log()[:0].to_csv(shop / "2025-12-31.csv", index=False)
    assert make(shop, UtcDay(date(2025, 12, 31)), None, path="{day}.csv") is None
    assert not list((shop / "out").iterdir())


def test_day_of_views_alone_is_skipped(shop: Path) -> None:
    frame = log()
    frame.loc[frame["time"] < START + DAY, "click"] = 0
    write(shop, frame)
    assert make(shop, FIRST, None, examples="positive") is None
    assert make(shop, SECOND, None, examples="positive").counts["train"] > 0


def test_late_event_is_named_or_set_aside(shop: Path) -> None:
    late = log()[35:80]
    late.to_csv(shop / "2026-01-02.csv", index=False)
    with pytest.raises(ValueError, match=r"row 1: time .* is before 2026-01-02, the day of this log.*quarantine"):
        make(shop, SECOND, None, path="{day}.csv")
    kept = make(shop, SECOND, None, path="{day}.csv", bad_rows="quarantine")
    assert (kept.counts["train"], kept.counts["bad"]) == (40, 5)
    assert (kept.path / "quarantine" / "bad_rows.parquet").exists()


def test_ids_that_were_text_stay_text(shop: Path) -> None:
    frame = log()
    second = (frame["time"] >= START + DAY) & (frame["time"] < START + 2 * DAY)
    frame.loc[second, "user"] = frame.loc[second, "user"].str.removeprefix("u")
    write(shop, frame)
    made = chain(shop, FIRST, SECOND, THIRD)
    assert made[1].users is not None
    assert {"u0", "0"} <= set(made[1].users.raw_ids)
    frame = frame.astype({"item": object})
    frame.loc[second, "item"] = "one"
    write(shop, frame)
    with pytest.raises(ValueError, match="integers"):
        chain(shop, FIRST, SECOND)


def test_row_without_a_time_is_bad(shop: Path) -> None:
    frame = log().astype({"time": object})
    frame.loc[3, "time"] = None
    frame.to_csv(shop / "log.csv", index=False)
    with pytest.raises(ValueError, match=r"log.csv row 4: time is missing"):
        make(shop, SECOND, None)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"split": {"kind": "time"}}, "data.split.kind is 'time'"),
        ({"min_events": 2}, "min_events"),
        ({"downsample": {"rate": 0.5}}, "a day's rows also test the model of the day before"),
        ({"path": "{dy}.csv"}, r"'{dy}\.csv' has braces that are not {day}"),
        ({"path": "nowhere/log.csv", "files": {"users": "users.csv"}}, "no file"),
    ],
)
def test_day_refuses_what_has_no_meaning(shop: Path, changed: dict[str, Any], complaint: str) -> None:
    if "files" in changed:
        assert make(shop, FIRST, None, path="nowhere/log.csv") is None
    with pytest.raises(ValueError, match=complaint):
        make(shop, FIRST, None, **changed)


def test_times_that_are_hardly_seconds_are_refused(shop: Path) -> None:
    frame = log()
    frame.assign(time=frame["time"] * 1000).to_csv(shop / "log.csv", index=False)
    with pytest.raises(ValueError, match=r"'time' goes up to \d{13}; times that are numbers are seconds"):
        make(shop, FIRST, None)


def test_prepare_leaves_days_to_the_daily_job(shop: Path) -> None:
    with pytest.raises(ValueError, match="each day is prepared by itself, by `recsys daily`"):
        prepare(DataConfig.model_validate(CONFIG), data_root=shop, schema_dir=shop, out=shop / "out")


def test_day_goes_on_from_an_earlier_one_alone(shop: Path) -> None:
    _, second = chain(shop, FIRST, SECOND)
    with pytest.raises(ValueError, match="not the folder of a day before 2026-01-02"):
        make(shop, SECOND, second)
    (shop / "shop.toml").write_text(SHOP.replace("max_length = 3", "max_length = 2"))
    with pytest.raises(ValueError, match="another schema"):
        make(shop, THIRD, second)


def test_day_reads_uris(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(shop / "cache"))
    first = make(shop, FIRST, None, path=f"file://{shop}/{{day}}.csv")
    assert first.content_hash == make(shop, FIRST, None, path="{day}.csv").content_hash
    assert make(shop, UtcDay(date(2026, 2, 1)), first, path=f"file://{shop}/{{day}}.csv") is None


def check_killed(shop: Path, second: Prepared, number: int, whole: Prepared) -> None:
    """Kill the making of the third day at a point: what stands under its name is whole, and it is made again."""
    shutil.rmtree(whole.path)
    child = os.fork()
    if child == 0:
        with inject(number, "kill"):
            make(shop, THIRD, second, path="{day}.csv")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if whole.path.exists():
        Prepared.open(whole.path)
    assert make(shop, THIRD, second, path="{day}.csv").manifest == whole.manifest
    assert not list((shop / "out").glob(".aside*"))


def whole_third(shop: Path) -> tuple[Prepared, Prepared, list[str]]:
    second = make(shop, SECOND, None, path="{day}.csv")
    with inject() as points:
        whole = make(shop, THIRD, second, path="{day}.csv")
    return second, whole, list(points)


def test_killed_day_leaves_nothing_half_made(shop: Path) -> None:
    second, whole, points = whole_third(shop)
    for label in ("half-written:histories", "half-written:examples", f"rename:{whole.path.name}"):
        check_killed(shop, second, points.index(label) + 1, whole)


@pytest.mark.slow
def test_day_killed_at_every_point_is_made_again(shop: Path) -> None:
    second, whole, points = whole_third(shop)
    for number in range(1, len(points) + 1):
        check_killed(shop, second, number, whole)


def test_world_by_days_knows_the_new_category(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text(SCHEMA.read_text())
    world = {"source": "world", "path": "small", "schema": "demo.toml"}
    made = chain(tmp_path, *(UtcDay(date(2026, 1, number)) for number in range(5, 10)), **world)
    times = generate("small").events["timestamp"].to_numpy()
    rows = [int(((times >= START + day * DAY) & (times < START + (day + 1) * DAY)).sum()) for day in range(4, 9)]
    assert [prepared.counts["train"] for prepared in made] == rows
    known = ["drones" in prepared.encoder.vocabularies["category"].raw_ids for prepared in made]
    assert not known[0]
    assert known[-1]
    items = made[-1].items
    assert items is not None
    drones = np.flatnonzero(np.asarray(items.column("category")) == "drones")
    row = made[-1].encoder.vocabularies["category"].find(["drones"])[0]
    assert (items.features.ids("category").numpy()[drones] == row).all()

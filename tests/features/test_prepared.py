"""`prepare` as a whole: reuse, atomicity, one clear line for each error, and the real datasets."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from features.prepared import DataConfig, Prepared, prepare
from features.storage import inject

DATA = os.environ.get("RECSYS_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="RECSYS_DATA is not set")
ROOT = Path(__file__).resolve().parents[2]
SCHEMA = """
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
[sequences.past]
of = { history = "item" }
max_length = 5
[labels.click]
"""
CONFIG: dict[str, Any] = {
    "name": "shop", "source": "csv", "path": "shop", "schema": "shop.toml", "split": {"kind": "time"},
    "files": {"events": "log.csv"},
}  # fmt: skip


def frame(rows: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    items = rng.integers(0, 20, rows)
    columns = {"user": rng.integers(0, 9, rows), "item": items, "price": items / 2, "time": np.arange(rows)}
    return pd.DataFrame(columns | {"click": rng.integers(0, 2, rows)})


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    frame().to_csv(tmp_path / "shop" / "log.csv", index=False)
    (tmp_path / "shop.toml").write_text(SCHEMA)
    return tmp_path


def make(shop: Path, stages: list[str] | None = None, **changed: Any) -> Prepared:
    def progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if stages is not None and done == total:
            stages.append(stage)

    config = DataConfig.model_validate(CONFIG | changed)
    return prepare(config, data_root=shop, schema_dir=shop, out=shop / "out", progress=progress)


def left(shop: Path) -> list[str]:
    return sorted(path.name for path in (shop / "out").iterdir()) if (shop / "out").exists() else []


def test_prepare_names_the_folder_by_its_content(shop: Path) -> None:
    prepared = make(shop)
    assert prepared.path == shop / "out" / f"shop-{prepared.content_hash[:12]}"
    assert left(shop) == [prepared.path.name]
    assert prepared.counts == {
        "read": 200, "bad": 0, "dropped": 0, "events": 200, "train": 160, "validation": 20, "test": 20, "users": 9,
        "items": 20,
    }  # fmt: skip
    assert not (prepared.path / "work").exists()


def test_prepare_reuses_and_says_so(shop: Path) -> None:
    first, stages = make(shop), []  # type: tuple[Prepared, list[str]]
    before = (first.path / "manifest.json").stat().st_mtime_ns
    again = make(shop, stages)
    assert stages[-1] == "reused"
    assert "examples" not in stages
    assert (again.path / "manifest.json").stat().st_mtime_ns == before


def test_prepare_tells_its_stages(shop: Path) -> None:
    stages: list[str] = []
    make(shop, stages)
    assert list(dict.fromkeys(stages)) == ["raw files", "reading", "splitting", "learning", "histories", "examples"]


@pytest.mark.parametrize("what", ["config", "schema", "data"])
def test_prepare_makes_anew_what_differs(shop: Path, what: str) -> None:
    first = make(shop)
    changed: dict[str, Any] = {"split": {"kind": "last"}} if what == "config" else {}
    if what == "schema":
        (shop / "shop.toml").write_text(SCHEMA.replace("max_length = 5", "max_length = 6"))
    if what == "data":
        frame(201).to_csv(shop / "shop" / "log.csv", index=False)
    assert make(shop, **changed).content_hash != first.content_hash
    assert len(left(shop)) == 2


def test_prepare_does_not_follow_places(shop: Path) -> None:
    first = make(shop)
    (shop / "shop").rename(shop / "moved")
    assert make(shop, path="moved").path == first.path


def test_prepare_is_a_function_of_its_inputs(shop: Path) -> None:
    first = make(shop)
    first.path.rename(shop / "kept")
    again = make(shop)
    for name, checksum in again.manifest["files"].items():
        assert checksum == Prepared.open(shop / "kept").manifest["files"][name], name


def test_formats_give_the_same_examples(shop: Path) -> None:
    expected = make(shop)
    frame().to_parquet(shop / "shop" / "log.parquet")
    frame().to_csv(shop / "shop" / "log.tsv.gz", index=False, sep="\t")
    for source, name in (("parquet", "log.parquet"), ("tsv", "log.tsv.gz")):
        found = make(shop, source=source, files={"events": name})
        assert found.encoder.content_hash == expected.encoder.content_hash
        for split in expected.splits:
            assert pq.read_table(found.files(split)).equals(pq.read_table(expected.files(split)))


def test_several_files_are_one_log(shop: Path) -> None:
    expected = make(shop)
    for number, start in enumerate((0, 70, 140)):
        frame().iloc[start : start + 70].to_csv(shop / "shop" / f"part{number}.csv", index=False)
    found = make(shop, files={"events": "part*.csv"})
    for split in expected.splits:
        assert pq.read_table(found.files(split)).equals(pq.read_table(expected.files(split)))


def test_bad_rows_end_it_and_lose_nothing(shop: Path) -> None:
    with (shop / "shop" / "log.csv").open("a") as lines:
        lines.write("1,2,cheap,5,1\n1,2,3\n")
    with pytest.raises(ValueError, match=r"bad rows \(2 of 202 in events\)") as caught:
        make(shop)
    assert left(shop) == ["shop.bad_rows.csv"]
    assert str(shop / "out" / "shop.bad_rows.csv") in str(caught.value)


def test_bad_rows_can_be_set_aside(shop: Path) -> None:
    expected = make(shop)
    with (shop / "shop" / "log.csv").open("a") as lines:
        lines.write("1,2,cheap,5,1\n1,2,3\n")
    with pytest.raises(ValueError, match="bad rows"):
        make(shop)
    found = make(shop, bad_rows="quarantine")
    assert left(shop) == sorted([expected.path.name, found.path.name])
    assert (found.counts["read"], found.counts["bad"], found.counts["events"]) == (202, 2, 200)
    assert pq.read_table(found.path / "quarantine" / "bad_rows.parquet").num_rows == 2
    assert pq.read_table(found.files("train")).equals(pq.read_table(expected.files("train")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": {"events": "no.csv"}}, "there is no file 'no.csv'"),
        ({"columns": {"click": "clicked"}}, "no column 'clicked' for data.columns.click, did you mean 'click'"),
        ({"source": "parquet"}, "log.csv: not a readable Parquet file"),
        ({"split": {"kind": "published"}}, "the source has no published split"),
        ({"options": {"delimeter": ";"}}, "unknown key 'delimeter'"),
        ({"options": {"delimiter": ";"}}, "no column 'user' for feature 'user'"),
    ],
)
def test_errors_are_one_clear_line_and_leave_nothing(shop: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(shop, **changed)
    assert "\n" not in str(caught.value)
    assert left(shop) == []


def test_a_full_disk_leaves_nothing_at_any_point(shop: Path) -> None:
    with inject() as points:
        make(shop).path.rename(shop / "kept")
    for number in (1, len(points) // 2, len(points) - 2):
        with inject(number, "enospc"), pytest.raises(OSError, match="no space left"):
            make(shop)
        assert left(shop) == []
    assert make(shop).counts["train"] == 160


KILLED = """
import sys
from pathlib import Path
from features.prepared import DataConfig, prepare
shop = Path(sys.argv[1])
config = DataConfig.model_validate_json(sys.argv[2])
prepare(config, data_root=shop, schema_dir=shop, out=shop / "out")
"""


@pytest.mark.parametrize(
    "moment",
    [
        "rename:shop-",
        pytest.param("half-written:examples", marks=pytest.mark.slow),
        pytest.param("write:manifest.json", marks=pytest.mark.slow),
    ],
)
def test_a_killed_prepare_leaves_nothing_that_opens(shop: Path, moment: str) -> None:
    with inject() as points:
        expected = make(shop)
    expected.path.rename(shop / "kept")
    (number,) = [place for place, label in enumerate(points, 1) if label.startswith(moment)]
    environment = os.environ | {"RECSYS_FAULT": f"{number}:kill", "PYTHONPATH": str(ROOT)}
    config = DataConfig.model_validate(CONFIG).model_dump_json()
    command = [sys.executable, "-c", KILLED, str(shop), config]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (unfinished,) = (shop / "out").iterdir()
    assert unfinished.name.startswith(".aside-")
    assert make(shop).content_hash == expected.content_hash
    assert left(shop) == [expected.path.name]


def test_rows_without_users_and_items_need_neither(shop: Path) -> None:
    features = '[features.place]\ncolumn = "item"\ntable = "ids"\n[features.price]\nkind = "dense"\n'
    (shop / "shop.toml").write_text(f'name = "ctr"\n{features}[labels.click]\n')
    prepared = make(shop, split={"kind": "random"})
    assert (prepared.users, prepared.items, prepared.histories) == (None, None, None)
    batch, _ = next(iter(prepared.view("train").loader(32, seed=0).epoch(0)))
    assert set(batch.features) == {"place", "price"}
    with pytest.raises(ValueError, match="names no `user` feature"):
        prepared.view("train").interactions()


def test_unknown_users_take_part_without_a_history(shop: Path) -> None:
    rows = frame()
    rows["user"] = rows["user"].where(rows["user"] > 0).astype("Int64")
    rows.to_csv(shop / "shop" / "log.csv", index=False)
    prepared = make(shop)
    assert prepared.counts["users"] == 8
    for batch, _ in prepared.view("train").loader(64, seed=0).epoch(0):
        unknown = batch.ids("user") == 0
        assert unknown.any()
        assert not batch.jagged("history").lengths[unknown].any()


def test_cold_items_are_in_the_catalogue(shop: Path) -> None:
    (shop / "shop" / "items.csv").write_text("item,price,title\n" + "".join(f"{i},{i / 2},t{i}\n" for i in range(25)))
    frame().drop(columns="price").to_csv(shop / "shop" / "log.csv", index=False)
    prepared = make(shop, files={"events": "log.csv", "items": "items.csv"})
    assert prepared.items is not None
    assert len(prepared.items) == 25
    assert prepared.items.column("title").to_pylist()[24] == "t24"
    cold = prepared.view("train").item_batch(torch.tensor([24]))
    assert cold.ids("item").tolist() == [0]
    assert cold.ids("price").tolist() == [12.0]


def test_worlds_prepare(tmp_path: Path) -> None:
    schema = ROOT / "configs" / "schemas" / "demo.toml"
    values = {"name": "small", "source": "world", "path": "small", "schema": str(schema), "split": {"kind": "time"}}
    prepared = prepare(DataConfig.model_validate(values), data_root=None, schema_dir=tmp_path, out=tmp_path / "out")
    batch, _ = next(iter(prepared.view("test").loader(32, seed=0).epoch(0)))
    assert {"click", "probability"} <= set(batch.labels)
    assert prepared.items is not None


def published(dataset: str, out: Path) -> Prepared:
    values = tomllib.loads((ROOT / "configs" / "datasets" / f"{dataset}.toml").read_text())["data"]
    config = DataConfig.model_validate(values)
    return prepare(config, data_root=Path(str(DATA)), schema_dir=ROOT / "configs", out=out)


NEGATIVES: dict[str, Any] = {"kind": "uniform", "per_positive": 2, "seed": 3}


def clicks(shop: Path, schema: str = SCHEMA) -> None:
    """The log as one of clicks alone, without a column that says so."""
    frame().drop(columns="click").to_csv(shop / "shop" / "log.csv", index=False)
    (shop / "shop.toml").write_text(schema)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_negatives_join_the_examples_and_nothing_else(shop: Path, kind: str) -> None:
    clicks(shop)
    plain = Prepared.open(make_without_labels(shop).path)
    prepared = make(shop, negatives=NEGATIVES | {"kind": kind})
    assert prepared.counts | plain.counts == prepared.counts | {s: plain.counts[s] for s in plain.splits}
    assert prepared.manifest["negatives"] + 200 == sum(prepared.counts[split] for split in prepared.splits)
    assert prepared.histories is not None
    assert plain.histories is not None
    assert np.array_equal(prepared.histories.items, plain.histories.items)
    for split in prepared.splits:
        rows = pq.read_table(prepared.files(split)).to_pandas()
        own = rows[rows["label:click"] > 0]
        assert own["item"].tolist() == pq.read_table(plain.files(split))["item"].to_pylist()
        known = set(zip(prepared_pairs(plain, "user"), prepared_pairs(plain, "item"), strict=True))
        drawn = rows[rows["label:click"] == 0]
        assert not known & set(zip(drawn["user"], drawn["item"], strict=True))


def make_without_labels(shop: Path) -> Prepared:
    (shop / "plain.toml").write_text(SCHEMA.replace("[labels.click]", ""))
    return make(shop, schema="plain.toml")


def prepared_pairs(prepared: Prepared, column: str) -> list[int]:
    return [value for split in prepared.splits for value in pq.read_table(prepared.files(split))[column].to_pylist()]


def test_negatives_see_the_history_of_their_positive(shop: Path) -> None:
    clicks(shop)
    rows = pq.read_table(make(shop, negatives=NEGATIVES).files("train")).to_pandas()
    owner = (rows["label:click"] > 0).cumsum()
    assert (rows.groupby(owner)[["user", "position"]].nunique() == 1).all(axis=None)


def test_negatives_may_be_split_row_by_row(shop: Path) -> None:
    clicks(shop, SCHEMA.replace('[sequences.past]\nof = { history = "item" }\nmax_length = 5\n', ""))
    split = {"kind": "random", "test": 0.2, "validation": 0.1}
    prepared = make(shop, split=split, negatives=NEGATIVES | {"split": "own"})
    rows = sum(prepared.counts[split] for split in prepared.splits)
    assert prepared.counts["test"] == int(0.2 * rows + 0.5)
    assert prepared.counts["validation"] == int(0.1 * rows + 0.5)


def test_downsampling_thins_negative_train_examples_alone(shop: Path) -> None:
    whole, thin = make(shop), make(shop, downsample={"rate": 0.25, "seed": 1})
    assert (whole.negative_rate, thin.negative_rate) == (1.0, 0.25)
    for split in ("validation", "test"):
        assert pq.read_table(thin.files(split)).equals(pq.read_table(whole.files(split)))
    kept, all_rows = (pq.read_table(one.files("train"))["label:click"].to_numpy() for one in (thin, whole))
    assert kept.sum() == all_rows.sum()
    assert 0.1 < (kept == 0).sum() / (all_rows == 0).sum() < 0.4
    assert thin.histories is not None
    assert thin.histories.num_events == 200


def test_users_may_be_split_with_histories(shop: Path) -> None:
    prepared = make(shop, split={"kind": "user", "validation": 0.3, "test": 0.3, "seed": 3})
    users = [set(pq.read_table(prepared.files(split))["user"].to_pylist()) for split in prepared.splits]
    assert sum(len(some) for some in users) == len(set.union(*users)) == 9


@pytest.mark.parametrize("kind", ["order", "random"])
def test_splits_that_mix_times_are_refused_with_histories(shop: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=f"kind '{kind}' would put test clicks into the histories"):
        make(shop, split={"kind": kind})


@needs_data
@pytest.mark.slow
def test_gowalla_prepares_to_its_published_counts(tmp_path: Path) -> None:
    prepared = published("gowalla", tmp_path)
    counts = prepared.counts
    assert (counts["users"], counts["items"], counts["test"]) == (29_858, 40_981, 217_242)
    assert counts["train"] + counts["validation"] == 810_128
    assert prepared.view("train", "validation").interactions().nnz == 810_128
    assert prepared.view("train").truth("test")[0].numel() == 29_858
    assert prepared.view("train").interactions().getnnz(axis=1).min() >= 1


@needs_data
@pytest.mark.slow
def test_movielens_prepares_to_its_published_samples(tmp_path: Path) -> None:
    prepared = published("movielens1m", tmp_path)
    counts = prepared.counts
    assert counts["events"] == 739_007
    assert (counts["train"], counts["validation"], counts["test"]) == (591_205, 73_901, 73_901)
    batch, _ = next(iter(prepared.view("test").loader(4096, seed=0).epoch(0)))
    assert set(batch.features) == {"user", "movie", "gender", "age", "occupation", "zip"}
    assert prepared.encoder.num_embeddings("gender") == 3


def test_prepare_reuses_what_another_process_made_meanwhile(shop: Path) -> None:
    others: list[Path] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "examples" and not others:
            others.append(make(shop).path)

    config = DataConfig.model_validate(CONFIG)
    found = prepare(config, data_root=shop, schema_dir=shop, out=shop / "out", progress=meanwhile)
    assert found.path == others[0]
    assert left(shop) == [found.path.name]

"""Views of prepared data: matrices, truth and batches equal naive ones; a folder that is not whole is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from features.prepared import DataConfig, Prepared, prepare
from features.view import MANIFEST

NUM_ROWS, NUM_USERS, NUM_ITEMS = 600, 25, 40
SCHEMA = """
name = "shop"
user = "user"
item = "item"
{time}
[features.user]
table = "ids"
[features.item]
table = "ids"
[features.city]
entity = "user"
table = "ids"
[features.hour]
table = "ids"
[sequences.past]
of = {{ history = "item", hours = "hour" }}
max_length = 8
ordered = {ordered}
{label}
"""


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    users = rng.integers(0, NUM_USERS, NUM_ROWS)
    columns = {
        "user": [f"u{user:02d}" for user in users], "item": rng.integers(0, NUM_ITEMS, NUM_ROWS) + 100,
        "city": [f"c{user % 4}" for user in users], "hour": rng.integers(0, 24, NUM_ROWS),
        "time": rng.permutation(NUM_ROWS), "click": rng.integers(0, 2, NUM_ROWS),
    }  # fmt: skip
    return pd.DataFrame(columns)


def made(folder: Path, *, ordered: bool, label: bool, **config: Any) -> Prepared:
    folder.mkdir(parents=True, exist_ok=True)
    frame().to_csv(folder / "log.csv", index=False)
    time = 'timestamp = "time"' if ordered or config["split"]["kind"] == "time" else ""
    words = {"time": time, "ordered": str(ordered).lower(), "label": "[labels.click]" if label else ""}
    (folder / "shop.toml").write_text(SCHEMA.format(**words))
    values = {"name": "shop", "source": "csv", "path": "log.csv", "schema": "shop.toml"} | config
    return prepare(DataConfig.model_validate(values), data_root=folder, schema_dir=folder, out=folder / "out")


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("timed")
    return made(folder, ordered=True, label=True, split={"kind": "time", "test": 0.2}, examples="all")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("sets")
    return made(folder, ordered=False, label=False, split={"kind": "random"}, examples="positive")


def split_of(prepared: Prepared) -> pd.DataFrame:
    """The log of `timed` with the split that the rule gives: 80, 10 (480 to 540 of 600), then test."""
    rows = frame()
    rows["split"] = np.where(rows["time"] >= 480, "test", np.where(rows["time"] >= 420, "validation", "train"))
    assert prepared.counts["test"] == (rows["split"] == "test").sum()
    return rows


def pairs(prepared: Prepared, rows: pd.DataFrame) -> set[tuple[int, int]]:
    assert prepared.users is not None
    assert prepared.items is not None
    users, items = prepared.users.positions(rows["user"]), prepared.items.positions(rows["item"])
    return set(zip(users.tolist(), items.tolist(), strict=True))


def test_interactions_are_the_positive_examples_once(timed: Prepared) -> None:
    rows = split_of(timed)
    for splits in (("train",), ("train", "validation")):
        matrix = timed.view(*splits).interactions()
        expected = pairs(timed, rows[rows["split"].isin(splits) & (rows["click"] == 1)])
        assert set(zip(*(axis.tolist() for axis in matrix.nonzero()), strict=True)) == expected
        assert matrix.shape == (NUM_USERS, NUM_ITEMS)
        assert matrix.dtype == np.float32
        assert set(matrix.data.tolist()) == {1.0}


def test_truth_is_what_the_split_adds(timed: Prepared) -> None:
    rows = split_of(timed)
    users, offsets, items = timed.view("train").truth("test")
    found = {
        (int(user), int(item))
        for place, user in enumerate(users)
        for item in items[offsets[place] : offsets[place + 1]]
    }
    positive = rows[rows["click"] == 1]
    known = pairs(timed, positive[positive["split"] == "train"])
    assert found == pairs(timed, positive[positive["split"] == "test"]) - known
    assert known & pairs(timed, positive[positive["split"] == "test"]), "the example must have a repeat"
    assert (offsets.diff() > 0).all()
    assert (users.diff() > 0).all()
    assert int(offsets[-1]) == len(items) == len(found)


def test_user_batch_knows_what_was_known_at_the_end(timed: Prepared) -> None:
    rows = split_of(timed)
    assert timed.users is not None
    for splits in (("train",), ("train", "validation")):
        batch = timed.view(*splits).user_batch(torch.arange(NUM_USERS))
        known = rows[rows["split"].isin(splits)].sort_values("time")
        for position, user in enumerate(timed.users.raw_ids):
            expected = known[known["user"] == user]["item"].tolist()[-8:]
            bounds = batch.jagged("history").offsets[position : position + 2].tolist()
            found = batch.jagged("history").values[slice(*bounds)].numpy()
            assert timed.encoder.vocabularies["item"].raw(found).tolist() == expected
    assert set(batch.features) == {"user", "city", "history", "hours"}


def test_item_batch_gathers_items(timed: Prepared) -> None:
    assert timed.items is not None
    batch = timed.view("train").item_batch(torch.tensor([3, 0]))
    assert timed.encoder.vocabularies["item"].raw(batch.ids("item")).tolist() == timed.items.raw([3, 0]).tolist()


def test_loader_gives_every_example_once_with_its_labels(timed: Prepared) -> None:
    rows = split_of(timed)
    view = timed.view("train", "validation")
    loader = view.loader(100, seed=0)
    batches = [batch for batch, _ in loader.epoch(0)]
    assert sum(len(batch) for batch in batches) == view.num_rows == loader.num_rows == 480
    assert sum(float(batch.labels["click"].sum()) for batch in batches) == rows[rows["split"] != "test"]["click"].sum()
    assert set(batches[0].features) == {"user", "city", "item", "hour", "history", "hours"}


def own_of_history(prepared: Prepared, *splits: str) -> list[tuple[int, set[int]]]:
    """(item row, rows of the history) of each example of a view, in file order."""
    found = []
    for batch, _ in prepared.view(*splits).loader(64, seed=0, shuffle=False).epoch(0):
        history = batch.jagged("history")
        for row, item in enumerate(batch.ids("item").tolist()):
            seen = history.values[history.offsets[row] : history.offsets[row + 1]]
            found.append((item, set(seen.tolist())))
    return found


def test_sets_show_train_examples_everything_but_themselves(sets: Prepared) -> None:
    assert all(item not in seen for item, seen in own_of_history(sets, "train"))
    matrix = sets.view("train").interactions()
    assert max(len(seen) for _, seen in own_of_history(sets, "train")) <= min(8, int(matrix.sum(axis=1).max()) - 1)


def test_sets_show_test_examples_no_test_event(sets: Prepared) -> None:
    assert sets.users is not None
    known = sets.view("train", "validation").interactions()
    rows_of_items = sets.view("train").item_batch(torch.arange(NUM_ITEMS)).ids("item").numpy()
    for batch, _ in sets.view("test").loader(64, seed=0, shuffle=False).epoch(0):
        history = batch.jagged("history")
        positions = sets.users.positions(sets.encoder.vocabularies["user"].raw(batch.ids("user")))
        for row, user in enumerate(positions.tolist()):
            seen = history.values[history.offsets[row] : history.offsets[row + 1]].tolist()
            assert set(seen) <= set(rows_of_items[known[user].indices].tolist())


def test_view_refuses_splits_that_are_not_there(timed: Prepared) -> None:
    with pytest.raises(ValueError, match="has no split 'dev', it has train, validation, test"):
        timed.view("train", "dev")
    with pytest.raises(ValueError, match="name at least one split"):
        timed.view()


def test_views_order_splits(timed: Prepared) -> None:
    assert timed.view("test", "train").splits == ("train", "test")


def test_open_finds_all_parts(timed: Prepared) -> None:
    again = Prepared.open(timed.path)
    assert again.content_hash == timed.content_hash
    assert again.schema == timed.schema
    assert again.splits == ("train", "validation", "test")
    assert again.counts["users"] == NUM_USERS


@pytest.fixture
def copy(timed: Prepared, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    for file in timed.path.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(timed.path)).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.relative_to(timed.path)).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["examples/train/part-00000.parquet", "users/attributes.parquet"])
def test_open_refuses_a_flipped_byte(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        Prepared.open(copy)


def test_open_refuses_a_missing_file(copy: Path) -> None:
    (copy / "histories" / "offsets.npy").unlink()
    with pytest.raises(ValueError, match=r"offsets\.npy is missing"):
        Prepared.open(copy)


def test_open_refuses_what_is_no_prepared_folder(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no prepared data"):
        Prepared.open(tmp_path)
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Prepared.open(copy)
    (copy / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ValueError, match="of format 99, this version reads"):
        Prepared.open(copy)

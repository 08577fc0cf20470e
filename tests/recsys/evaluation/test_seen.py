"""Newer data, seen by an older encoder, is what the older encoder made of the same rows."""

import pytest
import torch

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.prepared import Prepared, prepare
from features.spec import parse_schema
from recsys.config import load_config
from recsys.evaluation.seen import SeenLoader, SeenView, seen_by
from tests.recsys.grown_data import grown_copy
from tests.recsys.small_project import write_project


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = write_project(tmp_path_factory.mktemp("seen"))
    config = load_config(folder / "ctr.toml")
    return prepare(config.data, data_root=None, schema_dir=folder, out=folder / "prepared")


@pytest.fixture(scope="module")
def newer(older: Prepared) -> Prepared:
    return grown_copy(older, older.path.parent / "newer")


def assert_same(found: Batch, expected: Batch) -> None:
    assert found.features.keys() == expected.features.keys()
    for name, column in expected.features.items():
        mine = found[name]
        if isinstance(column, Jagged) and isinstance(mine, Jagged):
            assert torch.equal(mine.values, column.values), name
            assert torch.equal(mine.offsets, column.offsets), name
        else:
            assert torch.equal(found.ids(name), expected.ids(name)), name


def test_newer_examples_seen_by_the_older_encoder_are_the_older_examples(older: Prepared, newer: Prepared) -> None:
    plain = newer.view("test").loader(300, seed=0, shuffle=False)
    seen = SeenView(newer.view("test"), older.encoder).loader(300, seed=0, shuffle=False)
    expected = older.view("test").loader(300, seed=0, shuffle=False)
    assert seen.num_batches == expected.num_batches
    changed = 0
    for (batch, _), (mine, at), (other, end) in zip(plain.epoch(0), seen.epoch(0), expected.epoch(0), strict=True):
        assert_same(mine, other)
        assert at == end
        changed += int((batch.ids("item") != mine.ids("item")).sum())
    assert changed, "there are items that only the newer data knows"


def test_newer_catalogue_seen_by_the_older_encoder_is_the_older_one(older: Prepared, newer: Prepared) -> None:
    view, other = SeenView(newer.view("train"), older.encoder), older.view("train")
    users, items = torch.arange(40), torch.arange(other.num_items)
    assert_same(view.user_batch(users), other.user_batch(users))
    assert_same(view.item_batch(items), other.item_batch(items))
    assert view.num_items == other.num_items
    assert (view.interactions() != other.interactions()).nnz == 0
    assert all(torch.equal(mine, its) for mine, its in zip(view.truth("test"), other.truth("test"), strict=True))


def encoder_of(**policy: str) -> Encoder:
    features = {"a": {"table": "ids"} | policy, "b": {"table": "ids", "hashed": True}, "c": {"kind": "dense"}}
    schema = parse_schema({"name": "x", "features": features}, "x")
    return Encoder.from_counts(schema, {"a": ([1, 2], [1, 1])})


def test_what_is_no_vocabulary_stays() -> None:
    big = torch.tensor([2**40, 7])
    batch = Batch(features={"a": torch.tensor([2, 3]), "b": big, "c": torch.tensor([9.0, 1.0])})
    found = seen_by(encoder_of(), batch)
    assert found.ids("a").tolist() == [2, 0]
    assert torch.equal(found.ids("b"), big)
    assert found.ids("c").tolist() == [9.0, 1.0]


def test_an_id_that_may_not_be_unseen_is_refused() -> None:
    batch = Batch(features={"a": torch.tensor([1, 5])})
    with pytest.raises(ValueError, match="feature 'a' has row 5, the older encoder 2 rows and none for unseen ids"):
        seen_by(encoder_of(unseen="refuse"), batch)


def test_seen_loader_passes_the_start_on(older: Prepared, newer: Prepared) -> None:
    loader = SeenLoader(newer.view("test").loader(300, seed=3), older.encoder)
    ((batch, position),) = list(loader.epoch(0, start=loader.num_batches - 1))
    assert position == loader.num_batches
    assert batch.row_ids is not None

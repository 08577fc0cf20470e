"""The order of batches, their split over ranks, joins and sequences against a naive loop, errors and the thread."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.random import Generator

from features.batch import Batch, Jagged, concat
from features.encoder import Encoder
from features.entities import EntityTable
from features.histories import Histories
from features.history_files import EventChunk
from features.loader import Limits, Loader, RowSource
from features.spec import FeatureSchema, parse_schema

NUM_ROWS, NUM_USERS, NUM_ITEMS = 103, 9, 14
STREAMED = Limits(window=30, resident=0, prefetch=2)
SCHEMA = {
    "name": "s",
    "user": "user",
    "item": "item",
    "features": {
        "user": {"entity": "user", "table": "ids"},
        "age": {"entity": "user", "kind": "dense"},
        "item": {"entity": "item", "table": "ids"},
        "tags": {"entity": "item", "kind": "id_list", "table": "ids"},
        "device": {"table": "ids"},
        "words": {"kind": "id_score_list", "table": "ids"},
    },
    "sequences": {"history": {"of": {"past": "item"}, "max_length": 3}},
}


def schema() -> FeatureSchema:
    return parse_schema(SCHEMA, "test")


def example_table(rng: Generator) -> pa.Table:
    lists = [rng.integers(0, 9, rng.integers(0, 4)) for _ in range(NUM_ROWS)]
    return pa.table(
        {
            "user": rng.integers(-1, NUM_USERS, NUM_ROWS),
            "item": rng.integers(-1, NUM_ITEMS, NUM_ROWS),
            "position": rng.integers(-1, 6, NUM_ROWS),
            "device": np.arange(NUM_ROWS),  # tells which row it is
            "words": lists,
            "words:weights": [words.astype(np.float32) / 8 for words in lists],
            "label:click": rng.integers(0, 2, NUM_ROWS).astype(np.float32),
            "probability": rng.random(NUM_ROWS, np.float32),
            "weight": rng.random(NUM_ROWS, np.float32),
            "group": rng.integers(0, NUM_USERS, NUM_ROWS),
        }
    )


def write(folder: Path, table: pa.Table) -> list[Path]:
    """Two files, row groups of 7 and 10 rows."""
    files = [folder / "part-0.parquet", folder / "part-1.parquet"]
    pq.write_table(table.slice(0, 50), files[0], row_group_size=7)
    pq.write_table(table.slice(50), files[1], row_group_size=10)
    return files


def entities() -> tuple[EntityTable, EntityTable]:
    users = pa.table({"user": np.arange(NUM_USERS), "age": np.arange(NUM_USERS) / 2})
    tags = ["|".join("abc"[: item % 4]) for item in range(NUM_ITEMS)]
    items = pa.table({"item": np.arange(NUM_ITEMS), "tags": tags})
    joined = {name: table[name].take(np.arange(NUM_USERS)) for table in (users, items) for name in table.column_names}
    others = {"device": np.zeros(NUM_USERS, int), "words": ["a:1"] * NUM_USERS}
    encoder = Encoder.fit(schema(), pa.table(joined | others))
    return EntityTable.build(schema(), encoder, "user", users), EntityTable.build(schema(), encoder, "item", items)


def histories(path: Path, rng: Generator) -> Histories:
    users = np.sort(rng.integers(0, NUM_USERS, 40))
    chunk = EventChunk(
        users=users, items=rng.integers(0, NUM_ITEMS, 40), splits=np.zeros(40), timestamps=rng.integers(0, 50, 40)
    )
    return Histories.build(path, [chunk], num_users=NUM_USERS, ordered=True)


@pytest.fixture
def source(tmp_path: Path) -> RowSource:
    """Everything that a batch can hold."""
    rng = np.random.default_rng(5)
    users, items = entities()
    return RowSource(
        files=write(tmp_path, example_table(rng)),
        schema=schema(),
        users=users,
        items=items,
        histories=histories(tmp_path / "histories", rng),
    )


@pytest.fixture
def plain(tmp_path: Path) -> RowSource:
    """Event columns alone."""
    table = example_table(np.random.default_rng(6)).select(["device", "label:click"])
    return RowSource(files=write(tmp_path, table), schema=schema())


def epoch_of(loader: Loader, epoch: int = 0, start: int = 0) -> list[Batch]:
    return [batch for batch, _ in loader.epoch(epoch, start)]


def rows_of(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.ids("device").tolist()]


def same(one: Batch, other: Batch) -> bool:
    """Equal columns, bit for bit."""
    flat = [
        {
            name: (column.values.tolist(), column.offsets.tolist()) if isinstance(column, Jagged) else column.tolist()
            for name, column in batch.columns().items()
        }
        for batch in (one, other)
    ]
    return flat[0] == flat[1]


@pytest.mark.parametrize("limits", [Limits(), STREAMED])
def test_epoch_gives_every_row_once(plain: RowSource, limits: Limits) -> None:
    loader = Loader(replace(plain, limits=limits), 10, seed=1)
    batches = epoch_of(loader)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert len(batches) == loader.num_batches
    assert sorted(rows_of(batches)) == list(range(NUM_ROWS))
    assert rows_of(batches) != list(range(NUM_ROWS))


def test_order_without_shuffle_is_that_of_the_files(plain: RowSource) -> None:
    for limits in (Limits(), STREAMED):
        assert rows_of(epoch_of(Loader(replace(plain, limits=limits), 10, seed=1, shuffle=False))) == list(
            range(NUM_ROWS)
        )


def test_kept_rows_come_in_the_order_of_streamed_rows(source: RowSource) -> None:
    kept = Loader(replace(source, limits=Limits(window=30)), 8, seed=3)
    streamed = Loader(replace(source, limits=STREAMED), 8, seed=3)
    for epoch in (0, 1):
        pairs = zip(epoch_of(kept, epoch), epoch_of(streamed, epoch), strict=True)
        assert all(same(one, other) for one, other in pairs)


def test_order_is_a_function_of_seed_and_epoch(plain: RowSource) -> None:
    orders = {
        (seed, epoch): rows_of(epoch_of(Loader(replace(plain, limits=STREAMED), 10, seed=seed), epoch))
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    again = Loader(replace(plain, limits=STREAMED), 10, seed=2)
    assert rows_of(epoch_of(again, 1)) == orders[2, 1]


def test_order_does_not_depend_on_the_batch_size(plain: RowSource) -> None:
    orders = [rows_of(epoch_of(Loader(replace(plain, limits=STREAMED), size, seed=1))) for size in (1, 10, 64, 500)]
    assert all(order == orders[0] for order in orders)


def test_rows_of_a_block_come_from_its_window(plain: RowSource) -> None:
    rows = rows_of(epoch_of(Loader(replace(plain, limits=STREAMED), 10, seed=1)))
    groups = [row // 7 if row < 50 else 8 + (row - 50) // 10 for row in rows]
    spread = {group: groups[::-1].index(group) for group in groups}
    assert all(NUM_ROWS - spread[group] - groups.index(group) <= STREAMED.window for group in spread)


@pytest.mark.parametrize("limits", [Limits(), STREAMED])
def test_start_skips_to_the_same_batches(source: RowSource, limits: Limits) -> None:
    loader = Loader(replace(source, limits=limits), 10, seed=1)
    whole = list(loader.epoch(2))
    for start in (0, 1, 6, 10, 11):
        rest = list(loader.epoch(2, start))
        assert [position for _, position in rest] == list(range(start + 1, 12))
        assert all(same(one, other) for (one, _), (other, _) in zip(whole[start:], rest, strict=True))


def test_start_decodes_nothing_before_its_block(plain: RowSource) -> None:
    in_order = Loader(replace(plain, limits=STREAMED), 10, seed=1, shuffle=False)
    plain.files[0].unlink()
    assert rows_of(epoch_of(in_order, 0, 5)) == list(range(50, NUM_ROWS))


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_ranks_take_every_wth_row(source: RowSource, world_size: int, batch_size: int) -> None:
    whole = epoch_of(Loader(replace(source, limits=STREAMED), batch_size, seed=1))
    ranks = [
        epoch_of(Loader(replace(source, limits=STREAMED), batch_size, seed=1, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for index, batch in enumerate(whole):
        parts = [batches[index] for batches in ranks]
        for rank, part in enumerate(parts):
            rows = torch.arange(len(batch))[rank::world_size]
            if len(rows):
                assert same(part, batch.select(rows))
            else:
                assert part.row_weights().tolist() == [0.0]
                assert part.ids("device").tolist() == batch.ids("device")[:1].tolist()
        total = sum(float(part.row_weights().sum()) for part in parts)
        assert total == pytest.approx(float(batch.row_weights().sum()), abs=1e-5)


def test_row_ids_number_the_epoch(plain: RowSource) -> None:
    ranks = [epoch_of(Loader(plain, 10, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    for index, (even, odd) in enumerate(zip(*ranks, strict=True)):
        numbers = [ids.tolist() for batch in (even, odd) if (ids := batch.row_ids) is not None]
        assert sorted(numbers[0] + numbers[1]) == list(range(10 * index, min(10 * index + 10, NUM_ROWS)))


def test_batches_hold_what_a_naive_join_gives(source: RowSource) -> None:
    rows = pa.concat_tables(pq.read_table(file) for file in source.files).to_pylist()
    users, items, past = source.users, source.items, source.histories
    assert users is not None
    assert items is not None
    assert past is not None
    whole = concat(epoch_of(Loader(replace(source, limits=STREAMED), 10, seed=1)))
    ordered = [rows[number] for number in whole.ids("device").tolist()]
    for name in ("user", "age"):
        assert whole.ids(name).tolist() == [users.features.ids(name)[row["user"]].item() for row in ordered]
    assert whole.ids("item").tolist() == [items.features.ids("item")[row["item"]].item() for row in ordered]
    for number, row in enumerate(ordered):
        one = torch.tensor([number])
        tags = items.features.jagged("tags").select(torch.tensor([row["item"] % (NUM_ITEMS + 1)]))
        assert whole.jagged("tags").select(one).values.tolist() == tags.values.tolist()
        words = whole.jagged("words").select(one)
        assert (words.values.tolist(), words.weights.tolist()) == (row["words"], row["words:weights"])  # type: ignore[union-attr]
        seen, _ = past.slice([row["user"]], [row["position"]], 3)
        vocabulary_rows = items.features.ids("item")[torch.from_numpy(past.items[seen])]
        assert whole.jagged("past").select(one).values.tolist() == vocabulary_rows.tolist()


def test_batches_hold_labels_weights_and_groups(source: RowSource) -> None:
    rows = pa.concat_tables(pq.read_table(file) for file in source.files).to_pylist()
    batch = epoch_of(Loader(replace(source, limits=STREAMED), NUM_ROWS, seed=1))[0]
    ordered = [rows[number] for number in batch.ids("device").tolist()]
    assert set(batch.labels) == {"click", "probability"}
    assert batch.labels["click"].tolist() == [row["label:click"] for row in ordered]
    assert batch.labels["probability"].tolist() == [row["probability"] for row in ordered]
    assert batch.row_weights().tolist() == [row["weight"] for row in ordered]
    assert batch.group is not None
    assert batch.group.tolist() == [row["group"] for row in ordered]
    assert batch.cluster is not None
    known = [row["user"] for row in ordered if row["user"] >= 0]
    assert batch.cluster[batch.cluster >= 0].tolist() == known
    alone = batch.cluster[batch.cluster < 0]
    assert len(alone) == len(ordered) - len(known) == len(alone.unique())
    assert set(batch.features) == {feature.name for feature in schema().inputs}


def test_histories_that_are_sets_end_where_told(source: RowSource) -> None:
    past = source.histories
    assert past is not None
    as_set = Histories(past.offsets, {"items": past.items, "splits": np.zeros(40)}, ordered=False)
    groups = {"history": {"of": {"past": "item"}, "max_length": 99, "ordered": False}}
    unordered = parse_schema(SCHEMA | {"sequences": groups}, "test")
    parts: dict[str, Any] = {"files": source.files, "users": source.users, "items": source.items}
    none_visible = RowSource(**parts, schema=unordered, histories=as_set, ends=past.offsets[:-1])
    lengths = [epoch_of(Loader(none_visible, 50, seed=1))[0].jagged("past").lengths.sum()]
    lengths.append(
        epoch_of(Loader(RowSource(**parts, schema=unordered, histories=as_set), 50, seed=1))[0]
        .jagged("past")
        .lengths.sum()
    )
    assert lengths[0] == 0
    assert lengths[1] > 0


def test_source_without_rows_has_no_batches(tmp_path: Path) -> None:
    pq.write_table(pa.table({"device": np.zeros(0, np.int64)}), tmp_path / "none.parquet")
    for files in ([], [tmp_path / "none.parquet"]):
        loader = Loader(RowSource(files=files, schema=schema()), 4, seed=0)
        assert (loader.num_rows, loader.num_batches, epoch_of(loader)) == (0, 0, [])


def test_errors_of_the_thread_are_raised_here(tmp_path: Path) -> None:
    pq.write_table(pa.table({"device": [1, 2, None, 4]}), tmp_path / "part.parquet", row_group_size=2)
    nulls = RowSource(files=[tmp_path / "part.parquet"], schema=schema(), limits=STREAMED)
    batches = Loader(nulls, 2, seed=0, shuffle=False).epoch(0)
    assert next(batches)[0].ids("device").tolist() == [1, 2]
    with pytest.raises(ValueError, match="column 'device' holds 1 nulls"):
        next(batches)


def test_damaged_file_is_named(plain: RowSource) -> None:
    loader = Loader(plain, 10, seed=0)
    content = plain.files[1].read_bytes()
    plain.files[1].write_bytes(content[:4] + bytes(200) + content[204:])
    with pytest.raises(ValueError, match=r"part-1\.parquet cannot be read"):
        next(loader.epoch(0))
    plain.files[1].write_bytes(b"text")
    with pytest.raises(ValueError, match=r"part-1\.parquet cannot be read"):
        Loader(plain, 10, seed=0)


def test_closing_the_iterator_stops_the_threads(plain: RowSource) -> None:
    before = threading.active_count()
    batches = Loader(replace(plain, limits=STREAMED), 2, seed=0).epoch(0)
    next(batches)
    assert threading.active_count() > before
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"rank": 2, "world_size": 2}, r"rank is 2, accepted is 0\.\.1"),
    ],
)
def test_loader_refuses(plain: RowSource, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(plain, **({"batch_size": 4, "seed": 0} | arguments))  # type: ignore[arg-type]


def test_epoch_refuses_a_start_past_the_end(plain: RowSource) -> None:
    with pytest.raises(ValueError, match=r"start 12: accepted are epoch >= 0, start 0\.\.11"):
        Loader(plain, 10, seed=0).epoch(0, 12)

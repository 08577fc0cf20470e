"""Stored examples equal the encoder on the same rows, in file order, in even row groups, cut at the right position."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import examples as examples_module
from features import histories as histories_module
from features.batch import Batch
from features.database import Database
from features.encoder import Encoder
from features.entities import EntityTable
from features.examples import RESERVED, Learned, check_examples, keeps_histories, write_examples, write_histories
from features.hashes import hash64
from features.histories import Histories
from features.log_columns import CODE, EXAMPLE, GROUP, NUMBER, PROBABILITY, TIME, WEIGHT, label_column
from features.source_files import SPLITS
from features.spec import FeatureSchema, parse_schema

ID = {"table": "ids"}
FEATURES: dict[str, Any] = {
    "user": ID, "item": ID, "price": {"kind": "dense", "entity": "item"}, "hour": ID, "amount": {"kind": "dense"},
    "tags": ID | {"kind": "id_list"}, "scores": ID | {"kind": "id_score_list"},
}  # fmt: skip
SEQUENCES = {"past": {"of": {"items": "item", "hours": "hour"}, "max_length": 5, "label": "click"}}
BOTH = {"a": SEQUENCES["past"], "b": {"of": {"more": "item"}, "max_length": 2, "label": "click"}}
NUM_ROWS, NUM_USERS, NUM_ITEMS = 1000, 20, 30


def schema_of(**parts: Any) -> FeatureSchema:
    named: dict[str, Any] = {"name": "t", "user": "user", "item": "item", "timestamp": "time"}
    named |= {"weight": "w", "group": "g", "labels": {"click": {}}, "features": FEATURES, "sequences": SEQUENCES}
    return parse_schema(named | parts, where="test")


def log() -> pa.Table:
    """As `logs` and `splits` leave it: a time split, some users unknown, some events no examples."""
    rng = np.random.default_rng(0)
    users = [None if row % 40 == 0 else int(user) for row, user in enumerate(rng.integers(0, NUM_USERS, NUM_ROWS))]
    lists = [rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(NUM_ROWS)]
    scored = [[{"id": one, "score": one / 2} for one in some] for some in lists]
    return pa.table(
        {
            NUMBER: np.arange(NUM_ROWS) * 2, "user": users, "item": rng.integers(0, NUM_ITEMS, NUM_ROWS),
            "hour": rng.integers(0, 24, NUM_ROWS), "amount": rng.random(NUM_ROWS), "tags": lists, "scores": scored,
            TIME: np.sort(rng.integers(0, 400, NUM_ROWS)), WEIGHT: rng.random(NUM_ROWS),
            GROUP: [f"g{row % 7}" for row in range(NUM_ROWS)], PROBABILITY: rng.random(NUM_ROWS),
            label_column("click"): rng.integers(0, 2, NUM_ROWS).astype(float),
            EXAMPLE: np.arange(NUM_ROWS) % 10 != 3, CODE: np.repeat([0, 1, 2], [700, 100, 200]),
        }
    )  # fmt: skip


def learned_of(schema: FeatureSchema, rows: pa.Table) -> Learned:
    prices = pa.table({"item": np.arange(NUM_ITEMS), "price": np.arange(NUM_ITEMS) / 4})
    frame = rows.append_column("price", prices["price"].take(rows["item"]))
    encoder = Encoder.fit(schema, frame)
    return Learned(
        encoder=encoder,
        users=EntityTable.build(schema, encoder, "user", None, rows["user"]),
        items=EntityTable.build(schema, encoder, "item", prices, rows["item"]),
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "work").mkdir()
    with Database.open(tmp_path / "work") as opened:
        yield opened


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def stored(database: Database, folder: Path, schema: FeatureSchema) -> tuple[Learned, dict[str, pa.Table]]:
    rows = log()
    events, learned = database.store_arrow("events", rows), learned_of(schema, rows)
    histories = write_histories(database, events, learned, folder / "histories", silent)
    learned = Learned(encoder=learned.encoder, users=learned.users, items=learned.items, histories=histories)
    counts = write_examples(database, events, learned, folder / "examples", silent)
    tables = {split: pq.read_table(folder / "examples" / split) for split in counts}
    assert {split: table.num_rows for split, table in tables.items()} == counts
    return learned, tables


def expected_rows(code: int) -> pa.Table:
    rows = log()
    return rows.filter(pa.array((rows[CODE].to_numpy() == code) & rows[EXAMPLE].to_numpy(zero_copy_only=False)))


def test_examples_equal_the_encoder_on_their_rows(database: Database, tmp_path: Path) -> None:
    learned, tables = stored(database, tmp_path, schema_of())
    for code, split in enumerate(SPLITS):
        rows, table = expected_rows(code), tables[split]
        encoded = Batch(features=learned.encoder.encode(rows, ["hour", "amount", "tags", "scores"]))
        assert table["hour"].to_pylist() == encoded.ids("hour").tolist()
        assert table["amount"].to_numpy() == pytest.approx(rows["amount"].to_numpy())
        for name in ("tags", "scores"):
            assert table[name].combine_chunks().flatten().to_pylist() == encoded.jagged(name).values.tolist()
        assert [len(one) for one in table["tags"].to_pylist()] == [len(one) for one in rows["tags"].to_pylist()]
        weights = [[one["score"] for one in some] for some in rows["scores"].to_pylist()]
        assert table["scores:weights"].to_pylist() == weights


def test_examples_hold_what_they_are_judged_by(database: Database, tmp_path: Path) -> None:
    _, tables = stored(database, tmp_path, schema_of())
    rows, table = expected_rows(2), tables["test"]
    names = {"label:click": label_column("click"), "weight": WEIGHT, "probability": PROBABILITY}
    for name, column in names.items():
        assert table[name].to_numpy() == pytest.approx(rows[column].to_numpy().astype(np.float32))
        assert table[name].type == pa.float32()
    assert table["group"].to_pylist() == [hash64(group) for group in rows[GROUP].to_pylist()]


def test_examples_name_users_and_items_by_position(database: Database, tmp_path: Path) -> None:
    learned, tables = stored(database, tmp_path, schema_of())
    rows, table = expected_rows(0), tables["train"]
    assert learned.users is not None
    assert learned.users.raw(table["user"].to_pylist()).tolist() == rows["user"].to_pylist()
    assert (table["user"].to_numpy() == -1).sum() == rows["user"].null_count > 0


def test_examples_see_their_users_earlier_clicks_alone(database: Database, tmp_path: Path) -> None:
    learned, tables = stored(database, tmp_path, schema_of())
    rows, everything = expected_rows(1), log().to_pylist()
    table, histories, items = tables["validation"], learned.histories, learned.items
    assert histories is not None
    assert items is not None
    group = learned.schema.sequences[0]
    cut = histories.cut(group, table["user"].to_numpy(), table["position"].to_numpy(), items)
    found = cut["items"].offsets.tolist(), cut["items"].values.tolist()
    expected = [
        [
            event["item"] for event in everything
            if event["user"] == row["user"] is not None and event[TIME] < row[TIME] and event["label:click"]
        ][-5:]
        for row in rows.to_pylist()
    ]  # fmt: skip
    vocabulary = learned.encoder.vocabularies["item"]
    assert found[0] == np.cumsum([0, *map(len, expected)]).tolist()
    assert found[1] == vocabulary.rows([item for some in expected for item in some]).tolist()


def test_examples_of_ordered_histories_keep_their_time(database: Database, tmp_path: Path) -> None:
    _, tables = stored(database, tmp_path / "ordered", schema_of())
    for code, split in enumerate(SPLITS):
        assert tables[split]["time"].to_pylist() == expected_rows(code)[TIME].to_pylist()
    database.drop("events")
    unordered = {"past": SEQUENCES["past"] | {"ordered": False}}
    _, tables = stored(database, tmp_path / "sets", schema_of(sequences=unordered))
    assert "time" not in tables["train"].column_names


def test_features_of_past_events_stand_in_histories_alone(database: Database, tmp_path: Path) -> None:
    features = FEATURES | {"hour": ID | {"history_only": True}}
    learned, tables = stored(database, tmp_path, schema_of(features=features))
    assert learned.histories is not None
    assert learned.histories.columns == ("hour",)
    assert "hour" not in tables["train"].column_names


def test_sets_find_each_examples_own_item(database: Database, tmp_path: Path) -> None:
    unordered = {"past": SEQUENCES["past"] | {"ordered": False, "label": ""}}
    learned, tables = stored(database, tmp_path, schema_of(sequences=unordered, timestamp=""))
    table, histories = tables["test"], learned.histories
    assert histories is not None
    known = table["user"].to_numpy() >= 0
    at = histories.offsets[table["user"].to_numpy()[known]] + table["position"].to_numpy()[known]
    assert np.array_equal(histories.items[at], table["item"].to_numpy()[known])
    assert (table["position"].to_numpy()[~known] == -1).all()


def test_histories_hold_the_labelled_events_of_every_split(database: Database, tmp_path: Path) -> None:
    learned, _ = stored(database, tmp_path, schema_of())
    rows = log()
    belongs = (rows[label_column("click")].to_numpy() > 0) & rows["user"].is_valid().to_numpy(zero_copy_only=False)
    assert learned.histories is not None
    assert learned.histories.num_events == belongs.sum()
    assert learned.histories.columns == ("hour",)


def test_histories_without_sequences_are_the_examples(database: Database, tmp_path: Path) -> None:
    rows = log()
    schema = schema_of(sequences={})
    events, learned = database.store_arrow("events", rows), learned_of(schema, rows)
    histories = write_histories(database, events, learned, tmp_path / "histories", silent)
    pairs = rows.filter(pa.compute.and_(rows[EXAMPLE], rows["user"].is_valid()))
    distinct = set(zip(pairs["user"].to_pylist(), pairs["item"].to_pylist(), strict=True))
    assert not histories.ordered
    assert histories.num_events == len(distinct)


def test_row_groups_and_files_are_even(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples_module, "ROW_GROUP", 64)
    monkeypatch.setattr(examples_module, "ROW_GROUPS_PER_FILE", 4)
    learned, tables = stored(database, tmp_path, schema_of())
    files = sorted((tmp_path / "examples" / "train").iterdir())
    assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    metadata = [pq.read_metadata(file) for file in files]
    sizes = [one.row_group(group).num_rows for one in metadata for group in range(one.num_row_groups)]
    assert sizes == [64] * 9 + [630 - 9 * 64]
    encoded = Batch(features=learned.encoder.encode(expected_rows(0), ["hour"]))
    assert tables["train"]["hour"].to_pylist() == encoded.ids("hour").tolist()


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"feature '{name}': .* set column = \"{name}\""):
        check_examples(parse_schema({"name": "t", "features": {name: ID}}, where="test"), positive=False)


@pytest.mark.parametrize(
    ("parts", "positive", "message"),
    [
        ({"sequences": BOTH | {"b": BOTH["b"] | {"ordered": False}}}, False, "must all be ordered, or none"),
        ({"timestamp": ""}, False, "ordered sequences need `timestamp`"),
        ({"sequences": BOTH | {"b": BOTH["b"] | {"label": ""}}}, False, "must name one label"),
        ({"item": "", "sequences": {}}, True, "needs `user` and `item`"),
    ],
)  # fmt: skip
def test_schemas_that_cannot_be_stored_are_refused(parts: dict[str, Any], positive: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_examples(schema_of(**parts), positive)


@pytest.mark.parametrize(
    ("parts", "positive", "expected"),
    [({}, False, True), ({"sequences": {}}, False, False), ({"sequences": {}}, True, True)],
)
def test_histories_are_kept_for_sequences_and_retrieval(parts: Any, positive: bool, expected: bool) -> None:
    assert keeps_histories(schema_of(**parts), positive) == expected


def test_split_names_agree_everywhere() -> None:
    assert SPLITS == histories_module.SPLITS


def test_empty_histories_can_be_opened(database: Database, tmp_path: Path) -> None:
    rows = log()
    rows = rows.set_column(rows.column_names.index("label:click"), "label:click", pa.array(np.zeros(NUM_ROWS)))
    events, learned = database.store_arrow("events", rows), learned_of(schema_of(), rows)
    histories = write_histories(database, events, learned, tmp_path / "histories", silent)
    assert isinstance(histories, Histories)
    assert histories.num_events == 0

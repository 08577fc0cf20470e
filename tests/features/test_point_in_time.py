"""From raw rows to batches: an example sees the events of its user before its own time, all of them and no other."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.prepared import DataConfig, prepare
from tests.features.timed_log import LENGTH, ROWS, SHORT, Rows, before, examples_of, made, seen, whole


@settings(deadline=None, max_examples=8)
@given(rows=ROWS)
def test_examples_see_exactly_the_events_before_them(rows: Rows) -> None:
    with TemporaryDirectory() as folder:
        prepared = made(Path(folder), rows)
        batch = whole(prepared)
        examples = examples_of(rows)
        expected = [before(rows, number) for number in examples]
        assert batch.labels["liked"].tolist() == [float(rows[number][3] == 2) for number in examples]
        assert seen(prepared, batch, "history_event", "event") == [past[-LENGTH:] for past in expected]
        assert seen(prepared, batch, "recent_event", "event") == [past[-SHORT:] for past in expected]
        elapsed = [
            rows[number][2] - rows[event][2]
            for number, past in zip(examples, expected, strict=True)
            for event in past[-LENGTH:]
        ]
        assert batch.jagged("history_age").values.tolist() == [1 + math.floor(math.log2(1 + one)) for one in elapsed]
        assert [len(past[-SHORT:]) for past in expected] == batch.jagged("recent_age").lengths.tolist()
        assert "event" not in batch.features


@settings(deadline=None, max_examples=3)
@given(rows=ROWS, data=st.data())
def test_events_at_or_after_an_example_change_nothing_in_it(rows: Rows, data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(examples_of(rows)))
    user, item, time, _ = rows[chosen]
    altered = [row if row[2] < time or at == chosen else (row[0], 5, row[2], row[3]) for at, row in enumerate(rows)]
    altered += [(user, item, time, 2), (user, 6, time + 1, 0)]
    examples = examples_of(rows)
    found = []
    for given_rows in (rows, altered):
        with TemporaryDirectory() as folder:
            prepared = made(Path(folder), given_rows)
            batch, place = whole(prepared), examples.index(chosen)
            events = seen(prepared, batch, "history_event", "event")[place]
            items = [given_rows[event][1] for event in events]
            assert seen(prepared, batch, "history", "item")[place] == items
            offsets = batch.jagged("history_age").offsets
            ages = batch.jagged("history_age").values[offsets[place] : offsets[place + 1]]
            found.append((events, items, ages.tolist()))
    assert found[0] == found[1]


def test_users_with_few_events_give_no_examples_but_keep_their_histories(tmp_path: Path) -> None:
    rows: Rows = [(0, 5, 0, 1), (0, 6, 1, 2), (0, 7, 2, 0), (1, 5, 0, 2), (1, 6, 1, 0)]
    prepared = made(tmp_path, rows, min_events=3)
    assert prepared.counts["train"] == 2
    assert (prepared.counts["events"], prepared.counts["dropped"]) == (5, 1)
    assert prepared.histories is not None
    assert prepared.histories.num_events == 5
    assert seen(prepared, whole(prepared), "history_event", "event") == [[0], [0, 1]]


def test_min_events_needs_users(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text('name = "t"\n[features.ad]\ntable = "ids"\n[labels.liked]\n')
    values = {"name": "t", "source": "csv", "path": "x.csv", "schema": "schema.toml", "min_events": 2}
    config = DataConfig.model_validate(values | {"split": {"kind": "random"}})
    with pytest.raises(ValueError, match="min_events counts the events of users, but schema 't' names no `user`"):
        prepare(config, data_root=tmp_path, schema_dir=tmp_path, out=tmp_path / "out")

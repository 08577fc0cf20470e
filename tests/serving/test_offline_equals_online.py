"""The features of an example are the same from prepared data and from a request, however the request says what was.

A request is answered at the example's time, from the bundle's history, from one of its own (in any order, events that
are still to come among them), and from ready sequences.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from features.batch import Batch, Jagged
from features.prepared import Prepared
from recsys.components import Entities, Users
from serving.errors import InvalidArgumentError
from serving.inputs import Column, Inputs
from serving.queries import SubjectQuery
from tests.features.timed_log import LENGTH, ROWS, SHORT, Rows, before, examples_of, made, whole

SEQUENCES = ("history", "history_event", "history_age", "recent_event", "recent_age")


def inputs_of(prepared: Prepared) -> Inputs:
    """Of a model that reads everything, over what a bundle of all the data would hold."""
    assert prepared.users is not None
    users = Users(
        table=prepared.users,
        offsets=np.zeros(len(prepared.users) + 1, np.int64),
        items=np.zeros(0, np.int64),
        histories=prepared.histories,
    )
    return Inputs(Entities(encoder=prepared.encoder, users=users, items=prepared.items), prepared.schema.inputs)


def assert_are_those_of_the_example(found: dict[str, Column], batch: Batch, place: int) -> None:
    for name in SEQUENCES:
        column, expected = found[name], batch.jagged(name)
        assert isinstance(column, Jagged)
        start, stop = expected.offsets[place : place + 2].tolist()
        assert column.values.tolist() == expected.values[start:stop].tolist(), name
        assert column.offsets.tolist() == [0, stop - start], name


def asked(inputs: Inputs, query: SubjectQuery) -> dict[str, Column]:
    subject = inputs.subject(query, max_history=10_000)
    return inputs.sequences(np.array([subject.user]), subject)


def own_history(rows: Rows, events: list[int], time: int | None, **changed: object) -> SubjectQuery:
    values: dict[str, object] = {
        "history": [rows[event][1] for event in events],
        "history_times": [rows[event][2] for event in events],
        "history_features": {"event": pa.array(events, pa.int64())},
        "time": time,
    }
    return SubjectQuery(**{**values, **changed})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=6)
@given(rows=ROWS)
def test_requests_see_what_examples_see(rows: Rows) -> None:
    with TemporaryDirectory() as folder:
        prepared = made(Path(folder), rows)
        inputs, batch = inputs_of(prepared), whole(prepared)
        for place, number in enumerate(examples_of(rows)):
            user, _, time, _ = rows[number]
            assert_are_those_of_the_example(asked(inputs, SubjectQuery(user=user, time=time)), batch, place)
            events = [event for event, row in enumerate(rows) if row[0] == user]
            newest_first = sorted(events, key=lambda event: (-rows[event][2], event))  # ties as the log has them
            assert_are_those_of_the_example(asked(inputs, own_history(rows, newest_first, time)), batch, place)
            past = before(rows, number)
            columns = {
                "history": pa.array([[rows[event][1] for event in past]], pa.list_(pa.int64())),
                "history_event": pa.array([past], pa.list_(pa.int64())),
                "history_age": pa.array([[time - rows[event][2] for event in past]], pa.list_(pa.int64())),
                "recent_event": pa.array([past], pa.list_(pa.int64())),
            }
            assert_are_those_of_the_example(inputs.encoded(columns, "columns", inputs.names), batch, place)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """One user, an event each second."""
    return [(0, 5 + time % 5, time, 2 * (time % 2)) for time in range(9)]


@pytest.fixture(scope="module")
def inputs(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return inputs_of(made(tmp_path_factory.mktemp("log"), rows))


def lengths(columns: dict[str, Column]) -> set[tuple[str, int]]:
    return {(name, len(column.values)) for name, column in columns.items() if isinstance(column, Jagged)}


def expected_lengths(number: int) -> set[tuple[str, int]]:
    return {(name, min(number, SHORT if name.startswith("recent") else LENGTH)) for name in SEQUENCES}


def test_empty_histories_are_empty_rows(inputs: Inputs) -> None:
    for query in (SubjectQuery(history=[]), SubjectQuery(user=77), SubjectQuery(user=0, time=0), SubjectQuery()):
        assert lengths(asked(inputs, query)) == expected_lengths(0)


def test_long_histories_are_cut_to_the_newest(inputs: Inputs, rows: Rows) -> None:
    subject = inputs.subject(own_history(rows, list(range(9)), 99), max_history=10)
    assert inputs.unread(subject) == 9 - LENGTH
    columns = inputs.sequences(np.array([-1]), subject)
    assert lengths(columns) == expected_lengths(9)
    event = columns["recent_event"]
    assert isinstance(event, Jagged)
    assert inputs.entities.encoder.vocabularies["event"].raw(event.values.numpy()).tolist() == [7, 8]


def test_events_to_come_are_counted_as_unread(inputs: Inputs, rows: Rows) -> None:
    subject = inputs.subject(own_history(rows, [3, 1, 8, 2], 3), max_history=10)
    assert subject.history is not None
    items = inputs.entities.items
    assert items is not None
    assert items.raw(subject.history.tolist()).tolist() == [rows[1][1], rows[2][1]]
    assert (inputs.unread(subject), subject.unknown_history_ids) == (2, 0)


def test_without_a_time_everything_is_past(inputs: Inputs, rows: Rows) -> None:
    stored = asked(inputs, SubjectQuery(user=0))
    own = asked(inputs, own_history(rows, list(range(9)), None))
    for name in SEQUENCES:
        mine, theirs = own[name], stored[name]
        assert isinstance(mine, Jagged)
        assert isinstance(theirs, Jagged)
        assert mine.values.tolist() == theirs.values.tolist()
    assert stored["history_age"].values.tolist()[-1] == 1  # type: ignore[union-attr]


def test_unknown_items_leave_with_their_times_and_features(inputs: Inputs, rows: Rows) -> None:
    query = own_history(rows, [0, 1, 2], 9, history=[rows[0][1], 999, rows[2][1]])
    event = asked(inputs, query)["history_event"]
    assert isinstance(event, Jagged)
    assert inputs.entities.encoder.vocabularies["event"].raw(event.values.numpy()).tolist() == [0, 2]


def test_ten_thousand_events_are_read(inputs: Inputs) -> None:
    times = np.arange(10_000)
    query = SubjectQuery(history=5 + times % 5, history_times=times, time=10_000)
    assert lengths(asked(inputs, query)) == expected_lengths(10_000)
    with pytest.raises(InvalidArgumentError, match="history: got '10001 ids', accepted: at most 10000"):
        asked(inputs, SubjectQuery(history=np.zeros(10_001, np.int64)))


def test_parts_say_what_they_read_of_a_history(inputs: Inputs) -> None:
    assert (inputs.history_features, inputs.reads_times) == (("event",), True)
    plain = Inputs(inputs.entities, [spec for spec in inputs.schema.inputs if spec.name == "recent_age"])
    assert (plain.history_features, plain.reads_times) == ((), False)
    assert asked(plain, SubjectQuery(history=[5, 6]))["recent_age"].values.tolist() == [2, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"history_times": None}, "history_times: got none, accepted: the time of each item"),
        ({"history_times": [1]}, r"history_times: got 1, accepted: one per item of the history \(2\)"),
        ({"history_features": {"event": pa.array([1])}}, r"history_features\[event\]: got 1, accepted"),
        ({"history_features": {"evnt": pa.array([1, 2])}}, "history_features"),
        ({"history_features": {"event": pa.array(["a", "b"])}}, r"history_features\[event\]: .*holds integers"),
        ({"history": None}, "history_times: are given without a history"),
        ({"history": None, "history_times": None}, "history_features: are given without a history"),
    ],
)  # fmt: skip
def test_events_that_do_not_fit_are_refused(
    inputs: Inputs, rows: Rows, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        asked(inputs, own_history(rows, [0, 1], 9, **changed))


def test_ready_sequences_need_their_times(inputs: Inputs) -> None:
    columns = {"history": pa.array([[5]]), "history_event": pa.array([[1]])}
    with pytest.raises(InvalidArgumentError, match=r"columns\[history_age\]: got none"):
        inputs.encoded(columns, "columns", inputs.names)
    columns["history_age"] = pa.array([[-3]])
    with pytest.raises(InvalidArgumentError, match="an age by time is at least 0"):
        inputs.encoded(columns, "columns", inputs.names)

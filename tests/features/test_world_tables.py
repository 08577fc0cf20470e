"""The content hash of a world's data, and its rows as streams."""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from features.world_tables import WorldStream, WorldTables


def tables() -> WorldTables:
    return WorldTables(
        events=pa.table({"user": ["a", "b"], "click": [0, 1]}),
        users=pa.table({"user": ["a", "b"]}),
        items=pa.table({"item": [1, 2]}),
        triples=pa.table({"head": ["x"], "relation": ["y"], "tail": ["z"]}),
    )


def test_content_hash_is_of_names_and_values_not_of_layout() -> None:
    events = tables().events
    in_pieces = pa.concat_tables([events.slice(0, 1), events.slice(1)])
    assert replace(tables(), events=in_pieces).content_hash == tables().content_hash


def test_content_hash_sees_every_change() -> None:
    changed = [
        pa.table({"user": ["a", "b"], "click": [1, 0]}),
        pa.table({"user": ["a", "b"], "click": ["0", "1"]}),
        pa.table({"user": ["a", "b"], "clicked": [0, 1]}),
        pa.table({"user": ["b", "a"], "click": [0, 1]}),
        pa.table({"user": ["a"], "click": [0]}),
    ]
    hashes = {replace(tables(), events=events).content_hash for events in changed}
    hashes.add(tables().content_hash)
    assert len(hashes) == len(changed) + 1


def stream(*pieces: dict[str, list[int]]) -> WorldStream:
    schema = pa.schema([("a", pa.int32()), ("b", pa.int64())])

    def batches() -> Iterator[pa.RecordBatch]:
        for piece in pieces:
            yield pa.RecordBatch.from_pydict(piece, schema=schema)

    return WorldStream(schema=schema, batches=batches)


def test_stream_hash_is_of_values_not_of_batches() -> None:
    whole = stream({"a": [1, 2], "b": [3, 4]})
    assert whole.content_hash == whole.content_hash == stream({"a": [1], "b": [3]}, {"a": [2], "b": [4]}).content_hash
    others = [{"a": [1, 2], "b": [4, 3]}, {"a": [3, 4], "b": [1, 2]}, {"a": [1], "b": [3]}]
    assert len({stream(other).content_hash for other in others} | {whole.content_hash}) == 4


def test_readers_begin_anew_at_every_call() -> None:
    made = stream({"a": [1], "b": [3]}, {"a": [2], "b": [4]})
    for data, expected in ((made, {"events": 2}), (tables(), {"events": 2, "users": 2, "items": 2})):
        for _ in range(2):
            assert {role: len(reader.read_all()) for role, reader in data.readers().items()} == expected

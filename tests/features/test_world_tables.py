"""The content hash of a world's tables."""

from dataclasses import replace

import pyarrow as pa

from features.world_tables import WorldTables


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

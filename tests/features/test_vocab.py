"""A vocabulary equals a Python dict of the same ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.storage import write_bytes
from features.vocab import Unseen, Vocabulary

INT64 = st.integers(-(2**63), 2**63 - 1)
RAW = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-20, 20), INT64), max_size=30),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=30),
)


def counted(raw: list[Any], unseen: Unseen = "own_row", min_count: int = 1) -> Vocabulary:
    return Vocabulary.from_counts("v", raw, np.ones(len(raw)), unseen=unseen, min_count=min_count)


@settings(deadline=None)
@given(raw=RAW, asked=RAW, min_count=st.integers(1, 3))
def test_vocabulary_rows_equal_a_dict(raw: list[Any], asked: list[Any], min_count: int) -> None:
    kept = sorted({v for v in raw if v is not None and raw.count(v) >= min_count})
    entries = ([None] if raw.count(None) >= min_count else []) + kept
    expected = {value: row for row, value in enumerate(entries, start=1)}
    vocabulary = counted(raw, min_count=min_count)
    same_kind = [v for v in asked if v is None or not raw or all(isinstance(v, type(r)) for r in raw if r is not None)]
    assert vocabulary.rows(same_kind).tolist() == [expected.get(value, 0) for value in same_kind]
    assert vocabulary.row_counts().tolist() == [0] + [raw.count(value) for value in entries]
    assert vocabulary.num_rows == len(entries) + 1


@settings(deadline=None)
@given(raw=RAW)
def test_vocabulary_raw_is_the_inverse_of_rows(raw: list[Any]) -> None:
    vocabulary = counted(raw)
    assert vocabulary.raw(vocabulary.rows(raw)).tolist() == raw


@settings(deadline=None)
@given(raw=RAW, later=RAW)
def test_vocabulary_grown_leaves_old_rows_untouched(raw: list[Any], later: list[Any]) -> None:
    known = [v for v in raw if v is not None]
    later = [v for v in later if v is None or not known or isinstance(v, type(known[0]))]
    before = counted(raw)
    after = before.grown(later, np.ones(len(later)))
    rows = after.rows(raw + later)
    assert rows[: len(raw)].tolist() == before.rows(raw).tolist()
    assert after.raw(rows).tolist() == raw + later
    assert after.row_counts()[rows].tolist() == [(raw + later).count(value) for value in raw + later]


def test_vocabulary_grown_of_a_catalogue_gives_rows_to_ids_without_occurrences() -> None:
    before = Vocabulary.from_counts("v", [5], [0], unseen="refuse", min_count=0)
    assert before.grown([3, 5], [0, 2]).raw_ids.tolist() == [5, 3]
    assert counted([5]).grown([3], [0]).raw_ids.tolist() == [5], "min_count is 1"


@settings(deadline=None)
@given(raw=RAW, later=RAW)
def test_vocabulary_extends_what_it_was_grown_from(raw: list[Any], later: list[Any]) -> None:
    known = [v for v in raw if v is not None]
    later = [v for v in later if v is None or not known or isinstance(v, type(known[0]))]
    before = counted(raw)
    after = before.grown(later, np.ones(len(later)))
    after.check_extends(before)
    if after.num_rows > before.num_rows:
        with pytest.raises(ValueError, match=f"has {before.num_rows} rows, the older {after.num_rows}"):
            before.check_extends(after)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (counted([1, 3]), "row 2 is 3, was 2"),
        (counted(["1", "2"]), "row 1 is '1', was 1"),
        (counted([None, 2]), "row 1 is None, was 1"),
        (counted([1]).grown([None], [1]), "row 2 is None, was 2"),
        (counted([1, 2], min_count=2), "min_count is 2, was 1"),
        (counted([1, 2], unseen="refuse"), "unseen is 'refuse', was 'own_row'"),
    ],
)
def test_vocabulary_that_does_not_extend_names_what_differs(other: Vocabulary, message: str) -> None:
    with pytest.raises(ValueError, match=f"vocabulary 'v' does not extend the older one: {message}"):
        other.check_extends(counted([1, 2]))


@settings(deadline=None)
@given(raw=RAW, later=st.booleans())
def test_vocabulary_save_load_round_trips(
    tmp_path_factory: pytest.TempPathFactory, raw: list[Any], later: bool
) -> None:
    vocabulary = counted(raw).grown([None], [2]) if later else counted(raw, min_count=2)
    path = tmp_path_factory.getbasetemp() / "round_trip.parquet"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert loaded.content_hash == vocabulary.content_hash
    assert loaded.rows(raw).tolist() == vocabulary.rows(raw).tolist()


def test_vocabulary_content_hash_sees_everything() -> None:
    variants = [
        Vocabulary.from_counts("v", [1, 2], [1, 1]),
        Vocabulary.from_counts("w", [1, 2], [1, 1]),
        Vocabulary.from_counts("v", [1, 3], [1, 1]),
        Vocabulary.from_counts("v", [1, 2], [1, 2]),
        Vocabulary.from_counts("v", [1, 2], [1, 1], unseen="refuse"),
        Vocabulary.from_counts("v", ["1", "2"], [1, 1]),
        Vocabulary.from_counts("v", [None, 2], [1, 1]),
        Vocabulary.from_counts("v", ["", "12"], [1, 1]),
        Vocabulary.from_counts("v", ["1", "2", ""], [1, 1, 1]),
    ]
    assert len({vocabulary.content_hash for vocabulary in variants}) == len(variants)
    assert variants[0].content_hash == Vocabulary.from_counts("v", [2, 1, 1], [1, 1, 0]).content_hash


def test_vocabulary_refusing_names_vocabulary_place_and_id() -> None:
    vocabulary = counted([5, 3], unseen="refuse")
    assert vocabulary.rows([3, 5]).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"vocabulary 'v' has no id 7 \(place 1, 2 such of 3\)"):
        vocabulary.rows([3, 7, None])


@pytest.mark.parametrize(
    "raw",
    [
        np.array([3, 5, 9]),
        np.array([3, 5, 9], dtype=np.uint8),
        pd.Series([3, 5, 9]),
        pd.Series([3.0, 5.0, 9.0]),
        pa.chunked_array([[3, 5], [9]]),
        pa.array([3, 5, 9]).dictionary_encode(),
        [3, 5, 9],
    ],
    ids=["numpy", "uint8", "pandas", "whole floats", "chunked", "dictionary", "list"],
)
def test_vocabulary_takes_ids_in_every_form(raw: Any) -> None:
    assert counted([3, 5]).rows(raw).tolist() == [1, 2, 0]


@pytest.mark.parametrize("raw", [pd.Series(["a", None, "z"]), pa.array(["a", None, "z"]), np.array(["a", None, "z"])])
def test_vocabulary_takes_strings_in_every_form(raw: Any) -> None:
    assert counted(["a", "b", None]).rows(raw).tolist() == [2, 1, 0]


def test_vocabulary_unsigned_ids_keep_their_bits() -> None:
    ids = np.array([2**64 - 1, 7], dtype=np.uint64)
    vocabulary = Vocabulary.from_counts("v", ids, [1, 1])
    assert vocabulary.raw_ids.tolist() == [-1, 7]
    assert vocabulary.rows(ids).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1, "a"], "of one type"),
        ([2**70], "of one type"),
        ([1.5], "got 1.5"),
        ([[1]], "got list"),
        (pd.to_datetime(["2020-01-01"]), "got timestamp"),
        (["a"], "holds integers, got ids of type large_string"),
    ],
)
def test_vocabulary_other_types_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counted([1]).rows(raw)


def test_vocabulary_rows_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has rows 0\.\.1, got 0\.\.2"):
        counted([1]).raw([0, 2])


def test_vocabulary_ids_that_stand_twice_are_refused() -> None:
    twice = Vocabulary(name="v", raw_ids=np.array([1, 1]), counts=np.array([1, 1]))
    with pytest.raises(ValueError, match="id 1 stands twice"):
        twice.rows([1])


def test_vocabulary_damaged_file_is_refused(tmp_path: Path) -> None:
    counted([1, 2]).save(tmp_path / "v.parquet")
    whole = (tmp_path / "v.parquet").read_bytes()
    other = Vocabulary.from_counts("v", [1, 3], [1, 1])
    table = pa.parquet.read_table(tmp_path / "v.parquet")
    pa.parquet.write_table(
        pa.table({"raw_id": other.raw_ids, "count": other.counts}).replace_schema_metadata(table.schema.metadata),
        tmp_path / "altered.parquet",
    )
    write_bytes(tmp_path / "cut.parquet", whole[: len(whole) // 2])
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    for name, message in {"altered": "is damaged", "cut": "no readable Parquet", "foreign": "not a vocabulary"}.items():
        with pytest.raises(ValueError, match=message):
            Vocabulary.load(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "absent.parquet")

"""Hashes are pinned, and agree in Python, numpy and torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.hashes import hash64, hash_ids, mix64

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "hashes.json").read_text(encoding="utf-8"))
MASK = (1 << 64) - 1
INT64 = st.integers(-(2**63), 2**63 - 1)


def split_mix_stream(seed: int, length: int) -> list[int]:
    """SplitMix64 as published, on Python integers."""
    values = []
    for step in range(1, length + 1):
        z = (seed + step * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        values.append(z ^ (z >> 31))
    return values


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def test_hash64_golden_values() -> None:
    assert [hash64(case["data"], case["salt"]) for case in GOLDEN["hash64"]] == [c["value"] for c in GOLDEN["hash64"]]


def test_hash64_equals_the_digest_of_b2sum() -> None:
    digests = {"": "e4a6a0577479b2b4", "abc": "d8bb14d833d59559"}  # b2sum -l 64
    for text, digest in digests.items():
        assert hash64(text) == hash64(text.encode()) == signed(int.from_bytes(bytes.fromhex(digest), "little"))


def test_hash64_separates_salts() -> None:
    assert len({hash64("bc", "a"), hash64("c", "ab"), hash64("abc"), hash64("abc", "x" * 100)}) == 4


def test_mix64_golden_values() -> None:
    for case in GOLDEN["mix64"]:
        assert mix64(case["id"], case["salt"]) == case["value"]


def test_mix64_is_the_published_finaliser() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # the known stream of seed 1234567
    assert split_mix_stream(1234567, 3) == published
    offset = split_mix_stream(99, 1)[0]  # f(salt + G)
    for step in (1, 2, 3):
        state = 1234567 + step * 0x9E3779B97F4A7C15
        assert mix64(signed((state - offset) & MASK), 99) == signed(published[step - 1])


@settings(deadline=None)
@given(ids=st.lists(INT64, max_size=20), salt=INT64)
def test_mix64_agrees_in_python_numpy_and_torch(ids: list[int], salt: int) -> None:
    expected = [mix64(value, salt) for value in ids]
    array = np.array(ids, dtype=np.int64)
    assert mix64(array, salt).tolist() == expected
    assert mix64(array.view(np.uint64), salt).view(np.int64).tolist() == expected
    assert mix64(torch.tensor(ids, dtype=torch.int64), salt).tolist() == expected
    assert array.tolist() == ids, "the input stays as it was"


def test_mix64_spreads_and_neighbouring_salts_are_unrelated() -> None:
    ids = torch.arange(100_000)
    buckets = [torch.bincount(mix64(ids, salt).remainder(100), minlength=100) for salt in (0, 1)]
    assert all(abs(float(count) - 1000) < 190 for bucket in buckets for count in bucket)  # six standard deviations
    same = (mix64(ids, 0).remainder(100) == mix64(ids, 1).remainder(100)).float().mean()
    assert abs(float(same) - 0.01) < 0.003
    assert len(mix64(ids, 0).unique()) == len(ids)


@pytest.mark.parametrize("ids", [np.arange(3, dtype=np.int32), torch.arange(3, dtype=torch.int32), np.zeros(2)])
def test_mix64_other_types_are_refused(ids: Any) -> None:
    with pytest.raises(ValueError, match="mix64 takes int64"):
        mix64(ids, 0)


def test_hash_ids_equals_one_by_one() -> None:
    assert hash_ids(pa.array([3, None, 3])).tolist() == [mix64(3, 0), hash64("", "missing"), mix64(3, 0)]
    assert hash_ids(pa.array(["a", None, ""])).tolist() == [hash64("a"), hash64("", "missing"), hash64("")]

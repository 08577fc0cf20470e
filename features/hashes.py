"""The hashes that everything else is keyed by: `hash64` for strings, salts and buckets, `mix64` for integer ids.

Their values are pinned by tests/golden/hashes.json: they may never change, since rows of trained tables depend on them.
Neither is a defence against an adversary. 64-bit values stand as int64 bit patterns (two's complement).

Shapes: N ids.
"""

from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

AnyInts = TypeVar("AnyInts", int, NDArray[Any], Tensor)

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash64(data: bytes | str, salt: str = "") -> int:
    """BLAKE2b with an 8-byte digest, little-endian, as a signed int64; strings are hashed as UTF-8.

    A salt that is not empty keys the hash with the 32-byte BLAKE2b digest of the salt's UTF-8 form, so salts of any
    length separate, and no (salt, data) pair meets another by concatenation.
    """
    data = data.encode() if isinstance(data, str) else data
    key = blake2b(salt.encode(), digest_size=32).digest() if salt else b""
    return int.from_bytes(blake2b(data, digest_size=8, key=key).digest(), "little", signed=True)


def mix64(ids: AnyInts, salt: int) -> AnyInts:
    """A bijection of 64-bit integers, different for each salt: f(id + f(salt + G)), all modulo 2^64.

    f is the finaliser of SplitMix64, f(z): z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27;
    z *= 0x94D049BB133111EB; z ^= z >> 31 (logical shifts), and G = 0x9E3779B97F4A7C15. Mixing the salt first keeps
    neighbouring salts unrelated. Takes a Python int, a numpy array of int64 or uint64, or an int64 tensor, of any
    shape, and returns the same type; the bits agree in all of them. Raises ValueError for other types.
    """
    offset = _finalise((salt + _GAMMA) & _MASK)
    if isinstance(ids, int):
        return _signed(_finalise((ids + offset) & _MASK))
    if isinstance(ids, Tensor):
        return _mix_tensor(ids, offset)
    return _mix_array(np.asarray(ids), offset)


def _finalise(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _mix_array(ids: NDArray[Any], offset: int) -> NDArray[Any]:
    if ids.dtype not in (np.int64, np.uint64):
        raise ValueError(f"mix64 takes int64 or uint64 arrays, got {ids.dtype}")
    z = ids.astype(np.uint64) + np.uint64(offset)
    z ^= z >> np.uint64(30)
    z *= np.uint64(_FIRST)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_SECOND)
    z ^= z >> np.uint64(31)
    return z.view(ids.dtype)


def _mix_tensor(ids: Tensor, offset: int) -> Tensor:
    """Signed products and sums wrap as unsigned ones do; an arithmetic shift becomes logical by masking its top."""
    if ids.dtype != torch.int64:
        raise ValueError(f"mix64 takes int64 tensors, got {ids.dtype}")
    z = ids + _signed(offset)
    z ^= (z >> 30) & (_MASK >> 30)
    z *= _signed(_FIRST)
    z ^= (z >> 27) & (_MASK >> 27)
    z *= _signed(_SECOND)
    z ^= (z >> 31) & (_MASK >> 31)
    return z


def hash_ids(ids: pa.Array) -> NDArray[np.int64]:
    """64-bit ids of raw ids [N] (from `arrow_ids`) that keep no vocabulary, int64.

    An integer becomes mix64(id, 0), a string hash64(string), a null hash64("", "missing"). The integer 7 and the
    string "7" are different ids. Features are told apart later, by the salt of the table that reads them.
    """
    encoded = ids.dictionary_encode()
    if pa.types.is_int64(ids.type):
        distinct = mix64(encoded.dictionary.to_numpy(), 0)
    else:
        distinct = np.array([hash64(text) for text in encoded.dictionary.to_pylist()], dtype=np.int64)
    with_null = np.append(distinct, np.int64(hash64("", "missing")))
    found: NDArray[np.int64] = with_null[encoded.indices.fill_null(len(distinct)).to_numpy()]
    return found

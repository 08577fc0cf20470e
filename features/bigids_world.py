"""`BigIds`: a world of clicks whose features have millions of ids, made batch by batch; the click probability is known.

Twenty independent categorical features, `c01` (the largest) to `c20`. Feature f has n_f ids; the id of a row has rank
floor(n_f u^a) for a uniform u, so that the r-th most frequent id is drawn in proportion to about r^(1/a - 1): a power
law. Raw ids are the ranks in another order. Logit of a click:

    bias + sum over f of effect_f * z(f, id)                                         one number per id
    + sum over pairs of crossing * (z_1(id) z_1(id') + z_2(id) z_2(id')) / sqrt(2)   crosses of two middling features

Each z is a nearly normal number hashed from its id (the sum of four uniforms of 16 bits: deviation 1, at most 3.5), and
row r's draws are hashed from r: nothing is stored per id or row, a row does not depend on the batch that it is made in,
and all but `exp` is exact arithmetic. Probabilities are rounded before they are compared with a random number, so that
the last bits of `exp`, which differ between machines, do not matter.

`cross` is c01 and c15 as one id, 10^9 possible ones in the large world: what a hashed feature is for.
Memory: one batch, whatever the number of ids and rows.

Shapes: n rows of a batch, T features, P pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.random import Generator
from numpy.typing import NDArray

from features.hashes import mix64
from features.world_tables import WorldStream

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MANY_IDS = (
    2_500_000, 2_000_000, 1_500_000, 1_000_000, 600_000, 300_000, 100_000, 50_000, 25_000, 12_000,
    6_000, 3_000, 1_500, 800, 400, 200, 100, 50, 25, 12,
)  # fmt: skip
FEW_IDS = (8_000, 5_000, 3_000, 2_000, 1_000, 600, 400, 250, 150, 100, 80, 60, 50, 40, 30, 25, 20, 15, 12, 10)
BATCH_ROWS = 65_536
RANK = 2  # of a cross
_PRIME = 2_654_435_761  # no multiple of a feature's size: times it, modulo the size, is another order of the ids
_CROSSED = ("c01", "c15")


@dataclass(frozen=True, kw_only=True)
class BigIds:
    """Sizes, and how strong (logits; standard deviations) each cause is.

    cardinalities: possible ids of c01, c02, ..., falling. skew: the exponent a. num_large: so many of the first
    features have large_effect, the others small_effect. pairs: the features whose crosses matter.
    """

    num_rows: int = 4_000_000
    cardinalities: tuple[int, ...] = MANY_IDS
    skew: int = 4
    num_large: int = 7
    bias: float = -1.5
    large_effect: float = 0.8
    small_effect: float = 0.3
    crossing: float = 0.4
    pairs: tuple[tuple[str, str], ...] = (
        ("c09", "c18"), ("c10", "c20"), ("c11", "c19"), ("c12", "c14"), ("c13", "c16"), ("c15", "c17"),
    )  # fmt: skip

    def make(self, rng: Generator) -> WorldStream:
        """The events, from a generator that gives the salts of all hashes."""
        salts = _Salts(
            draws=_some_salts(rng, len(self.cardinalities)),
            effects=_some_salts(rng, len(self.cardinalities)),
            crosses=[[_some_salts(rng, RANK) for _side in pair] for pair in self.pairs],
            click=_some_salts(rng, 1)[0],
        )
        return WorldStream(schema=self._schema, batches=partial(self._batches, salts))

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features, [T]."""
        return tuple(f"c{number:02d}" for number in range(1, len(self.cardinalities) + 1))

    @property
    def _schema(self) -> pa.Schema:
        ids = [(name, pa.int32()) for name in self.features]
        return pa.schema([*ids, ("cross", pa.int64()), ("click", pa.int8()), ("probability", pa.float64())])

    def _batches(self, salts: "_Salts") -> Iterator[pa.RecordBatch]:
        for start in range(0, self.num_rows, BATCH_ROWS):
            rows = np.arange(start, min(start + BATCH_ROWS, self.num_rows))
            ids = {name: self._draw(place, rows, salts) for place, name in enumerate(self.features)}
            probability = np.round(1 / (1 + np.exp(-self._logits(ids, salts))), 6)
            columns = ids | {
                "cross": self._cross(ids),
                "click": _uniform(rows, salts.click) < probability,
                "probability": probability,
            }
            arrays = [pa.array(columns[field.name].astype(field.type.to_pandas_dtype())) for field in self._schema]
            yield pa.record_batch(arrays, schema=self._schema)

    def _draw(self, place: int, rows: Ints, salts: "_Salts") -> Ints:
        """The ids [n] of one feature."""
        size = self.cardinalities[place]
        uniform = _uniform(rows, salts.draws[place])
        power = uniform.copy()
        for _ in range(self.skew - 1):
            power *= uniform
        ranks = (size * power).astype(np.int64)
        permuted: Ints = (ranks + 1) * _PRIME % size
        return permuted

    def _logits(self, ids: Mapping[str, Ints], salts: "_Salts") -> Floats:
        logits = np.full(len(ids["c01"]), self.bias)
        for place, name in enumerate(self.features):
            effect = self.large_effect if place < self.num_large else self.small_effect
            logits += effect * _normal(ids[name], salts.effects[place])
        for (left, right), (left_salts, right_salts) in zip(self.pairs, salts.crosses, strict=True):
            for left_salt, right_salt in zip(left_salts, right_salts, strict=True):
                product = _normal(ids[left], left_salt) * _normal(ids[right], right_salt)
                logits += self.crossing / np.sqrt(RANK) * product
        return logits

    def _cross(self, ids: Mapping[str, Ints]) -> Ints:
        first, second = _CROSSED
        return ids[first] * self.cardinalities[self.features.index(second)] + ids[second]


@dataclass(frozen=True, kw_only=True)
class _Salts:
    draws: Sequence[int]  # [T]
    effects: Sequence[int]  # [T]
    crosses: Sequence[Sequence[Sequence[int]]]  # [P, 2, RANK]
    click: int


def _some_salts(rng: Generator, count: int) -> list[int]:
    return [int(salt) for salt in rng.integers(1 << 62, size=count)]


def _uniform(numbers: Ints, salt: int) -> Floats:
    """Numbers in [0, 1) of 40 bits: few enough that no product with a feature's size is rounded up to it."""
    return (mix64(numbers, salt).view(np.uint64) >> np.uint64(24)).astype(np.float64) * 2.0**-40


def _normal(ids: Ints, salt: int) -> Floats:
    """Nearly normal numbers: the four 16-bit parts of a hash, summed, centred and scaled."""
    parts = mix64(ids, salt).view(np.uint16).reshape(-1, 4)
    scale = 65_536 * np.sqrt(4 / 12)
    numbers: Floats = (parts.sum(axis=1, dtype=np.int64) - 2 * 65_535) / scale
    return numbers

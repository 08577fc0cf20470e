"""Raw ids -> rows: `Vocabulary`, the ids of a train split with their rows.

Shapes: N ids, V entries of a vocabulary.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features import storage
from features.raw_ids import IdIndex, Ids, arrow_ids, id_values, sorted_counts

Rows = NDArray[np.int64]
Unseen = Literal["own_row", "refuse"]
_METADATA = b"recsys.vocabulary"


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The ids of a train split, each with its row of an embedding table.

    raw_ids: int64 or object (str) [V], in row order: ascending as created, later ids after them. counts: int64 [V],
    occurrences in train. null_index: the entry that stands for a null (its raw_ids value is a placeholder), None where
    train had none. unseen: "own_row" puts row 0 aside for every id that is not here, ids rarer than min_count
    included, and entry i has row i + 1; with "refuse" entry i has row i and other ids raise ValueError.
    Raises ValueError for lengths that differ or an id that stands twice. Memory: 16 V bytes (strings: as Python
    objects) and a hash table from the first look-up on.
    """

    name: str
    raw_ids: Ids
    counts: Rows
    unseen: Unseen = "own_row"
    min_count: int = 1
    null_index: int | None = None

    def __post_init__(self) -> None:
        if self.raw_ids.dtype != np.int64 and self.raw_ids.dtype != object:
            raise ValueError(f"vocabulary {self.name!r}: raw ids must be int64 or str, got {self.raw_ids.dtype}")
        if self.counts.shape != self.raw_ids.shape or self.counts.dtype != np.int64:
            raise ValueError(
                f"vocabulary {self.name!r}: {len(self.raw_ids)} ids need as many int64 counts, "
                f"got {self.counts.dtype} {self.counts.shape}"
            )

    @staticmethod
    def from_counts(
        name: str, raw_ids: Any, counts: Any, *, unseen: Unseen = "own_row", min_count: int = 1
    ) -> "Vocabulary":
        """A vocabulary of these ids (list, numpy, pandas or Arrow; a null becomes an entry, sorted first).

        The order given does not matter; counts of an id that is given twice are added. Ids rarer than min_count are
        left out.
        """
        what = f"vocabulary {name!r}"
        ids, totals, null_count = sorted_counts(arrow_ids(raw_ids, what), np.asarray(counts, dtype=np.int64), what)
        kept = totals >= min_count
        ids, totals = ids[kept], totals[kept]
        has_null = null_count >= min_count and null_count > 0
        if has_null:
            ids = np.concatenate([np.array([0] if ids.dtype == np.int64 else [None], dtype=ids.dtype), ids])
            totals = np.insert(totals, 0, null_count)
        return Vocabulary(
            name=name,
            raw_ids=ids,
            counts=totals,
            unseen=unseen,
            min_count=min_count,
            null_index=0 if has_null else None,
        )

    @property
    def offset(self) -> int:
        """The row of entry 0: 1 where row 0 is put aside for unseen ids, else 0."""
        return 1 if self.unseen == "own_row" else 0

    @property
    def num_rows(self) -> int:
        """Entries and, with unseen = "own_row", the row of unseen ids."""
        return len(self.raw_ids) + self.offset

    @property
    def holds_integers(self) -> bool:
        """Whether raw ids are integers, not strings."""
        return self.raw_ids.dtype == np.int64

    def accepts(self, ids: pa.Array) -> bool:
        """Whether ids (from `arrow_ids`) are of the type held here; nulls alone always are."""
        return self._index.accepts(ids)

    def find(self, raw: Any) -> Rows:
        """Rows of raw ids [N] int64, -1 for ids (or nulls) that are not here.

        raw: list, numpy, pandas or Arrow, with None for a null. Raises ValueError for ids of the other type.
        """
        ids = arrow_ids(raw, f"vocabulary {self.name!r}")
        entries = self._index.find(ids)
        if self.null_index is not None and ids.null_count:
            entries[ids.is_null().to_numpy(zero_copy_only=False)] = self.null_index
        return np.where(entries >= 0, entries + self.offset, -1)

    def rows(self, raw: Any) -> Rows:
        """`find`, with the policy for unseen ids: row 0, or ValueError naming the vocabulary, the place and the id."""
        rows = self.find(raw)
        unseen = np.flatnonzero(rows < 0)
        if len(unseen) and self.unseen == "refuse":
            place = int(unseen[0])
            value = arrow_ids(raw, self.name)[place].as_py()
            raise ValueError(
                f"vocabulary {self.name!r} has no id {value!r} (place {place}, {len(unseen)} such of {len(rows)}); "
                'unseen = "own_row" would give it row 0'
            )
        rows[unseen] = 0
        return rows

    def raw(self, rows: Any) -> Ids:
        """The raw ids of rows [N]; None for the row of unseen ids and for the null's. Int64 where no None is needed."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.num_rows):
            raise ValueError(
                f"vocabulary {self.name!r} has rows 0..{self.num_rows - 1}, got {rows.min()}..{rows.max()}"
            )
        entries = rows - self.offset
        special = entries == -1
        if self.null_index is not None:
            special |= entries == self.null_index
        found = self.raw_ids[np.maximum(entries, 0)] if len(self.raw_ids) else np.zeros(len(rows), dtype=object)
        if special.any():
            found = found.astype(object)
            found[special] = None
        return found

    def row_counts(self) -> Rows:
        """Train occurrences by row, [num_rows]; 0 for the row of unseen ids."""
        return np.concatenate([np.zeros(self.offset, dtype=np.int64), self.counts])

    def grown(self, raw_ids: Any, counts: Any) -> "Vocabulary":
        """With the counts of later data added, and new ids (a first null too) appended after all rows there are.

        raw_ids, counts: as in `from_counts`, of the later data alone. New ids take part from min_count occurrences in
        this later data on (what an id had before it got a row is not known); they are appended in ascending order, a
        null first. Ids that are here keep their rows. Raises ValueError for ids of the other type.
        """
        later = Vocabulary.from_counts(self.name, raw_ids, counts, unseen="own_row", min_count=0)
        entries = self.find(_arrow(later)) - self.offset
        known = entries >= 0
        totals = self.counts.copy()
        totals[entries[known]] += later.counts[known]
        new = ~known & (later.counts >= self.min_count)
        null_index = self.null_index
        if later.null_index is not None and new[later.null_index]:
            null_index = len(self.raw_ids) + int(new[: later.null_index].sum())
        return Vocabulary(
            name=self.name,
            raw_ids=np.concatenate([self.raw_ids, later.raw_ids[new]]) if new.any() else self.raw_ids,
            counts=np.concatenate([totals, later.counts[new]]),
            unseen=self.unseen,
            min_count=self.min_count,
            null_index=null_index,
        )

    def check_extends(self, older: "Vocabulary") -> None:
        """Raise ValueError unless this is `older` or grown from it: every row of `older` stands for the same id here.

        It names the vocabulary and the policy or the first row that differs. Counts may be any.
        """
        what = f"vocabulary {self.name!r} does not extend the older one"
        for policy in ("name", "unseen", "min_count"):
            mine, theirs = getattr(self, policy), getattr(older, policy)
            if mine != theirs:
                raise ValueError(f"{what}: {policy} is {mine!r}, was {theirs!r}")
        if len(self.raw_ids) < len(older.raw_ids):
            raise ValueError(f"{what}: it has {self.num_rows} rows, the older {older.num_rows}")
        differing = np.flatnonzero(self._differs(older))
        if len(differing):
            row = int(differing[0]) + self.offset
            mine, theirs = self.raw([row]).tolist()[0], older.raw([row]).tolist()[0]
            raise ValueError(f"{what}: row {row} is {mine!r}, was {theirs!r}")

    def _differs(self, older: "Vocabulary") -> NDArray[np.bool_]:
        """Whether each entry of an older one stands for another id here; a null's raw value says nothing."""
        differs: NDArray[np.bool_] = np.asarray(self.raw_ids[: len(older.raw_ids)] != older.raw_ids)
        nulls = [place for place in (self.null_index, older.null_index) if place is not None and place < len(differs)]
        differs[nulls] = self.null_index != older.null_index
        return differs

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of all that it holds, hex: name, policies, ids in row order, counts."""
        digest = sha256(json.dumps(self._policies(), sort_keys=True).encode())
        digest.update(id_values(self.raw_ids, self.null_index))
        digest.update(self.counts.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: Path | str) -> None:
        """One Parquet file, columns raw_id (null for the null's entry) and count in row order, policies as metadata."""
        metadata = {_METADATA: json.dumps(self._policies() | {"content_hash": self.content_hash}).encode()}
        table = pa.table({"raw_id": _arrow(self), "count": self.counts}).replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(path, sink.getvalue().to_pybytes())

    @staticmethod
    def load(path: Path | str) -> "Vocabulary":
        """The inverse of `save`. Raises ValueError naming the path if the file is not what was saved."""
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{path} is no readable Parquet file: {error}") from None
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        if _METADATA not in metadata:
            raise ValueError(f"{path} is not a vocabulary: its Parquet metadata lacks {_METADATA.decode()!r}")
        policies = json.loads(metadata[_METADATA])
        expected = policies.pop("content_hash")
        ids = table["raw_id"].combine_chunks()
        vocabulary = Vocabulary(**policies, raw_ids=_numpy(ids), counts=table["count"].to_numpy().copy())
        if vocabulary.content_hash != expected:
            raise ValueError(f"{path} is damaged: content hash {vocabulary.content_hash}, recorded {expected}")
        return vocabulary

    def _policies(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unseen": self.unseen,
            "min_count": self.min_count,
            "null_index": self.null_index,
        }

    @cached_property
    def _index(self) -> IdIndex:
        entries = np.arange(len(self.raw_ids))
        if self.null_index is not None:
            entries = np.delete(entries, self.null_index)
        return IdIndex(self.raw_ids[entries], entries, f"vocabulary {self.name!r}")


def _arrow(vocabulary: Vocabulary) -> pa.Array:
    """Its raw ids as Arrow, null at the null's entry."""
    mask = np.zeros(len(vocabulary.raw_ids), dtype=bool)
    if vocabulary.null_index is not None:
        mask[vocabulary.null_index] = True
    kind = pa.int64() if vocabulary.holds_integers else pa.large_string()
    return pa.array(vocabulary.raw_ids, type=kind, mask=mask)


def _numpy(ids: pa.Array) -> Ids:
    if pa.types.is_int64(ids.type):
        return ids.fill_null(0).to_numpy(zero_copy_only=False).copy()  # type: ignore[no-any-return]
    return ids.to_numpy(zero_copy_only=False).astype(object)  # type: ignore[no-any-return]

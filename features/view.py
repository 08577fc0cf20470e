"""What is read from prepared data: `Prepared` opens a folder, `View` shows some of its splits. `prepared` makes it.

    <name>-<12 hex>/          named by the content hash of config, schema and raw files; immutable
      manifest.json           written last: counts, what the content depends on, SHA-256 of every other file
      encoder/                schema, vocabularies, statistics
      users/ items/           entity tables (where the schema has users, items)
      histories/              each user's events once (for sequences, and for retrieval)
      examples/<split>/       Parquet
      quarantine/             bad rows, where they were set aside

Shapes: B users or items asked for, U users with truth.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from features.batch import Batch
from features.encoder import Encoder
from features.entities import EntityTable
from features.histories import SPLITS, Histories
from features.loader import Loader, RowSource
from features.spec import Entity, FeatureSchema
from features.storage import sha256_file

FORMAT = 1
MANIFEST = "manifest.json"


class Prepared:
    """A prepared folder. Its parts are loaded when they are first used; histories and examples are never held whole."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @staticmethod
    def open(path: Path | str, *, verify: bool = True) -> "Prepared":
        """Open a folder made by `prepare`; with `verify`, the checksum of every file is checked first.

        Raises ValueError naming the folder that is not one, or is not whole, or the file that differs.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise ValueError(f"{path} is no prepared data: it has no {MANIFEST}")
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path / MANIFEST} is damaged ({error}); remove {path} and prepare it again") from None
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{path}: prepared data of format {manifest.get('format')!r}, this version reads {FORMAT}")
        for name, expected in manifest["files"].items() if verify else ():
            file = path / name
            if not file.is_file() or sha256_file(file) != expected:
                state = "damaged" if file.is_file() else "missing"
                raise ValueError(f"{file} is {state}; remove {path} and prepare it again")
        return Prepared(path, manifest)

    @property
    def content_hash(self) -> str:
        """What the content follows from: config, schema, raw files and format version; SHA-256, hex."""
        return str(self.manifest["content_hash"])

    @property
    def counts(self) -> dict[str, int]:
        """Rows read, bad and dropped, events kept, examples of each split, users, items."""
        return dict(self.manifest["counts"])

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have examples, in order."""
        return tuple(split for split in SPLITS if split in self.manifest["splits"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looked like leakage when the data were prepared, a sentence each (see `leakage`)."""
        return tuple(self.manifest.get("warnings", ()))

    @property
    def negative_rate(self) -> float:
        """The share of negative train examples that were kept; 1 where none were left out (see `DownsampleConfig`)."""
        return float(self.manifest.get("negative_rate", 1.0))

    @cached_property
    def encoder(self) -> Encoder:
        """Schema, vocabularies and statistics of the train split."""
        return Encoder.load(self.path / "encoder")

    @property
    def schema(self) -> FeatureSchema:
        """The features."""
        return self.encoder.schema

    @cached_property
    def users(self) -> EntityTable | None:
        """All users of the log and of the table of users; None where the schema has none."""
        return EntityTable.load(self.path / "users") if (self.path / "users").exists() else None

    @cached_property
    def items(self) -> EntityTable | None:
        """All items of the log and of the table of items; None where the schema has none."""
        return EntityTable.load(self.path / "items") if (self.path / "items").exists() else None

    @cached_property
    def histories(self) -> Histories | None:
        """The users' events, mapped; None where neither sequences nor retrieval need them."""
        return Histories.open(self.path / "histories") if (self.path / "histories").exists() else None

    def view(self, *splits: str) -> "View":
        """The examples of one or several splits. Raises ValueError naming a split that is not there."""
        for split in splits:
            if split not in self.splits:
                raise ValueError(f"{self.path} has no split {split!r}, it has {', '.join(self.splits)}")
        if not splits:
            raise ValueError(f"name at least one split of {', '.join(self.splits)}")
        return View(self, tuple(split for split in SPLITS if split in splits))

    def files(self, split: str) -> list[Path]:
        """The example files of a split, in order."""
        return sorted((self.path / "examples" / split).glob("part-*.parquet"))

    def labels(self, split: str, label: str) -> Iterator[NDArray[np.float32]]:
        """A label of a split's rows, some at a time, in order."""
        for file in self.files(split):
            for rows in pq.ParquetFile(file).iter_batches(columns=[f"label:{label}"]):
                yield rows.column(0).to_numpy()


class View:
    """The examples of some splits, and the catalogue. Users and items are named by their positions in it."""

    def __init__(self, prepared: Prepared, splits: tuple[str, ...]) -> None:
        self.prepared, self.splits = prepared, splits

    @property
    def num_rows(self) -> int:
        """Examples."""
        return sum(self.prepared.manifest["splits"][split] for split in self.splits)

    @property
    def num_users(self) -> int:
        """Users of the catalogue."""
        return len(self._entities("user"))

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self._entities("item"))

    def loader(self, batch_size: int, *, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1) -> Loader:
        """Batches of these examples.

        Histories that are sets show train examples the other events of these splits; examples of a view without train
        see the splits before theirs. Ordered histories are cut at each example's time.
        """
        prepared = self.prepared
        source = RowSource(
            files=[file for split in self.splits for file in prepared.files(split)],
            schema=prepared.schema,
            users=prepared.users,
            items=prepared.items,
            histories=prepared.histories if prepared.schema.sequences else None,
            ends=self._ends_for_examples(),
        )
        return Loader(source, batch_size, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)

    def interactions(self) -> csr_matrix:
        """Who has what: binary float32 [users, items] of the positive examples (the first label above 0, if any)."""
        shape = (self.num_users, self.num_items)
        users, items = self._positive_pairs()
        matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    def truth(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """What another split adds: users [U] that have some, offsets [U + 1], items, ascending each.

        Positive examples of that split; a pair that stands in this view too is known already and left out.
        """
        matrix = self.prepared.view(split).interactions()
        matrix = csr_matrix(matrix - matrix.multiply(self.interactions()))
        matrix.eliminate_zeros()
        matrix.sort_indices()
        users = np.flatnonzero(np.diff(matrix.indptr))
        offsets = np.append(matrix.indptr[users], matrix.nnz).astype(np.int64)
        return torch.from_numpy(users), torch.from_numpy(offsets), torch.from_numpy(matrix.indices.astype(np.int64))

    def user_batch(self, users: Tensor) -> Batch:
        """Features and histories of users [B], as known at the end of these splits, which is also when ages count to.

        Raises ValueError where no end separates these splits from the others (see `Histories.ends`).
        """
        columns = dict(self._entities("user").gather(users).features)
        schema, histories = self.prepared.schema, self.prepared.histories
        if histories is not None and schema.sequences:
            end = np.full(len(users), -1)
            now = np.full(len(users), self._end_time)
            for group in schema.sequences:
                columns |= histories.cut(group, users.numpy(), end, self._entities("item"), self._ends, now)
        return Batch(features=columns)

    def item_batch(self, items: Tensor) -> Batch:
        """Features of items [B]."""
        return self._entities("item").gather(items)

    def _entities(self, entity: Entity) -> EntityTable:
        found = self.prepared.users if entity == "user" else self.prepared.items
        if found is None:
            raise ValueError(f"schema {self.prepared.schema.name!r} names no `{entity}` feature")
        return found

    @cached_property
    def _ends(self) -> NDArray[Any]:
        assert self.prepared.histories is not None
        return self.prepared.histories.ends(self.splits)

    @cached_property
    def _end_time(self) -> int:
        assert self.prepared.histories is not None
        return self.prepared.histories.latest(self._ends)

    def _ends_for_examples(self) -> NDArray[Any] | None:
        """What an example of these splits may see of a set; None where the example's position says it."""
        histories = self.prepared.histories
        if histories is None or histories.ordered:
            return None
        return self._ends if "train" in self.splits else histories.ends(SPLITS[: SPLITS.index(self.splits[0])])

    def _positive_pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        label = [f"label:{spec.name}" for spec in self.prepared.schema.labels[:1]]
        tables = [pq.read_table(file, columns=["user", "item", *label]) for file in self._files()]
        table = pa.concat_tables(tables)
        users, items = table["user"].to_numpy(), table["item"].to_numpy()
        kept = (users >= 0) & (items >= 0)
        for name in label:
            kept &= table[name].to_numpy() > 0
        return users[kept], items[kept]

    def _files(self) -> list[Path]:
        return [file for split in self.splits for file in self.prepared.files(split)]

"""The components that features are made of: schema and vocabularies, items, users with what they have and did.

Shapes: U users, n items, E interactions.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from scipy.sparse import csr_matrix
from torch import Tensor

from features import storage
from features.encoder import Encoder
from features.entities import EntityTable
from features.histories import Histories
from features.history_files import EventChunk
from features.raw_ids import id_values
from recsys.bundle import Bundle, BundleError, BundleStore
from recsys.models.view import DataView

PartName = Literal["retriever", "ranker"]
Roles = dict[str, str]
USERS_AT_ONCE = 1 << 16


class ExportData(Protocol):
    """The data that a model was trained on; `features.prepared.Prepared` is such."""

    @property
    def encoder(self) -> Encoder:
        """Schema, vocabularies, statistics."""

    @property
    def users(self) -> EntityTable | None:
        """All users, if the schema names them."""

    @property
    def items(self) -> EntityTable | None:
        """All items, if the schema names them."""

    @property
    def histories(self) -> Histories | None:
        """What users did, if it is kept."""


class ExportView(DataView, Protocol):
    """What is known at an export; `features.prepared.View` is such."""

    @property
    def prepared(self) -> ExportData:
        """The data."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are known."""


@dataclass(frozen=True, kw_only=True)
class Users:
    """The users of the catalogue, what each has, and their histories (None when the schema has no sequences).

    offsets [U + 1], items [E]: the positions of user u's items are items[offsets[u]:offsets[u + 1]], rising.
    """

    table: EntityTable
    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    histories: Histories | None

    def seen(self, user: int) -> NDArray[np.int64]:
        """The items of the user at this position, none of an unknown one (-1)."""
        if user < 0:
            return self.items[:0]
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True, kw_only=True)
class Entities:
    """What the features of a part are made of; a dataset may have no table of users or of items."""

    encoder: Encoder
    users: Users | None
    items: EntityTable | None


def export_entities(store: BundleStore, part: PartName, view: ExportView) -> Roles:
    """Write schema, items and users of a part; returns role -> component id. A table that is not there is left out."""
    prepared = view.prepared
    roles = {f"{part}.schema": store.add_component("encoder", prepared.encoder.save)}
    if prepared.items is not None:
        items = prepared.items

        def write_items(folder: Path) -> None:
            items.save(folder / "table")
            _write_origin(folder, prepared)

        roles[f"{part}.items"] = store.add_component("items", write_items)
    if prepared.users is not None:
        roles[f"{part}.users"] = store.add_component("users", lambda folder: _write_users(folder, view))
    return roles


def _write_users(folder: Path, view: ExportView) -> None:
    prepared = view.prepared
    assert prepared.users is not None
    prepared.users.save(folder / "table")
    _write_origin(folder, prepared)
    seen = csr_matrix((len(prepared.users), 0)) if prepared.items is None else csr_matrix(view.interactions())
    seen.sort_indices()
    tensors = {"offsets": seen.indptr.astype(np.int64), "items": seen.indices.astype(np.int64)}
    data = save({name: torch.from_numpy(values) for name, values in tensors.items()})
    storage.write_bytes(folder / "seen.safetensors", data)
    if prepared.histories is not None and prepared.encoder.schema.sequences:
        _write_histories(folder / "histories", prepared.histories, view.splits)


def _write_histories(path: Path, histories: Histories, splits: Sequence[str]) -> None:
    """The events of these splits alone: a bundle holds nothing that was not known at its export."""
    chunks = _events_of(histories, histories.ends(splits))
    Histories.build(
        path,
        chunks,
        num_users=histories.num_users,
        ordered=histories.ordered,
        ticks_per_second=histories.ticks_per_second,
    )


def _events_of(histories: Histories, ends: NDArray[np.int64]) -> Iterator[EventChunk]:
    for start in range(0, histories.num_users, USERS_AT_ONCE):
        users = np.arange(start, min(start + USERS_AT_ONCE, histories.num_users))
        events, offsets = histories.slice(users, np.full(len(users), -1), histories.num_events, ends)
        yield EventChunk(
            users=np.repeat(users, np.diff(offsets)),
            items=histories.column("items", events),
            splits=histories.column("splits", events),
            timestamps=histories.column("timestamps", events) if histories.ordered else None,
            columns={name: histories.column(name, events) for name in histories.columns},
        )


def _write_origin(folder: Path, prepared: ExportData) -> None:
    """What an entity table was made with."""
    catalogue = None if prepared.items is None else catalogue_hash(prepared.items)
    storage.write_json(folder / "origin.json", {"encoder": prepared.encoder.content_hash, "catalogue": catalogue})


def catalogue_hash(items: EntityTable) -> str:
    """SHA-256 (hex) of the raw ids in the order of positions: what gives an item position its meaning."""
    return sha256(id_values(items.raw_ids, None)).hexdigest()


def load_entities(bundle: Bundle, part: PartName) -> Entities:
    """What features of a part are made of. Raises BundleError when tables were made with another schema or items."""
    encoder = Encoder.load(bundle.path(f"{part}.schema"))
    items, users = None, None
    if f"{part}.items" in bundle.roles:
        folder = bundle.path(f"{part}.items")
        items = EntityTable.load(folder / "table")
        _check_origin(bundle, f"{part}.items", encoder, items)
    if f"{part}.users" in bundle.roles:
        users = _load_users(bundle.path(f"{part}.users"))
        _check_origin(bundle, f"{part}.users", encoder, items)
    return Entities(encoder=encoder, users=users, items=items)


def _load_users(folder: Path) -> Users:
    seen = read_tensors(folder / "seen.safetensors")
    stored = folder / "histories"
    return Users(
        table=EntityTable.load(folder / "table"),
        offsets=seen["offsets"].numpy(),
        items=seen["items"].numpy(),
        histories=Histories.open(stored) if stored.exists() else None,
    )


def _check_origin(bundle: Bundle, role: str, encoder: Encoder, items: EntityTable | None) -> None:
    origin = json.loads((bundle.path(role) / "origin.json").read_text())
    catalogue = None if items is None else catalogue_hash(items)
    if origin != {"encoder": encoder.content_hash, "catalogue": catalogue}:
        raise BundleError(f"bundle {bundle.id[:12]}: {role!r} was made with another schema or other items")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped, not read."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

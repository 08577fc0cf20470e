"""What each component of a bundle holds: written from a model and the data it was trained on, and read back.

    role                kind       holds
    retriever, ranker   same       model.json (sections of the config, the encoder's hash), weights.safetensors
    <part>.schema       encoder    the encoder: schema, statistics, vocabularies
    <part>.items        items      the item table: ids, encoded features, raw attributes
    <part>.users        users      the user table, the items that each user has, the histories as of the export
    index               index      the item vectors of a retriever that has vectors
    fallback            fallback   a score for each item, to answer with when the model cannot

The schema, items and users of a retriever and a ranker over the same prepared data are the same components, stored
once. What must fit together says so: index, fallback and closed-form models name the catalogue, an index the weights
(tokens, which the bundle store checks); tables and models name their encoder, checked here.

Not here: verifying bytes and choosing bundles (`bundle.py`), answering requests (`serving`). Nothing read here runs
code of the bundle's, and classes of the user's are imported only where their package is allowed.

Shapes: U users, n items, E interactions, D dimension of vectors.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from features.entities import EntityTable
from features.prepared import Prepared, View
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from scipy.sparse import csr_matrix
from torch import Tensor

from features import storage
from features.encoder import Encoder
from features.histories import EventChunk, Histories
from features.raw_ids import id_values
from recsys.bundle import Bundle, BundleError, BundleStore
from recsys.compression import make_collection
from recsys.config import ModelConfig, TablesConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.models import make_model
from recsys.models.interface import ClosedForm, Ranker, Retriever
from recsys.retrieval import ExactIndex, Index, load_index

PartName = Literal["retriever", "ranker"]
Roles = dict[str, str]
USERS_AT_ONCE = 1 << 16


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


@dataclass(frozen=True, kw_only=True)
class RetrieverPart:
    """A retriever and all that it needs. name: of the model in the config. index: None for a closed-form model.

    fallback [n] float32: the score of each item when the model cannot answer.
    """

    name: str
    model: Retriever | ClosedForm
    entities: Entities
    index: Index | None
    fallback: Tensor

    @property
    def items(self) -> EntityTable:
        """The catalogue."""
        assert self.entities.items is not None
        return self.entities.items

    def seen(self, user: int) -> NDArray[np.int64]:
        """The items that the user at this position has."""
        return np.zeros(0, dtype=np.int64) if self.entities.users is None else self.entities.users.seen(user)


@dataclass(frozen=True, kw_only=True)
class RankerPart:
    """A ranker and all that it needs."""

    name: str
    model: Ranker
    entities: Entities


# --- writing ---


def export_retriever(
    store: BundleStore,
    *,
    model: Retriever | ClosedForm,
    model_section: ModelConfig,
    tables_section: TablesConfig,
    view: View,
) -> Roles:
    """Write the components of a retriever; returns role -> component id, for `BundleStore.publish`.

    view: what is known at the export; it decides the histories, the items that count as seen, and the fallback.
    Raises ValueError when the data has no users or no items.
    """
    prepared = view.prepared
    if prepared.items is None or prepared.users is None:
        raise ValueError(f"a retriever is exported with its users and items; {prepared.path} has no table of them")
    roles = _export_entities(store, "retriever", view)
    catalogue = f"catalogue:{catalogue_hash(prepared.items)}"
    weights = _weights(model)
    written = _Model(model_section, tables_section, prepared.encoder.content_hash, weights)
    if isinstance(model, ClosedForm):
        return roles | {
            "retriever": store.add_component("retriever", written.save, token=catalogue),
            "fallback": _export_fallback(store, view, catalogue),
        }
    vectors = f"vectors:{written.content_hash}"
    index = ExactIndex(model.item_matrix(view), num_positions=len(prepared.items))
    return roles | {
        "retriever": store.add_component("retriever", written.save, token=vectors),
        "index": store.add_component("index", index.save, token=f"{catalogue} {vectors}"),
        "fallback": _export_fallback(store, view, catalogue),
    }


def export_ranker(
    store: BundleStore, *, model: Ranker, model_section: ModelConfig, tables_section: TablesConfig, view: View
) -> Roles:
    """Write the components of a ranker; returns role -> component id. view: what is known at the export."""
    written = _Model(model_section, tables_section, view.prepared.encoder.content_hash, _weights(model))
    return _export_entities(store, "ranker", view) | {"ranker": store.add_component("ranker", written.save)}


@dataclass(frozen=True)
class _Model:
    """What a model component holds."""

    model: ModelConfig
    tables: TablesConfig
    encoder: str
    weights: Mapping[str, Tensor]

    @property
    def record(self) -> dict[str, Any]:
        """The content of model.json. The backend and its sharding are those of training; served tables are plain."""
        tables = {name: section.model_dump(mode="json") for name, section in self.tables.specs.items()}
        return {"model": self.model.model_dump(mode="json"), "tables": tables, "encoder": self.encoder}

    @property
    def content_hash(self) -> str:
        """Changes with the sections, the encoder and every weight."""
        digest = sha256(json.dumps(self.record, sort_keys=True).encode())
        digest.update(save(dict(self.weights)))
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write model.json and weights.safetensors."""
        storage.write_json(folder / "model.json", self.record)
        storage.write_bytes(folder / "weights.safetensors", save(dict(self.weights)))


def _weights(model: Retriever | Ranker | ClosedForm) -> dict[str, Tensor]:
    """Everything that the model serves with, by name: tables in their serving form."""
    if isinstance(model, ClosedForm):
        return {name: tensor.contiguous() for name, tensor in model.tensors().items()}
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("collection.")}
    tables = model.collection.freeze().state_dict()
    state = own | {f"collection.{name}": value for name, value in tables.items()}
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _export_entities(store: BundleStore, part: PartName, view: View) -> Roles:
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


def _write_users(folder: Path, view: View) -> None:
    prepared = view.prepared
    assert prepared.users is not None
    prepared.users.save(folder / "table")
    _write_origin(folder, prepared)
    seen = csr_matrix(view.interactions())
    seen.sort_indices()
    tensors = {"offsets": seen.indptr.astype(np.int64), "items": seen.indices.astype(np.int64)}
    data = save({name: torch.from_numpy(values) for name, values in tensors.items()})
    storage.write_bytes(folder / "seen.safetensors", data)
    if prepared.histories is not None and prepared.schema.sequences:
        _write_histories(folder / "histories", prepared.histories, view.splits)


def _write_histories(path: Path, histories: Histories, splits: Sequence[str]) -> None:
    """The events of these splits alone: a bundle holds nothing that was not known at its export."""
    chunks = _events_of(histories, histories.ends(splits))
    Histories.build(path, chunks, num_users=histories.num_users, ordered=histories.ordered)


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


def _export_fallback(store: BundleStore, view: View, token: str) -> str:
    """Popularity: how many users have each item."""
    counts = np.asarray(view.interactions().sum(axis=0), dtype=np.float32).ravel()
    data = save({"scores": torch.from_numpy(counts)})
    return store.add_component(
        "fallback", lambda folder: storage.write_bytes(folder / "fallback.safetensors", data), token=token
    )


def _write_origin(folder: Path, prepared: Prepared) -> None:
    """What an entity table was made with."""
    catalogue = None if prepared.items is None else catalogue_hash(prepared.items)
    storage.write_json(folder / "origin.json", {"encoder": prepared.encoder.content_hash, "catalogue": catalogue})


def catalogue_hash(items: EntityTable) -> str:
    """SHA-256 (hex) of the raw ids in the order of positions: what gives an item position its meaning."""
    return sha256(id_values(items.raw_ids, None)).hexdigest()


# --- reading ---


def load_retriever(bundle: Bundle, allowed: Sequence[str] = ()) -> RetrieverPart:
    """The retriever of a verified bundle. allowed: packages of the user's whose classes may be imported.

    Raises BundleError when parts were not made for each other, ConfigError for a class that is not allowed.
    """
    entities = _load_entities(bundle, "retriever")
    if entities.items is None or entities.users is None:
        raise BundleError(f"bundle {bundle.id[:12]}: a retriever needs 'retriever.items' and 'retriever.users'")
    for role in ("retriever", "index", "fallback"):
        if role in bundle.roles:
            _check_catalogue(bundle, role, entities.items)
    name, model = _load_model(bundle, "retriever", entities.encoder, allowed)
    if not isinstance(model, Retriever | ClosedForm):
        raise BundleError(f"bundle {bundle.id[:12]}: model {name!r} is no retriever")
    index = load_index(bundle.path("index")) if isinstance(model, Retriever) else None
    fallback = _tensors(bundle.path("fallback") / "fallback.safetensors")["scores"]
    return RetrieverPart(name=name, model=model, entities=entities, index=index, fallback=fallback)


def load_ranker(bundle: Bundle, allowed: Sequence[str] = ()) -> RankerPart:
    """The ranker of a verified bundle; see `load_retriever`."""
    entities = _load_entities(bundle, "ranker")
    name, model = _load_model(bundle, "ranker", entities.encoder, allowed)
    if not isinstance(model, Ranker):
        raise BundleError(f"bundle {bundle.id[:12]}: model {name!r} is no ranker")
    return RankerPart(name=name, model=model, entities=entities)


def _load_model(
    bundle: Bundle, part: PartName, encoder: Encoder, allowed: Sequence[str]
) -> tuple[str, Retriever | Ranker | ClosedForm]:
    folder = bundle.path(part)
    record = json.loads((folder / "model.json").read_text())
    if record["encoder"] != encoder.content_hash:
        raise BundleError(f"bundle {bundle.id[:12]}: {part!r} was trained with another encoder than '{part}.schema'")
    section = ModelConfig.model_validate(record["model"])
    weights = _tensors(folder / "weights.safetensors")
    tables = TablesConfig.model_validate({"backend": "plain", "specs": record["tables"]})
    model = make_model(section, encoder, _collection(tables, encoder, allowed), allowed)
    if isinstance(model, ClosedForm):
        model.load_tensors(weights)
        return section.name, model
    model.load_state_dict(weights)
    return section.name, model.eval().requires_grad_(False)


def _collection(tables: TablesConfig, encoder: Encoder, allowed: Sequence[str]) -> EmbeddingCollection | None:
    return make_collection(tables, encoder, allowed=allowed) if tables.specs else None


def _load_entities(bundle: Bundle, part: PartName) -> Entities:
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
    seen = _tensors(folder / "seen.safetensors")
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


def _check_catalogue(bundle: Bundle, role: str, items: EntityTable) -> None:
    named = [part for part in bundle.token(role).split() if part.startswith("catalogue:")]
    if named and named != [f"catalogue:{catalogue_hash(items)}"]:
        raise BundleError(f"bundle {bundle.id[:12]}: {role!r} was made for other items than 'retriever.items'")


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped, not read."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

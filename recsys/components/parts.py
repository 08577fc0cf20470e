"""The parts of a bundle that answer: a retriever or a ranker with all that it needs.

Shapes: n items of the catalogue, D dimension of vectors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save, save_file
from torch import Tensor

from features import storage
from features.encoder import Encoder
from features.entities import EntityTable
from recsys.bundle import Bundle, BundleError, BundleStore
from recsys.components.calibrator import ROLE, export_calibrator, load_calibrator
from recsys.components.entities import (
    Entities,
    ExportView,
    PartName,
    Roles,
    catalogue_hash,
    export_entities,
    load_entities,
    read_tensors,
)
from recsys.config import ModelConfig
from recsys.embedding.frozen import describe_tables, rebuild_tables
from recsys.evaluation.calibrators import Calibrator
from recsys.models import make_model, table_encoder
from recsys.models.interface import ClosedForm, Ranker, Retriever
from recsys.retrieval import ExactIndex, Index, load_index

COLLECTION = "collection."


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
    """A ranker and all that it needs. calibrator: what its logits are mended by, None for nothing."""

    name: str
    model: Ranker
    entities: Entities
    calibrator: Calibrator | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [B] or [B, T] -> probabilities [B, T] float32, calibrated where there is a calibrator."""
        columns = logits.reshape(len(logits), -1)
        if self.calibrator is None:
            return columns.sigmoid()
        return self.calibrator.probabilities(columns, self.model.labels)


def export_retriever(
    store: BundleStore,
    *,
    model: Retriever | ClosedForm,
    model_section: ModelConfig,
    view: ExportView,
) -> Roles:
    """Write the components of a retriever; returns role -> component id, for `BundleStore.publish`.

    view: what is known at the export; it decides the histories, the items that count as seen, and the fallback.
    Raises ValueError when the data has no users or no items.
    """
    prepared = view.prepared
    if prepared.items is None or prepared.users is None:
        name = prepared.encoder.schema.name
        raise ValueError(f"a retriever is exported with its users and items; schema {name!r} has no table of them")
    roles = export_entities(store, "retriever", view)
    catalogue = f"catalogue:{catalogue_hash(prepared.items)}"
    written = _Model.of(model, model_section, prepared.encoder.content_hash)
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
    store: BundleStore,
    *,
    model: Ranker,
    model_section: ModelConfig,
    view: ExportView,
    calibrator: Calibrator | None = None,
) -> Roles:
    """Write the components of a ranker; returns role -> component id. view: what is known at the export."""
    written = _Model.of(model, model_section, view.prepared.encoder.content_hash)
    roles = export_entities(store, "ranker", view) | {"ranker": store.add_component("ranker", written.save)}
    return roles if calibrator is None else roles | {ROLE: export_calibrator(store, calibrator, roles["ranker"])}


@dataclass(frozen=True)
class _Model:
    """What a model component holds."""

    model: ModelConfig
    tables: Mapping[str, Any] | None
    encoder: str
    weights: Mapping[str, Tensor]

    @staticmethod
    def of(model: Retriever | Ranker | ClosedForm, section: ModelConfig, encoder: str) -> "_Model":
        """Of a model: its tables in their serving form, described by themselves, whatever config they came from."""
        if isinstance(model, ClosedForm):
            return _Model(section, None, encoder, _contiguous(model.tensors()))
        frozen = model.collection.freeze()
        own = {name: value for name, value in model.state_dict().items() if not name.startswith(COLLECTION)}
        tables = {COLLECTION + name: value for name, value in frozen.state_dict().items()}
        return _Model(section, describe_tables(frozen), encoder, _contiguous(own | tables))

    @property
    def record(self) -> dict[str, Any]:
        """The content of model.json."""
        return {"model": self.model.model_dump(mode="json"), "tables": self.tables, "encoder": self.encoder}

    @property
    def content_hash(self) -> str:
        """Changes with the sections, the encoder and every weight."""
        digest = sha256(json.dumps(self.record, sort_keys=True).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write model.json and weights.safetensors."""
        storage.write_json(folder / "model.json", self.record)
        save_file(dict(self.weights), folder / "weights.safetensors")


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _export_fallback(store: BundleStore, view: ExportView, token: str) -> str:
    """Popularity: how many users have each item."""
    counts = np.asarray(view.interactions().sum(axis=0), dtype=np.float32).ravel()
    data = save({"scores": torch.from_numpy(counts)})
    return store.add_component(
        "fallback", lambda folder: storage.write_bytes(folder / "fallback.safetensors", data), token=token
    )


def load_retriever(bundle: Bundle, allowed: Sequence[str] = ()) -> RetrieverPart:
    """The retriever of a verified bundle. allowed: packages of the user's whose classes may be imported.

    Raises BundleError when parts were not made for each other, ConfigError for a class that is not allowed.
    """
    entities = load_entities(bundle, "retriever")
    if entities.items is None or entities.users is None:
        raise BundleError(f"bundle {bundle.id[:12]}: a retriever needs 'retriever.items' and 'retriever.users'")
    for role in ("retriever", "index", "fallback"):
        if role in bundle.roles:
            _check_catalogue(bundle, role, entities.items)
    name, model = _load_model(bundle, "retriever", entities.encoder, allowed)
    if not isinstance(model, Retriever | ClosedForm):
        raise BundleError(f"bundle {bundle.id[:12]}: model {name!r} is no retriever")
    index = load_index(bundle.path("index")) if isinstance(model, Retriever) else None
    fallback = read_tensors(bundle.path("fallback") / "fallback.safetensors")["scores"]
    return RetrieverPart(name=name, model=model, entities=entities, index=index, fallback=fallback)


def load_ranker(bundle: Bundle, allowed: Sequence[str] = ()) -> RankerPart:
    """The ranker of a verified bundle; see `load_retriever`."""
    entities = load_entities(bundle, "ranker")
    name, model = _load_model(bundle, "ranker", entities.encoder, allowed)
    if not isinstance(model, Ranker):
        raise BundleError(f"bundle {bundle.id[:12]}: model {name!r} is no ranker")
    return RankerPart(name=name, model=model, entities=entities, calibrator=load_calibrator(bundle))


def _load_model(
    bundle: Bundle, part: PartName, encoder: Encoder, allowed: Sequence[str]
) -> tuple[str, Retriever | Ranker | ClosedForm]:
    folder = bundle.path(part)
    record = json.loads((folder / "model.json").read_text())
    if record["encoder"] != encoder.content_hash:
        raise BundleError(f"bundle {bundle.id[:12]}: {part!r} was trained with another encoder than '{part}.schema'")
    section = ModelConfig.model_validate(record["model"])
    weights = read_tensors(folder / "weights.safetensors")
    collection = None
    if record["tables"] is not None:
        own = {name.removeprefix(COLLECTION): value for name, value in weights.items() if name.startswith(COLLECTION)}
        collection = rebuild_tables(record["tables"], table_encoder(section, encoder, allowed).schema, own, allowed)
    model = make_model(section, encoder, collection, allowed)
    if isinstance(model, ClosedForm):
        model.load_tensors(weights)
        return section.name, model
    _load_dense(model, weights)
    return section.name, model.eval().requires_grad_(False)


def _load_dense(model: Retriever | Ranker, weights: Mapping[str, Tensor]) -> None:
    """Everything but the tables, which hold their weights already."""
    dense = {name: value for name, value in weights.items() if not name.startswith(COLLECTION)}
    missing, unknown = model.load_state_dict(dense, strict=False)
    missing = [name for name in missing if not name.startswith(COLLECTION)]
    if missing or unknown:
        raise BundleError(f"weights of a model do not fit its class: missing {missing}, unknown {unknown}")


def _check_catalogue(bundle: Bundle, role: str, items: EntityTable) -> None:
    named = [part for part in bundle.token(role).split() if part.startswith("catalogue:")]
    if named and named != [f"catalogue:{catalogue_hash(items)}"]:
        raise BundleError(f"bundle {bundle.id[:12]}: {role!r} was made for other items than 'retriever.items'")

"""Prepared data as it might be a day later: the same examples, but items that train had not seen have rows by now."""

import json
import shutil
from pathlib import Path

from features import storage
from features.prepared import Prepared
from features.view import MANIFEST


def grown_copy(prepared: Prepared, folder: Path) -> Prepared:
    """A copy whose item vocabulary has grown by every item of the catalogue, once each."""
    shutil.copytree(prepared.path, folder)
    assert prepared.items is not None
    ids = prepared.items.raw_ids
    encoder = prepared.encoder.grown({"item": (ids, [1] * len(ids))})
    assert encoder.vocabularies["item"].num_rows > prepared.encoder.vocabularies["item"].num_rows
    encoder.save(folder / "encoder")
    prepared.items.grown(encoder, None).save(folder / "items")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["content_hash"] = encoder.content_hash
    manifest["files"] = {name: storage.sha256_file(folder / name) for name in manifest["files"]}
    storage.write_json(folder / MANIFEST, manifest)
    return Prepared.open(folder)

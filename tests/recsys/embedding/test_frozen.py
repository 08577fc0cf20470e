"""The serving form described as JSON and rebuilt from it, without a copy; what does not fit is named."""

import json
from typing import Any

import pytest
import torch

from recsys.config import ConfigError
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.frozen import describe_tables, rebuild_tables
from tests.recsys.embedding.small_schema import collection_of, flat, small_batch


def frozen() -> tuple[EmbeddingCollection, dict[str, Any], dict[str, torch.Tensor]]:
    collection = collection_of("plain").freeze()
    record = json.loads(json.dumps(describe_tables(collection)))
    return collection, record, {name: tensor.clone() for name, tensor in collection.state_dict().items()}


def test_rebuilt_tables_give_the_same_vectors() -> None:
    collection, record, tensors = frozen()
    again = rebuild_tables(record, collection.schema, tensors)
    assert torch.equal(flat(again(small_batch(0))), flat(collection(small_batch(0))))
    assert describe_tables(again) == record


def test_rebuilt_tables_use_the_tensors_they_are_given() -> None:
    collection, record, tensors = frozen()
    again = rebuild_tables(record, collection.schema, tensors)
    assert all(
        again.backend.weights()[name].data_ptr() == tensors[f"stores.{name}"].data_ptr() for name in again.stores
    )


def test_tensors_that_do_not_fit_are_named() -> None:
    collection, record, tensors = frozen()
    with pytest.raises(ValueError, match="'stranger'"):
        rebuild_tables(record, collection.schema, tensors | {"stranger": torch.zeros(1)})
    for name, tensor in tensors.items():
        with pytest.raises(ValueError, match="served store" if name.startswith("stores.") else "size mismatch"):
            rebuild_tables(record, collection.schema, tensors | {name: tensor[1:]})
    del tensors["stores.shared"]
    with pytest.raises(ValueError, match=r"stores \['shared'\] are missing"):
        rebuild_tables(record, collection.schema, tensors)


@pytest.mark.parametrize(
    ("name", "says"), [("os:system", "not allowed"), ("recsys.embedding.dense:DenseTable", "is no table")]
)
def test_classes_that_are_no_tables_or_not_allowed_are_refused(name: str, says: str) -> None:
    collection, record, tensors = frozen()
    next(iter(record["tables"].values()))["class"] = name
    with pytest.raises((ConfigError, ValueError), match=says):
        rebuild_tables(record, collection.schema, tensors)

from typing import Any, get_args

import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from features.entities import EntityTable
from recsys.config import ModelConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.precision import Precision, row_bytes
from recsys.models import catalogue_keys, make_model
from recsys.models.catalogue_keys import CatalogueKeys
from recsys.models.interface import Ranker
from tests.recsys.models import aligned_world

POSITIONS = torch.tensor([11, 0, 3, 3])


def catalogue() -> EntityTable:
    """The world's twelve items, and one that no model has seen."""
    numbers = [*range(12), 99]
    raw = pa.table({"item": numbers, "category": ["abcd"[at % 4] for at in numbers], "price": [1.0] * 13})
    return EntityTable.build(aligned_world.SCHEMA, aligned_world.encoder(), "item", raw)


def twin(ids: Precision = "float32", category: str = "", **options: Any) -> Ranker:
    """TWIN over served tables at some precision."""
    specs = {"ids": DenseTable(embedding_dim=4, precision=ids), "actions": DenseTable(embedding_dim=3)}
    collection = EmbeddingCollection(aligned_world.encoder(), specs, backend="plain").freeze()
    torch.manual_seed(0)
    made = make_model(ModelConfig(name="twin", options=options), aligned_world.encoder(), collection)
    assert isinstance(made, Ranker)
    return made.eval()


@pytest.mark.parametrize("projections", [False, True])
def test_keys_are_those_of_a_history_of_these_items(projections: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = twin(projections=projections), catalogue()
    monkeypatch.setattr(catalogue_keys, "ITEMS_AT_ONCE", 5)
    kept = CatalogueKeys.of(model, items)
    assert list(kept) == ["past"]
    past = items.gather(POSITIONS)
    sources = {"history": "item", "history_category": "category"}
    expected = model.event_keys(catalogue_keys._events(past, sources))["past"].vectors
    assert_close(kept["past"].read(POSITIONS), expected, rtol=0, atol=0)
    assert kept["past"].read(POSITIONS[:0]).shape == (0, 8)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_keys_are_as_precise_as_their_tables(precision: Precision) -> None:
    exact, kept = (CatalogueKeys.of(twin(one), catalogue())["past"] for one in ("float32", precision))
    assert (kept.precision, kept.rows.nbytes) == (precision, 13 * row_bytes(8, precision))
    span = exact.rows.amax(1) - exact.rows.amin(1)
    step = {"float32": 0.0, "float16": 2**-11, "int8": 1 / 510, "int4": 1 / 30}[precision]
    off = (kept.read(torch.arange(13)) - exact.rows).abs().amax(1)
    assert bool((off <= 2.1 * step * span).all())  # of the table, and of the key made of it


def test_other_models_keep_nothing() -> None:
    assert CatalogueKeys.of(aligned_world.model("base"), catalogue()) == {}
    assert CatalogueKeys.of(aligned_world.model("dcn", features=("item",)), catalogue()) == {}

"""A ranker as a program gives the ranker's scores, for any number of rows, at every precision of its tables."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from features.batch import Batch
from recsys.components.program import COLUMNS, PROGRAM, save_program, tensors_of
from recsys.compression import make_collection
from recsys.config import ModelConfig, TablesConfig
from recsys.embedding.precision import PRECISIONS, Precision
from recsys.models import make_model
from recsys.models.interface import Ranker
from tests.serving.shop import NUM_USERS, Shop

RANKERS = ["dcn"]


def batch_of(shop: Shop, num_rows: int) -> Batch:
    """Every user beside some item, one with an empty history."""
    users = torch.arange(num_rows) % NUM_USERS
    items = shop.view.item_batch(users % 5)
    events = {"hour": users % 5, "device": users % 2}
    return Batch(features={**shop.view.user_batch(users).features, **items.features, **events})


def run_program(folder: Path, columns: dict[str, Tensor]) -> Tensor:
    program = torch.export.load(folder / PROGRAM)
    scores: Tensor = program.module()(columns)
    return scores


@pytest.mark.parametrize("name", RANKERS)
def test_program_equals_the_model_for_other_numbers_of_rows(shop: Shop, tmp_path: Path, name: str) -> None:
    model = shop.model(name)
    assert isinstance(model, Ranker)
    save_program(tmp_path, model, batch_of(shop, 5))
    assert (tmp_path / COLUMNS).exists()
    for num_rows in (2, 5, 17):
        batch = batch_of(shop, num_rows)
        expected = model.logits(batch).sigmoid()
        torch.testing.assert_close(run_program(tmp_path, tensors_of(batch, model)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_program_equals_the_model_at_every_precision(shop: Shop, tmp_path: Path, precision: Precision) -> None:
    section = ModelConfig(name="dcn")
    tables = TablesConfig.model_validate(
        {"backend": "plain", "ids": {"method": "dense", "embedding_dim": 7, "precision": precision}}
    )
    model = make_model(section, shop.data.encoder, make_collection(tables, shop.data.encoder).freeze())
    assert isinstance(model, Ranker)
    model.eval()
    save_program(tmp_path, model, batch_of(shop, 5))
    batch = batch_of(shop, 9)
    expected = model.logits(batch).sigmoid()
    torch.testing.assert_close(run_program(tmp_path, tensors_of(batch, model)), expected, atol=1e-5, rtol=0)


def test_program_needs_an_example_of_two_rows(shop: Shop, tmp_path: Path) -> None:
    model = shop.model("dcn")
    assert isinstance(model, Ranker)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        save_program(tmp_path, model, batch_of(shop, 1))

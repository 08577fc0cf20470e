import pytest
import torch

from features.spec import parse_schema
from recsys.compression import COMPRESSIONS, make_collection, make_specs, make_table_optimizer, table_class
from recsys.config import ConfigError, TableConfig, TablesConfig, TablesOptimizerConfig, parse_options
from recsys.embedding import SGD, Adagrad, Adam, DenseTable, RowWiseAdagrad, UnifiedTable

SCHEMA = parse_schema({"name": "s", "features": {"user": {"table": "ids"}, "item": {"table": "ids"}}}, where="here")
UNIFIED = {"method": "unified", "num_embeddings": 50, "chunk_dim": 4}


def tables(**settings: object) -> TablesConfig:
    return parse_options(TablesConfig, {"backend": "plain", "ids": UNIFIED} | settings, where="tables")


def test_table_methods_are_named() -> None:
    assert COMPRESSIONS["dense"] is DenseTable
    assert COMPRESSIONS["unified"] is UnifiedTable
    assert table_class("dense") is DenseTable
    assert table_class("recsys.embedding:UnifiedTable", allowed=["recsys"]) is UnifiedTable
    for method, says in (
        ("dens", "no table method 'dens'; there are dense, unified"),
        ("pathlib:Path", "'pathlib:Path' is no subclass of recsys.TableSpec"),
    ):
        with pytest.raises(ConfigError, match=says):
            table_class(method)
    with pytest.raises(ConfigError, match="code of package 'recsys', which is not allowed"):
        table_class("recsys.embedding:UnifiedTable", allowed=[])


def test_specs_are_validated_by_their_class() -> None:
    sections = {"ids": TableConfig.model_validate(UNIFIED)}
    assert make_specs(sections) == {"ids": UnifiedTable(num_embeddings=50, chunk_dim=4)}
    with pytest.raises(ConfigError, match=r"tables\.ids: chunk_dm: unknown key 'chunk_dm', did you mean 'chunk_dim'"):
        make_specs({"ids": TableConfig.model_validate(UNIFIED | {"chunk_dm": 3})})


def test_table_optimizers_have_the_settings_of_their_section() -> None:
    made = [
        make_table_optimizer(TablesOptimizerConfig(name=name, lr=0.5))
        for name in ("sgd", "adagrad", "rowwise_adagrad", "adam")
    ]
    assert made == [SGD(lr=0.5), Adagrad(lr=0.5), RowWiseAdagrad(lr=0.5), Adam(lr=0.5)]
    assert make_table_optimizer(TablesOptimizerConfig(name="adam", eps=0.25)) == Adam(lr=0.1, eps=0.25)
    with pytest.raises(ConfigError, match=r"optimizer\.tables \(sgd\): eps: unknown key 'eps'"):
        make_table_optimizer(TablesOptimizerConfig(name="sgd", eps=0.25))


def test_collection_is_what_the_sections_say() -> None:
    made = make_collection(tables(), SCHEMA, RowWiseAdagrad(lr=0.1), seed=3, max_row_norm=0.5)  # type: ignore[arg-type]
    again = make_collection(tables(), SCHEMA, seed=3)  # type: ignore[arg-type]
    other = make_collection(tables(), SCHEMA, seed=4)  # type: ignore[arg-type]
    assert (made.max_row_norm, again.max_row_norm) == (0.5, None)
    assert made.stores["ids"].num_embeddings == 50
    weights = [collection.backend.weights()["ids"] for collection in (made, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("settings", "optimizer", "says"),
    [
        ({"backend": "fused"}, Adam(lr=0.1), "backend 'fused' has no Adam"),
        ({"backend": "fused"}, None, "needs an optimizer"),
        ({"idz": UNIFIED}, None, "table 'idz' has no reader"),
    ],
)
def test_collection_that_cannot_be_made_is_refused(settings: dict[str, object], optimizer: Adam, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_collection(tables(**settings), SCHEMA, optimizer)  # type: ignore[arg-type]

"""Which cells a sweep has, and what their configs say."""

from typing import Any

import pytest

from features.spec import FeatureSchema
from recsys.compression import COMPRESSIONS, make_specs
from recsys.config import ConfigError, RunConfig, load_config
from recsys.embedding.precision import PRECISIONS
from recsys.sweep.plan import DENSE, VARIANTS, Cell, Grid, cell_config, check_budgets, has_budget, limit_of, shapes
from tests.recsys.small_project import SCHEMA, write_project


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config(write_project(tmp_path_factory.mktemp("project")) / "ctr.toml")


@pytest.fixture(scope="module")
def schema() -> FeatureSchema:
    return FeatureSchema.load(SCHEMA)


def grid(**options: Any) -> Grid:
    given: dict[str, Any] = {
        "methods": "all",
        "budgets": "50%,1%",
        "precisions": "float32",
        "seeds": 2,
        "first_seed": 7,
    }
    return Grid.parse(**(given | options))


def cell(method: str, budget: str = "10%", precision: Any = "float32", seed: int = 3) -> Cell:
    return Cell(method=method, budget=budget if has_budget(method) else "", precision=precision, seed=seed)


# --- the grid ---


def test_all_methods_are_swept_and_collisionless_rows_stand_beside() -> None:
    cells = grid().cells()
    assert {found.method for found in cells} == {*COMPRESSIONS, *VARIANTS}
    assert [found.precision for found in cells if found.method == DENSE and found.seed == 7] == list(PRECISIONS)
    assert len(set(cells)) == len(cells)


def test_methods_without_a_budget_are_one_cell_a_precision() -> None:
    for found in grid(precisions="float32,int4").cells():
        assert (found.budget == "") == (not has_budget(found.method) or found.method == DENSE)
    fixed = [found for found in grid().cells() if not found.budget and found.method != DENSE]
    assert len(fixed) == 2 * len({found.method for found in fixed})


def test_seeds_come_one_after_the_other() -> None:
    seeds = [found.seed for found in grid(seeds=3).cells()]
    assert seeds == sorted(seeds)
    assert set(seeds) == {7, 8, 9}


def test_cells_have_names_of_their_own() -> None:
    cells = grid(budgets="10%,1%,25 kB", precisions=",".join(PRECISIONS)).cells()
    names = [found.name for found in cells]
    assert len(set(names)) == len(names)
    assert not [name for name in names if set(name) & set("/\\% :")]
    assert cell("unified", "10%", "int4", 1).name == "unified-10pct-int4-seed1"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": "unifed"}, "there is no method 'unifed'; did you mean 'unified'?"),
        ({"methods": "hash/2"}, "method 'hash' has no chunks"),
        ({"methods": "unified/0"}, "after '/' stands a number of chunks"),
        ({"methods": "hash,,unified"}, "--methods 'hash,,unified'"),
        ({"methods": "nowhere.tables:Mine"}, "'nowhere.tables:Mine' cannot be imported"),
        ({"budgets": "10"}, "--budgets: budget '10' must be a positive number with one of %"),
        ({"budgets": "0%"}, "--budgets: budget '0%' must be a positive number"),
        ({"budgets": ""}, "--budgets ''"),
        ({"precisions": "int2"}, "--precisions: 'int2' is none of float32, float16, int8, int4"),
        ({"seeds": 0}, "--seeds is 0, at least 1 is needed"),
    ],
)
def test_grid_refuses_what_it_does_not_know(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        grid(**options)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


# --- configs ---


@pytest.mark.parametrize("method", [*COMPRESSIONS, *VARIANTS])
def test_every_method_gets_settings_that_it_takes(method: str, config: RunConfig, schema: FeatureSchema) -> None:
    made = cell_config(cell(method), config, schema)
    (spec,) = make_specs(made.tables.specs).values()
    assert made.seed == 3
    assert made.model_dump(exclude={"name", "seed", "tables"}) == config.model_dump(exclude={"name", "seed", "tables"})
    assert getattr(spec, "budget", "10%") == "10%"
    assert getattr(spec, "embedding_dim", 8) == 8  # two chunks of four


def test_unified_keeps_the_config_s_chunks_and_the_twin_is_not_multiplexed(
    config: RunConfig, schema: FeatureSchema
) -> None:
    one, twin = (
        cell_config(cell(name), config, schema).tables.specs["ids"].options for name in ("unified", "unified_twin")
    )
    assert {key: one[key] for key in ("chunks", "chunk_dim", "budget")} == {
        "chunks": 2,
        "chunk_dim": 4,
        "budget": "10%",
    }
    assert dict(twin) == dict(one) | {"multiplexed": False}
    assert "num_embeddings" not in one


def test_methods_take_the_chunks_that_are_asked_for(config: RunConfig, schema: FeatureSchema) -> None:
    names = ("unified/4", "unified_twin/1", "robe/4")
    four, twin, robe = (cell_config(cell(name), config, schema).tables.specs["ids"].options for name in names)
    assert (four["chunks"], four["chunk_dim"]) == (4, 2)
    assert (twin["chunks"], twin["chunk_dim"], twin["multiplexed"]) == (1, 8, False)
    assert (robe["num_chunks"], robe["embedding_dim"]) == (4, 8)
    assert cell("unified/4").name == "unified_in4-10pct-float32-seed3"
    with pytest.raises(ConfigError, match="vectors of 8 floats cannot be in 3 equal chunks"):
        cell_config(cell("unified/3"), config, schema)


@pytest.mark.parametrize(("width", "chunks"), [(30, 3), (16, 2), (7, 1)])
def test_chunks_of_a_config_without_are_the_most_that_divide(
    width: int, chunks: int, config: RunConfig, schema: FeatureSchema
) -> None:
    (shape,) = shapes(with_section(config, method="dense", embedding_dim=width), schema).values()
    assert (shape.chunks, shape.embedding_dim) == (chunks, width)


def test_initial_values_of_the_config_are_every_method_s(config: RunConfig, schema: FeatureSchema) -> None:
    init = {"kind": "normal", "std": 0.5}
    dense = with_section(config, method="dense", embedding_dim=8, init=init)
    for method in ("unified", "hash", DENSE):
        assert cell_config(cell(method), dense, schema).tables.specs["ids"].options["init"] == init


def test_shapes_need_a_table_of_one_width(config: RunConfig, schema: FeatureSchema) -> None:
    empty = config.model_copy(update={"tables": config.tables.model_copy(update={"specs": {}})})
    with pytest.raises(ConfigError, match=r"has no \[tables.NAME\] section: there is nothing to compress"):
        shapes(empty, schema)


def test_budgets_in_bytes_are_for_one_table(config: RunConfig) -> None:
    check_budgets(grid(budgets="25kB"), config)
    two = config.model_copy(update={"tables": config.tables.model_copy(update={"specs": dict.fromkeys("ab")})})
    with pytest.raises(ConfigError, match="budget '25kB' is for one table, ctr has a, b; give it in %"):
        check_budgets(grid(budgets="25kB"), two)


def test_limit_is_a_share_of_collisionless_bytes_or_bytes() -> None:
    assert (limit_of("10%", 1581), limit_of("25kB", 1581)) == (158, 25_000)


def with_section(config: RunConfig, **section: Any) -> RunConfig:
    values = config.model_dump(mode="json")
    values["tables"] = {"backend": "plain", "ids": section}
    return RunConfig.model_validate(values)

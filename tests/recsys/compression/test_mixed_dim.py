"""The larger a vocabulary the narrower its rows; projections are counted, and only where rows are narrow."""

from math import log2

import pytest
import torch

from recsys.compression.mixed_dim import MixedDimTable, ProjectedRows, power_rule, widths_below
from recsys.embedding.dense import RowPerId
from recsys.embedding.stores import initial_weights
from recsys.embedding.table import Reader
from tests.recsys.compression.served import BUDGETS, VOCABULARIES, readers_of, served_bytes

SIZES = {"city": 40, "item": 600, "user": 3000}


def tables_of(budget: str = "30%", seed: int = 0, sizes: dict[str, int] = SIZES) -> dict[str, object]:
    return dict(MixedDimTable(embedding_dim=16, budget=budget).build("ids", readers_of(sizes), seed))


def width_of(table: object) -> int:
    assert isinstance(table, ProjectedRows | RowPerId)
    return table.stores[0].embedding_dim


def test_vector_is_row_times_projection() -> None:
    table = tables_of()["user"]
    assert isinstance(table, ProjectedRows)
    weights = initial_weights(table.stores, seed=1)
    found = table(torch.tensor([7, 0, 7]), weights)
    for vector, raw in zip(found, (7, 0, 7), strict=True):
        expected = sum(
            value * row for value, row in zip(weights["ids.user"][raw], table.projection, strict=True)
        )  # fmt: skip
        torch.testing.assert_close(vector, expected)


def test_widths_fall_with_size_and_the_smallest_keeps_all() -> None:
    tables = tables_of()
    assert width_of(tables["city"]) == 16 > width_of(tables["item"]) >= width_of(tables["user"])
    assert isinstance(tables["city"], RowPerId)


@pytest.mark.parametrize("embedding_dim", [1, 2, 6, 16, 30])
def test_power_rule_gives_each_choice_that_an_alpha_gives(embedding_dim: int) -> None:
    sizes = {"a": 3, "b": 4, "c": 50, "d": 50, "e": 1000}
    allowed = [*widths_below(embedding_dim), embedding_dim]

    def naive(alpha: float) -> dict[str, int]:
        ideal = {name: embedding_dim * (3 / size) ** alpha for name, size in sizes.items()}
        return {name: min(allowed, key=lambda w: abs(log2(w) - log2(ideal[name]))) for name in sizes}

    found = power_rule(sizes, embedding_dim)
    assert [one for index, one in enumerate(found) if one not in found[:index]] == found
    assert found[-1] == dict.fromkeys(sizes, embedding_dim)
    assert all(naive(step / 500) in found for step in range(1, 10_000))
    assert found[0] == {name: embedding_dim if size == 3 else 1 for name, size in sizes.items()}


def test_alpha_is_the_smallest_that_fits() -> None:
    """The next choice of widths, with its projections, is over the budget."""
    readers = readers_of(SIZES)
    for percent in range(10, 101, 3):
        spec = MixedDimTable(embedding_dim=16, budget=f"{percent}%")
        widths = {name: width_of(table) for name, table in spec.build("ids", readers).items()}
        choices = power_rule(SIZES, 16)
        next_one = choices[min(choices.index(widths) + 1, len(choices) - 1)]
        taken = sum(
            4 * size * next_one[name] + 4 * 16 * next_one[name] * (next_one[name] < 16) for name, size in SIZES.items()
        )
        assert taken > spec.max_bytes("ids", readers) or next_one == widths


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("sizes", VOCABULARIES, ids=str)
def test_served_bytes_stay_within_every_budget(sizes: dict[str, int], precision: str) -> None:
    readers = readers_of(sizes, counted=False)
    for budget in BUDGETS:
        spec = MixedDimTable(embedding_dim=5, budget=budget, precision=precision)
        try:
            tables = spec.build("ids", readers)
        except ValueError as error:
            least = str(error).rpartition(" ")[2]
            assert int(least.removesuffix("B")) > spec.max_bytes("ids", readers)
            tables = spec.model_copy(update={"budget": least}).build("ids", readers)  # what it names can be had
            assert served_bytes(tables) == int(least.removesuffix("B"))
            continue
        assert served_bytes(tables) <= spec.max_bytes("ids", readers)


def test_a_projection_that_eats_the_gain_is_not_made() -> None:
    """4 rows of 16 take 256 bytes; 4 of 8 and their projection 640."""
    tables = tables_of("90%", sizes={"one": 1, "four": 4, "many": 900})
    assert isinstance(tables["four"], RowPerId)


def test_one_vocabulary_alone_cannot_be_compressed() -> None:
    with pytest.raises(ValueError, match="budget 99% is too small, the minimum is 6400B"):
        tables_of("99%", sizes={"item": 100})
    assert isinstance(tables_of("100%", sizes={"item": 100})["item"], RowPerId)


def test_projections_start_as_xavier_says_from_seed_and_name() -> None:
    tables, again, other = tables_of(), tables_of(sizes={"aaa": 40, **SIZES}), tables_of(seed=1)
    user, same, different = (found["user"] for found in (tables, again, other))
    assert isinstance(user, ProjectedRows)
    assert isinstance(same, ProjectedRows)
    assert isinstance(different, ProjectedRows)
    bound = (6 / sum(user.projection.shape)) ** 0.5
    assert 0.8 * bound < float(user.projection.detach().abs().max()) <= bound
    assert torch.equal(user.projection, same.projection)
    assert not torch.equal(user.projection, different.projection)


def test_rows_and_projection_get_gradients() -> None:
    table = tables_of()["user"]
    assert isinstance(table, ProjectedRows)
    weight = initial_weights(table.stores, seed=0)["ids.user"].requires_grad_()
    table(torch.arange(SIZES["user"]), {"ids.user": weight}).square().sum().backward()
    assert weight.grad is not None
    assert table.projection.grad is not None
    assert weight.grad.any(1).all()
    assert table.projection.grad.any(1).all()


def test_hashed_features_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the number of ids of 'word'"):
        MixedDimTable(embedding_dim=4, budget="1kB").build("ids", [Reader(name="word", salt="word")])

"""Quotient-remainder tables: two stores and an element-wise operation, sized by a budget, alive from the start."""

from math import ceil, isqrt

import pytest
import torch
from pydantic import ValidationError

from recsys.compression.factorized import CompositionalTable, QuotientRemainder, root_mean_square
from recsys.embedding.dense import RowPerId
from recsys.embedding.store import Constant, Normal, Uniform
from recsys.embedding.stores import initial_weights
from recsys.embedding.table import EmbeddingTable, Reader
from tests.recsys.compression.families import assert_bytes_within_budget, assert_fused_equals_plain


def reader(num_embeddings: int | None, name: str = "item") -> Reader:
    return Reader(name=name, salt=name, num_embeddings=num_embeddings)


def only(spec: CompositionalTable, num_embeddings: int) -> EmbeddingTable:
    return spec.build("ids", [reader(num_embeddings)])["item"]


@pytest.mark.parametrize("operation", ["product", "sum"])
def test_vector_is_quotient_and_remainder_combined(operation: str) -> None:
    table = only(CompositionalTable(embedding_dim=4, budget="30%", operation=operation), 100)
    assert isinstance(table, QuotientRemainder)
    weights = initial_weights(table.stores, seed=1)
    found = table(torch.arange(100), weights)
    for raw in range(100):
        quotient = weights["ids.item.quotient"][raw // table.divisor]
        remainder = weights["ids.item.remainder"][raw % table.divisor]
        assert torch.equal(found[raw], quotient * remainder if operation == "product" else quotient + remainder)


@pytest.mark.parametrize("num_embeddings", [5, 6, 97, 100, 101])
def test_no_two_ids_share_both_rows(num_embeddings: int) -> None:
    table = only(CompositionalTable(embedding_dim=4, budget=f"{16 * least_rows(num_embeddings)}B"), num_embeddings)
    found = torch.cat(list(table.rows(torch.arange(num_embeddings)).values()), 1)
    assert len(found.unique(dim=0)) == num_embeddings
    assert found.amax(0).tolist() == [store.num_embeddings - 1 for store in table.stores]


def least_rows(num_embeddings: int) -> int:
    root = isqrt(4 * num_embeddings)
    return root + (root * root < 4 * num_embeddings)


def test_divisor_is_the_smallest_within_the_budget() -> None:
    for num_embeddings in (5, 6, 7, 30, 97, 300):
        for rows in range(least_rows(num_embeddings), num_embeddings):
            table = only(CompositionalTable(embedding_dim=4, budget=f"{16 * rows}B"), num_embeddings)
            assert isinstance(table, QuotientRemainder)
            fits = [c for c in range(1, num_embeddings) if ceil(num_embeddings / c) + c <= rows]
            assert table.divisor == fits[0]
            assert sum(store.num_embeddings for store in table.stores) <= rows


@pytest.mark.parametrize("num_embeddings", [5, 6, 97, 1000])
def test_budget_below_the_floor_names_the_minimum(num_embeddings: int) -> None:
    least = 16 * least_rows(num_embeddings)
    with pytest.raises(ValueError, match=f"table 'ids': budget {least - 1}B is too small, the minimum is {least}B"):
        only(CompositionalTable(embedding_dim=4, budget=f"{least - 1}B"), num_embeddings)


@pytest.mark.parametrize("num_embeddings", [1, 2, 3, 4])
def test_vocabularies_that_it_cannot_make_smaller_stay_whole(num_embeddings: int) -> None:
    assert isinstance(only(CompositionalTable(embedding_dim=4, budget="100%"), num_embeddings), RowPerId)
    with pytest.raises(ValueError, match=f"the minimum is {16 * num_embeddings}B"):
        only(CompositionalTable(embedding_dim=4, budget="99%"), num_embeddings)


@pytest.mark.parametrize("embedding_dim", [1, 6])
def test_measured_bytes_stay_within_any_budget(embedding_dim: int) -> None:
    def make(budget: str, precision: str) -> CompositionalTable:
        return CompositionalTable(embedding_dim=embedding_dim, budget=budget, precision=precision)

    assert_bytes_within_budget(make)


@pytest.mark.parametrize("init", [Uniform(low=-0.05, high=0.05), Uniform(low=0.0, high=1.0), Normal(std=0.3)])
@pytest.mark.parametrize("operation", ["product", "sum"])
def test_vectors_start_with_the_stated_mean_square(init: Uniform | Normal, operation: str) -> None:
    spec = CompositionalTable(embedding_dim=32, budget="10%", init=init, operation=operation)
    table = only(spec, 20_000)
    found = table(torch.arange(20_000), initial_weights(table.stores, seed=0))
    assert float(found.square().mean().sqrt()) == pytest.approx(root_mean_square(init), rel=0.03)
    assert abs(float(found.mean())) < 0.03 * root_mean_square(init)


@pytest.mark.parametrize("init", [Uniform(low=-0.1, high=0.3), Normal(std=0.2), Constant(value=-2.0)])
def test_root_mean_square_is_that_of_drawn_values(init: Uniform | Normal | Constant) -> None:
    values = torch.empty(200_000)
    init.fill(values, torch.Generator().manual_seed(0))
    assert float(values.square().mean().sqrt()) == pytest.approx(root_mean_square(init), rel=0.01)


def test_a_product_of_zeros_is_refused_a_sum_is_not() -> None:
    with pytest.raises(ValidationError, match="is zero everywhere: a product of zeros has no gradient"):
        CompositionalTable(embedding_dim=4, budget="10%", init=Constant(value=0.0))
    table = only(CompositionalTable(embedding_dim=4, budget="10%", init=Constant(value=0.0), operation="sum"), 5000)
    assert not table(torch.arange(5000), initial_weights(table.stores, seed=0)).any()


def test_gradients_at_the_start_are_of_the_size_of_the_factors() -> None:
    table = only(CompositionalTable(embedding_dim=16, budget="10%"), 2000)
    weights = {name: weight.requires_grad_() for name, weight in initial_weights(table.stores, seed=0).items()}
    ids = torch.arange(0, 2000, 7)
    (table(ids, weights) * torch.ones(16)).sum().backward()
    for weight in weights.values():
        assert weight.grad is not None
        read = weight.grad[weight.grad.abs().sum(1) > 0]
        assert float(read.abs().mean()) > 0.1  # with 0.05 for both factors it would be near 0.025


def test_hashed_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the number of ids of 'item'"):
        CompositionalTable(embedding_dim=4, budget="1kB").build("ids", [reader(None)])


@pytest.mark.parametrize(
    "spec",
    [
        CompositionalTable(embedding_dim=6, budget="30%"),
        CompositionalTable(embedding_dim=5, budget="30%", operation="sum"),
    ],
    ids=lambda spec: str(spec.embedding_dim),
)
def test_fused_trains_as_plain(spec: CompositionalTable) -> None:
    assert_fused_equals_plain(spec)

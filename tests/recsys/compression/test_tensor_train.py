"""Tensor-train tables: the whole table that the cores stand for, shapes by budget, and values alive from the start."""

from itertools import product
from math import prod

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from recsys.compression.factorized import root_mean_square
from recsys.compression.tensor_train import TensorTrain, TensorTrainTable, cube_root, shape_of, split_width
from recsys.embedding.dense import RowPerId
from recsys.embedding.store import Constant, Normal, Uniform
from recsys.embedding.stores import initial_weights
from recsys.embedding.table import EmbeddingTable, Reader
from tests.recsys.compression.families import assert_bytes_within_budget, assert_fused_equals_plain


def reader(num_embeddings: int | None, name: str = "item") -> Reader:
    return Reader(name=name, salt=name, num_embeddings=num_embeddings)


def only(spec: TensorTrainTable, num_embeddings: int) -> EmbeddingTable:
    return spec.build("ids", [reader(num_embeddings)])["item"]


def materialised(table: TensorTrain, weights: dict[str, Tensor]) -> Tensor:
    """All n1 n2 n3 rows, by the definition, one number after the other."""
    (n1, n2, n3), (d1, d2, d3), (r1, r2) = table.shape.rows, table.shape.dims, table.shape.ranks
    cores = [weights[f"ids.item.core{number}"] for number in (1, 2, 3)]
    first, middle, last = cores[0].view(n1, d1, r1), cores[1].view(n2, r1, d2, r2), cores[2].view(n3, r2, d3)
    whole = torch.zeros(n1, n2, n3, d1, d2, d3)
    for (a, b), x1, x2, x3 in product(product(range(r1), range(r2)), range(n1), range(n2), range(n3)):
        for j1, j2, j3 in product(range(d1), range(d2), range(d3)):
            whole[x1, x2, x3, j1, j2, j3] += first[x1, j1, a] * middle[x2, a, j2, b] * last[x3, b, j3]
    return whole.view(n1 * n2 * n3, d1 * d2 * d3)


@pytest.mark.parametrize(
    ("num_embeddings", "embedding_dim", "budget", "max_rank"),
    [(30, 6, "60%", 3), (30, 6, "80%", 2), (23, 5, "90%", 16), (50, 1, "99%", 2)],
)
def test_vectors_are_rows_of_the_materialised_table(
    num_embeddings: int, embedding_dim: int, budget: str, max_rank: int
) -> None:
    spec = TensorTrainTable(embedding_dim=embedding_dim, budget=budget, max_rank=max_rank, init=Normal(std=1.0))
    table = only(spec, num_embeddings)
    assert isinstance(table, TensorTrain)
    weights = initial_weights(table.stores, seed=0)
    found = table(torch.arange(num_embeddings), weights)
    torch.testing.assert_close(found, materialised(table, weights)[:num_embeddings])


@pytest.mark.parametrize(
    ("embedding_dim", "dims"),
    [
        (16, (2, 2, 4)),
        (64, (4, 4, 4)),
        (30, (3, 2, 5)),
        (10, (2, 1, 5)),
        (7, (1, 1, 7)),
        (6, (2, 1, 3)),
        (1, (1, 1, 1)),
    ],
)
def test_width_is_split_evenly_with_the_smallest_in_the_middle(embedding_dim: int, dims: tuple[int, ...]) -> None:
    assert split_width(embedding_dim) == dims


def test_split_width_has_the_least_sum() -> None:
    for width in range(1, 100):
        triples = [t for t in product(range(1, width + 1), repeat=2) if width % (t[0] * t[1]) == 0]
        assert sum(split_width(width)) == min(sum(t) + width // prod(t) for t in triples)
        assert prod(split_width(width)) == width


def test_cube_root_is_the_largest_that_fits() -> None:
    for number in [*range(1, 1100), 10**9 - 1, 10**9, 10**9 + 1, 10**15 - 1, 10**15, 10**15 + 1]:
        assert cube_root(number) ** 3 <= number < (cube_root(number) + 1) ** 3


def test_shapes_hold_every_id() -> None:
    for num_embeddings in [*range(1, 200), 9973, 10**6]:
        for middle in {cube_root(num_embeddings), -(-num_embeddings // 2), num_embeddings}:
            first, found, last = shape_of(num_embeddings, 16, 4, middle).rows
            assert found == middle
            assert (first - 1) * middle * last < num_embeddings <= first * middle * last
            assert last <= first <= last + 2


def test_ids_have_rows_of_their_own() -> None:
    table = only(TensorTrainTable(embedding_dim=4, budget="20%"), 1000)
    found = torch.cat(list(table.rows(torch.arange(1000)).values()), 1)
    assert len(found.unique(dim=0)) == 1000


def test_rank_is_the_largest_within_the_budget() -> None:
    for share in range(3, 60, 3):
        spec = TensorTrainTable(embedding_dim=16, budget=f"{share}%", max_rank=100)
        table, most = only(spec, 2000), spec.max_bytes("ids", [reader(2000)])
        assert isinstance(table, TensorTrain)
        rank, middle = max(table.shape.ranks), table.shape.rows[1]
        assert table.shape.num_bytes("float32") <= most < shape_of(2000, 16, rank + 1, 12).num_bytes("float32")
        assert most < shape_of(2000, 16, rank, middle + 1).num_bytes("float32")


def test_rest_of_the_budget_buys_rows_of_the_middle() -> None:
    shapes = []
    for share in (2, 5, 10, 20, 40, 80):
        table = only(TensorTrainTable(embedding_dim=16, budget=f"{share}%", max_rank=4), 5000)
        assert isinstance(table, TensorTrain)
        assert max(table.shape.ranks) <= 4
        shapes.append(table.shape)
        used = table.shape.num_bytes("float32") / (5000 * 16 * 4 * share / 100)
        assert used <= 1
        assert share < 5 or used > 0.9
    assert [shape.rows[1] for shape in shapes] == sorted(shape.rows[1] for shape in shapes)


@pytest.mark.parametrize("embedding_dim", [1, 6])
def test_measured_bytes_stay_within_any_budget(embedding_dim: int) -> None:
    def make(budget: str, precision: str) -> TensorTrainTable:
        return TensorTrainTable(embedding_dim=embedding_dim, budget=budget, precision=precision)

    assert_bytes_within_budget(make)


def test_a_vocabulary_that_it_cannot_make_smaller_stays_whole() -> None:
    assert isinstance(only(TensorTrainTable(embedding_dim=4, budget="100%"), 1), RowPerId)
    with pytest.raises(ValueError, match="the minimum is 16B"):
        only(TensorTrainTable(embedding_dim=4, budget="15B"), 1)


@pytest.mark.parametrize(
    ("num_embeddings", "least"), [(2, 4 * (4 + 1 + 2)), (3, 4 * (4 + 1 + 4)), (30, 4 * (8 + 3 + 6))]
)
def test_budget_below_rank_one_names_the_minimum(num_embeddings: int, least: int) -> None:
    table = only(TensorTrainTable(embedding_dim=4, budget=f"{least}B"), num_embeddings)
    assert isinstance(table, TensorTrain)
    assert table.shape.ranks == (1, 1)
    with pytest.raises(ValueError, match=f"table 'ids': budget {least - 1}B is too small, the minimum is {least}B"):
        only(TensorTrainTable(embedding_dim=4, budget=f"{least - 1}B"), num_embeddings)


@pytest.mark.parametrize("init", [Uniform(low=-0.05, high=0.05), Uniform(low=0.0, high=1.0), Normal(std=0.3)])
@pytest.mark.parametrize("budget", ["0.3%", "3%", "30%"])
def test_vectors_start_with_the_stated_mean_square(init: Uniform | Normal, budget: str) -> None:
    table = only(TensorTrainTable(embedding_dim=32, budget=budget, init=init), 20_000)
    found = table(torch.arange(20_000), initial_weights(table.stores, seed=0))
    assert float(found.square().mean().sqrt()) == pytest.approx(root_mean_square(init), rel=0.1)


def test_a_start_at_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="is zero everywhere"):
        TensorTrainTable(embedding_dim=4, budget="10%", init=Constant(value=0.0))


def test_hashed_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the number of ids of 'item'"):
        TensorTrainTable(embedding_dim=4, budget="1kB").build("ids", [reader(None)])


@pytest.mark.parametrize(
    "spec",
    [
        TensorTrainTable(embedding_dim=6, budget="20%"),
        TensorTrainTable(embedding_dim=7, budget="60%", max_rank=3),
    ],
    ids=lambda spec: str(spec.embedding_dim),
)
def test_fused_trains_as_plain(spec: TensorTrainTable) -> None:
    assert_fused_equals_plain(spec)

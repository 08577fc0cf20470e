"""MGQE: codes are those of the nearest allowed centroid, gradients go where they should, and the codebook lives."""

import pytest
import torch
from torch import Tensor

from recsys.compression.codebook import CodebookTable, CodedRows, QuantisedRows
from recsys.embedding.dense import RowPerId
from recsys.embedding.table import EmbeddingTable, Reader
from recsys.laws.small_schema import build
from tests.recsys.compression.staged import STEPS, Staged

SPEC = CodebookTable(embedding_dim=6, parts=2, num_centroids=8, rare_centroids=3, frequent=0.25)


def reader(rows: int = 1000) -> Reader:
    """Even ids are the frequent ones."""
    counts = torch.where(torch.arange(rows) % 2 == 0, 50, 1)
    return Reader(name="item", salt="item", num_embeddings=rows, counts=counts)


def quantised(spec: CodebookTable, rows: int = 1000) -> QuantisedRows:
    table = spec.build("ids", [reader(rows)])["item"]
    assert isinstance(table, QuantisedRows)
    return table


def values(table: EmbeddingTable, seed: int = 0) -> Tensor:
    rows = table.stores[0].num_embeddings
    return torch.randn(rows, table.embedding_dim, generator=torch.Generator().manual_seed(seed))


def test_codes_equal_a_naive_search_among_the_allowed() -> None:
    table = quantised(SPEC, rows=40)
    rows = values(table)
    found = table.codes(rows, table.limits)
    for id_ in range(40):
        for part in range(2):
            allowed = table.codebook[part, : table.limits[id_]]
            distance = (rows[id_, 3 * part : 3 * part + 3] - allowed).square().sum(1)
            assert found[id_, part] == distance.argmin()


def test_rare_ids_use_the_first_centroids_only() -> None:
    table = quantised(SPEC)
    assert int((table.limits == 8).sum()) == 250
    assert not table.limits[1::2].gt(3).any()  # counted in train: these are rare
    codes = table.codes(values(table), table.limits)
    assert int(codes[table.limits == 3].max()) == 2
    assert int(codes[table.limits == 8].max()) == 7


def test_training_sees_centroids_and_moves_rows_straight_through() -> None:
    table = quantised(SPEC, rows=40)
    store, ids = values(table).requires_grad_(), torch.tensor([3, 3, 8])
    found, pull = table(ids, {table.store: store}), torch.randn(3, 6)
    with torch.no_grad():
        assert torch.allclose(found, table.eval()(ids, {table.store: store}), atol=1e-6)
    (found * pull).sum().backward()
    assert store.grad is not None
    expected = torch.zeros_like(store).index_add_(0, ids, pull)
    assert torch.allclose(store.grad, expected)
    assert table.codebook.grad is None


def test_penalty_moves_centroids_to_their_rows_alone() -> None:
    table = quantised(SPEC, rows=40)
    store, ids = values(table).requires_grad_(), torch.tensor([3, 3, 8])
    nearest = table(ids, {table.store: store}).detach()
    penalty = table.penalty()
    assert penalty is not None
    assert torch.isclose(penalty, (nearest - store[ids]).square().mean())
    penalty.backward()
    assert store.grad is None
    chosen = {(p, int(c)) for row in table.codes(store.detach(), table.limits)[ids] for p, c in enumerate(row)}
    moved = {(p, int(c)) for p, c in table.codebook.grad.any(2).nonzero().tolist()}  # type: ignore[union-attr]
    assert moved == chosen
    assert table.penalty() is None  # once per step


def test_codebook_starts_alive_at_initial_rows() -> None:
    table = quantised(SPEC)
    rows = torch.empty(1000, 6)
    table.stores[0].initialise(rows, seed=0)
    assert torch.equal(table.codebook[1, 5], rows[5, 3:])
    used = [len(table.codes(rows, table.limits)[:, part].unique()) for part in range(2)]
    assert used == [8, 8]


def test_fitted_codebook_is_near_the_rows_and_all_of_it_used() -> None:
    spec = CodebookTable(embedding_dim=8, parts=4, num_centroids=32, rare_centroids=8, frequent=0.3)
    table = quantised(spec)
    rows = values(table)

    @torch.no_grad()
    def error() -> float:
        nearest = table.eval()(torch.arange(1000), {table.store: rows})
        return float(((nearest - rows).square().mean(1) * table.counts).sum() / table.counts.sum())

    before = error()
    table.fit(rows, torch.Generator().manual_seed(0))
    assert error() < 0.3 < before
    assert all(len(table.codes(rows, table.limits)[:, part].unique()) == 32 for part in range(4))


def test_fit_finds_rows_that_are_few_values_exactly() -> None:
    table = quantised(SPEC)
    rows = torch.randn(3, 6)[torch.arange(1000) % 3]
    table.fit(rows, torch.Generator().manual_seed(1))
    assert torch.allclose(table.eval()(torch.arange(1000), {table.store: rows}), rows, atol=1e-5)


def test_warm_up_trains_rows_and_is_followed_by_fitted_codebooks() -> None:
    staged = Staged(SPEC)
    assert [(phase.name, phase.keep_best) for phase in staged.phases] == [("ctr, warm-up", False), ("ctr", True)]
    table = staged.collection.table("item")
    assert isinstance(table, QuantisedRows)
    stages: list[str] = []
    staged.seen = lambda name: stages.append(table.stage)
    staged.train()
    assert stages == ["warm-up"] * STEPS + ["quantised"] * STEPS


def test_warm_up_leaves_codebooks_near_the_rows_that_it_trained() -> None:
    distances: list[float] = []
    staged = Staged(CodebookTable(embedding_dim=6, parts=2, num_centroids=16, rare_centroids=12))
    found = staged.collection.table("item")
    assert isinstance(found, QuantisedRows)
    table, ids = found, torch.arange(61)

    @torch.no_grad()
    def note(name: str) -> None:
        stores = staged.collection.backend.weights()
        nearest = table.eval()(ids, stores)
        table.train()
        distances.append(float((nearest - stores[table.store]).square().mean()))

    staged.seen = note
    staged.train()
    assert distances[STEPS] < 0.5 * distances[STEPS - 1]


def test_parts_follow_from_the_budget_and_small_vocabularies_stay_whole() -> None:
    table = CodebookTable(embedding_dim=16, budget="10%").build("ids", [reader(100_000)])["item"]
    assert isinstance(table, QuantisedRows)
    assert table.codebook.shape == (4, 256, 4)  # 4 bytes an id and 16 kB, of 6.4 bytes an id
    assert isinstance(CodebookTable(embedding_dim=16, parts=4).build("ids", [reader(200)])["item"], RowPerId)


def test_budget_below_one_part_names_the_minimum() -> None:
    with pytest.raises(ValueError, match="table 'ids': budget 1% is too small, the minimum is 17384B"):
        CodebookTable(embedding_dim=16, budget="1%").build("ids", [reader()])


def test_codebook_needs_counts_of_train() -> None:
    unknown = Reader(name="item", salt="item", num_embeddings=1000)
    with pytest.raises(ValueError, match="needs to know how often the ids of 'item' are in train"):
        SPEC.build("ids", [unknown])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "exactly one of budget and parts"),
        ({"parts": 4}, "must divide embedding_dim = 6"),
        ({"parts": 2, "rare_centroids": 9, "num_centroids": 8}, "at most num_centroids = 8"),
    ],
)
def test_codebook_settings_that_do_not_fit_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CodebookTable(embedding_dim=6, **settings)


def test_frozen_form_is_codes_and_a_codebook() -> None:
    frozen = build(SPEC).freeze()
    table = frozen.table("item")
    assert isinstance(table, CodedRows)
    assert table.codes.dtype == torch.uint8
    bytes_ = {key: tensor.nbytes for key, tensor in frozen.state_dict().items() if "item" in key}
    assert bytes_ == {"stores.ids.item.codebook": 2 * 8 * 3 * 4, "tables.ids/item.codes": 61 * 2}

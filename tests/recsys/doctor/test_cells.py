"""Which cells the matrix has, which the short form runs, and which are refused."""

from dataclasses import replace

from recsys.doctor.cells import LAYOUTS, REFUSALS, Cell, all_cells, is_quick, refusals_of
from recsys.embedding.optimizers import OPTIMIZERS
from recsys.embedding.precision import PRECISIONS

BACKENDS = ("plain", "fused", "sharded")
CELL = Cell(
    method="dense", backend="sharded", num_ranks=2, sharding="row_wise", optimizer="adagrad", precision="float32"
)


def test_cells_are_the_whole_product_once() -> None:
    cells = all_cells(["a", "b"], BACKENDS)
    assert len(cells) == len(set(cells)) == 2 * len(LAYOUTS) * len(OPTIMIZERS) * len(PRECISIONS)
    assert {(cell.backend, cell.num_ranks, cell.sharding) for cell in cells} == set(LAYOUTS)


def test_cells_have_their_oracle_before_them_and_ranks_together() -> None:
    for cells in (all_cells(["a", "b"], BACKENDS), [c for c in all_cells(["a", "b"], BACKENDS) if is_quick(c)]):
        ranks = [cell.num_ranks for cell in cells]
        assert ranks == sorted(ranks)
        for number, cell in enumerate(cells):
            oracle = replace(cell, backend="plain", num_ranks=1, sharding="")
            assert oracle in cells[: number + 1]


def test_cells_of_some_backends_alone() -> None:
    assert {cell.backend for cell in all_cells(["a"], ["plain"])} == {"plain"}


def test_cells_that_are_quick_cover_every_training_on_two_ranks_and_every_precision() -> None:
    quick = [cell for cell in all_cells(["a"], BACKENDS) if is_quick(cell)]
    on_two = {(cell.sharding, cell.optimizer) for cell in quick if cell.num_ranks == 2}
    assert len(on_two) == 3 * len(OPTIMIZERS)
    assert {cell.precision for cell in quick if cell.backend == "plain"} == set(PRECISIONS)
    assert len(quick) <= len(all_cells(["a"], BACKENDS)) / 5


def test_cells_are_named_by_what_they_are() -> None:
    assert str(CELL) == "dense sharded row_wise 2 ranks adagrad float32"
    assert Cell(**CELL.to_json()) == CELL


def test_cells_are_refused_by_optimizer_and_sharding() -> None:
    assert refusals_of(CELL, "") == []
    assert [refusal.says for refusal in refusals_of(replace(CELL, optimizer="adam"), "")] == ["has no Adam"]
    column = replace(CELL, sharding="column_wise", num_ranks=1)
    assert refusals_of(column, "") == []
    assert len(refusals_of(replace(column, optimizer="rowwise_adagrad"), "")) == 1
    assert refusals_of(replace(CELL, backend="plain", num_ranks=1, sharding="", optimizer="adam"), "") == []


def test_cells_of_tables_that_train_on_one_rank_are_refused_on_two() -> None:
    assert len(refusals_of(CELL, "it sees all rows")) == 1
    assert refusals_of(replace(CELL, num_ranks=1), "it sees all rows") == []


def test_cells_refused_have_words_and_reasons() -> None:
    assert all(refusal.says and refusal.reason for refusal in REFUSALS)
    assert len({refusal.says for refusal in REFUSALS}) == len(REFUSALS)

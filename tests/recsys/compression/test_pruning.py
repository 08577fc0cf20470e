"""DeepLight: the rate follows its curve and ends at its target, the mask then holds, and the budget is kept."""

import pytest
import torch

from recsys.compression.marks import Marks
from recsys.compression.pruning import EVERY, PrunedRows, PrunedTable, SparseRows, pruned_share
from recsys.embedding.dense import RowPerId
from recsys.embedding.table import Reader
from recsys.laws.small_schema import build
from tests.recsys.compression.staged import STEPS, Staged

SPEC = PrunedTable(embedding_dim=6, budget="40%")
FEATURES = ("user", "item", "tags")


def tables(staged: Staged) -> list[PrunedRows]:
    found = [staged.collection.table(feature) for feature in FEATURES]
    assert all(isinstance(table, PrunedRows) for table in found)
    return found  # type: ignore[return-value]


def zeros(staged: Staged) -> list[int]:
    weights = staged.collection.backend.weights()
    return [int((weights[table.store] == 0).sum()) for table in tables(staged)]


def quotas(staged: Staged) -> list[int]:
    return [int(table.quota) for table in tables(staged)]


def test_rate_is_the_papers_curve_run_through_and_ends_at_the_target() -> None:
    """There, s (1 - .99^(t / 100)) is .99 s at t = 45,821; ours is the same shape at the same share of the way."""
    whole = 100 * torch.log(torch.tensor(0.01)).item() / torch.log(torch.tensor(0.99)).item()
    assert round(whole) == 45_821
    for done in (0.0, 0.1, 0.5, 0.9):
        assert pruned_share(done) * 0.99 == pytest.approx(1 - 0.99 ** (done * whole / 100))
    assert pruned_share(1.0) == 1.0


def test_stages_prune_by_the_curve_every_ten_updates() -> None:
    seen: list[tuple[str, int]] = []
    staged = Staged(SPEC, seen=lambda name: seen.append((name, sum(zeros(staged)))))
    assert [phase.name for phase in staged.phases] == ["ctr, warm-up", "ctr, prune", "ctr"]
    assert [phase.keep_best for phase in staged.phases] == [False, False, True]
    staged.train(staged.phases[:1])
    assert not any(count for _, count in seen)
    seen.clear()
    total, target = sum(table.kept.numel() for table in tables(staged)), sum(quotas(staged))
    staged.train(staged.phases[1:2])
    at_pruning = [count for number, (_, count) in enumerate(seen) if number % EVERY == 0]
    assert len(at_pruning) == 2 * STEPS // EVERY
    for number, count in enumerate(at_pruning):
        expected = (total - target) * pruned_share(number * EVERY / (2 * STEPS))
        assert count == pytest.approx(expected, abs=2)
    assert sum(zeros(staged)) == total - target


def test_mask_is_fixed_after_the_prune_stage_and_zeros_stay() -> None:
    staged = Staged(SPEC)
    staged.train(staged.phases[:2])
    masks = [table.kept.clone() for table in tables(staged)]
    before = [weight.clone() for weight in staged.collection.backend.weights().values()]
    staged.train(staged.phases[2:])
    weights = staged.collection.backend.weights()
    for table, mask in zip(tables(staged), masks, strict=True):
        assert torch.equal(table.kept, mask)
        assert not weights[table.store][~mask].any()
    assert not all(torch.equal(old, new) for old, new in zip(before, weights.values(), strict=True))


def test_entries_are_dealt_by_one_threshold_after_the_warm_up() -> None:
    staged = Staged(SPEC)
    staged.train(staged.phases[:1])
    weights = staged.collection.backend.weights()
    sizes = {table.name: weights[table.store].abs() for table in tables(staged)}
    lowest = max(float(sizes[table.name][~table.kept].max()) for table in tables(staged) if not table.kept.all())
    highest = min(float(sizes[table.name][table.kept].min()) for table in tables(staged) if not table.kept.all())
    assert highest >= lowest


@pytest.mark.parametrize(("budget", "precision"), [("70%", "float32"), ("40%", "float16"), ("15%", "float32")])
def test_served_bytes_fill_the_budget_in_every_stage(budget: str, precision: str) -> None:
    spec = PrunedTable(embedding_dim=6, budget=budget, precision=precision)
    most = int(float(budget[:-1]) / 100 * (41 + 61 + 8) * 24)
    staged = Staged(spec)
    for phase in staged.phases:
        assert most - 60 <= staged.collection.num_bytes() <= most
        staged.train([phase])
    assert most - 60 <= staged.collection.num_bytes() <= most


def test_served_form_is_values_and_marks_or_all_rows_where_that_is_no_more() -> None:
    small, whole = build(SPEC).freeze().table("item"), build(PrunedTable(embedding_dim=6, budget="100%")).freeze()
    assert isinstance(small, SparseRows)
    assert isinstance(whole.table("item"), RowPerId)
    kept = small.marks.count
    assert small.stores[0].num_bytes == 4 * (1 + kept)
    table = PrunedTable(embedding_dim=6, budget="40%").build("ids", [Reader(name="x", salt="x", num_embeddings=61)])[
        "x"
    ]
    assert isinstance(table, PrunedRows)
    assert table.num_bytes(kept) == 4 * (1 + kept) + Marks.num_bytes(61, 6, kept)


def test_budget_that_keeps_nothing_names_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"table 'ids': budget 1B is too small, the minimum is \d+B"):
        build(PrunedTable(embedding_dim=6, budget="1B"))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_precision_with_a_scale_a_row_is_refused_with_a_reason(precision: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be served in {precision}: values stand alone"):
        PrunedTable(embedding_dim=6, budget="40%", precision=precision)


def test_evaluation_in_the_warm_up_sees_what_would_be_served() -> None:
    staged = Staged(SPEC)
    staged.train(staged.phases[:1])
    table = tables(staged)[1].eval()
    values = staged.collection.backend.weights()[table.store]
    found = table(torch.arange(61), {table.store: values})
    assert torch.equal(found, values * table.kept)
    assert int(table.kept.sum()) == int(table.quota)

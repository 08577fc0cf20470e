"""OptEmbed: rows stay or go by their thresholds, widths are drawn, evolved, and then hold."""

import math

import pytest
import torch

from recsys.compression.evolution import Evolution
from recsys.compression.supernet import RETRAIN, BinaryStep, KeptRows, SearchedTable, SupernetRows
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.table import EmbeddingTable, Reader
from recsys.laws.small_schema import build
from tests.recsys.compression.staged import Staged

FEATURES = ("user", "item", "tags")
SMALL = Evolution(mutated=2, crossed=2, parents=3, generations=2)
SPEC = SearchedTable(embedding_dim=6, evolution=SMALL, alpha=1.0)


def supernet(found: EmbeddingTable) -> SupernetRows:
    assert isinstance(found, SupernetRows)
    return found


def alone(**settings: float) -> SupernetRows:
    spec = SearchedTable(embedding_dim=6, **settings)
    return supernet(spec.build("ids", [Reader(name="x", salt="x", num_embeddings=5)])["x"])


def widths(collection: EmbeddingCollection) -> list[int]:
    return [int(supernet(collection.table(feature)).width) for feature in FEATURES]


def narrow_users(collection: EmbeddingCollection) -> float:
    """A score that wants two columns of users and all of items."""
    found = dict(zip(FEATURES, widths(collection), strict=True))
    return -abs(found["user"] - 2.0) + found["item"]


def test_step_has_the_stated_derivative() -> None:
    x = torch.tensor([-1.5, -1.0, -0.5, -0.4, -0.1, 0.0, 0.1, 0.4, 0.7, 1.0, 1.1], requires_grad=True)
    found = BinaryStep.apply(x)  # type: ignore[no-untyped-call]
    found.sum().backward()
    assert found.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.tensor([0, 0.4, 0.4, 0.4, 1.6, 2.0, 1.6, 0.4, 0.4, 0.4, 0]))


def test_supernet_drops_rows_below_the_threshold_and_draws_leading_columns() -> None:
    table = alone()
    with torch.no_grad():
        table.raised.fill_(0.2)  # t = 10 x 0.2
    values = torch.tensor([[0.5], [0.2], [1.0], [-0.4], [0.3]]).expand(5, 6)
    ids = torch.arange(5).repeat(200)
    found = table(ids, {table.store: values})
    kept = torch.tensor([True, False, True, True, False])[ids]
    assert not found[~kept].any()
    columns = (found[kept] != 0).sum(1)
    assert torch.equal(found[kept] != 0, torch.arange(6) < columns.unsqueeze(1))
    assert torch.bincount(columns, minlength=7)[1:].min() > 60  # of 600, each of six widths


def test_drawn_widths_are_the_same_within_a_step_and_others_in_the_next() -> None:
    table, values, ids = alone(), torch.ones(5, 6), torch.arange(5).repeat(9)
    first = table(ids, {table.store: values})
    assert torch.equal(table(ids, {table.store: values}), first)
    table.on_step({table.store: values}, {table.store: ids})
    assert not torch.equal(table(ids, {table.store: values}), first)


def test_penalty_is_alpha_exp_of_minus_the_threshold_in_the_supernet_alone() -> None:
    table, values, ids = alone(alpha=0.5, threshold_speed=4.0), torch.ones(5, 6), torch.arange(5)
    with torch.no_grad():
        table.raised.fill_(0.25)
    table(ids, {table.store: values})
    penalty = table.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.5 * math.exp(-1))
    table.stage = RETRAIN
    table(ids, {table.store: values})
    assert table.penalty() is None


def test_stages_search_then_restart_and_retrain_at_what_was_found() -> None:
    staged = Staged(SPEC, score=narrow_users)
    assert [(phase.name, phase.keep_best) for phase in staged.phases] == [("ctr, supernet", False), ("ctr", True)]
    staged.train(staged.phases[:1])
    assert staged.restarts == 1
    found = widths(staged.collection)
    kept = [supernet(staged.collection.table(feature)).kept.clone() for feature in FEATURES]
    staged.train(staged.phases[1:])
    assert widths(staged.collection) == found
    assert all(torch.equal(supernet(staged.collection.table(f)).kept, k) for f, k in zip(FEATURES, kept, strict=True))
    assert staged.restarts == 1


def test_evolution_takes_the_widths_of_the_best_score() -> None:
    best: list[float] = []

    def score(collection: EmbeddingCollection) -> float:
        best.append(narrow_users(collection))
        return best[-1]

    staged = Staged(SPEC, score=score)
    staged.train(staged.phases[:1])
    assert narrow_users(staged.collection) == max(best) > best[0]


def test_end_of_the_supernet_repeated_finds_the_same() -> None:
    staged = Staged(SPEC, score=narrow_users)
    end = staged.phases[0].on_end
    assert end is not None
    staged.train(staged.phases[:1])
    first = {name: tensor.clone() for name, tensor in staged.collection.state_dict().items()}
    end()
    assert all(torch.equal(tensor, first[name]) for name, tensor in staged.collection.state_dict().items())


def test_ids_below_the_threshold_are_dropped_and_reported() -> None:
    staged = Staged(SearchedTable(embedding_dim=6, evolution=SMALL, alpha=100.0, threshold_speed=20.0), narrow_users)
    staged.train(staged.phases[:1])
    weights = staged.collection.backend.weights()
    for feature in FEATURES:
        table = supernet(staged.collection.table(feature))
        margin = weights[table.store].abs().sum(1) - 20.0 * table.raised.detach()
        assert torch.equal(table.kept, margin > 0)
    assert 0 < sum(int(supernet(staged.collection.table(f)).kept.sum()) for f in FEATURES) < 110


@pytest.mark.parametrize("percent", [60, 20])
def test_budget_holds_before_and_after_the_search(percent: int) -> None:
    most = 110 * 24 * percent // 100
    staged = Staged(SearchedTable(embedding_dim=6, budget=f"{percent}%", evolution=SMALL), score=narrow_users)
    assert most - 24 <= staged.collection.num_bytes() <= most
    staged.train()
    assert staged.collection.num_bytes() <= most
    assert staged.collection.num_bytes() > most - 24 or all(
        bool(supernet(staged.collection.table(feature)).kept.all()) for feature in FEATURES
    )


def test_served_form_is_narrow_rows_of_the_kept_ids() -> None:
    collection = build(SPEC)
    table = supernet(collection.table("item"))
    table.kept.copy_(torch.arange(61) % 7 == 3)
    table.width.fill_(2)
    frozen = collection.freeze()
    served = frozen.table("item")
    assert isinstance(served, KeptRows)
    assert (served.stores[0].num_embeddings, served.stores[0].embedding_dim) == (1 + 9, 2)
    found, whole = frozen.lookup({"": ("item", torch.arange(61))})[""], collection.backend.weights()[table.store]
    expected = whole * table.kept.unsqueeze(1)
    expected[:, 2:] = 0
    assert torch.equal(found, expected)


def test_search_without_validation_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="search by a validation metric: give"):
        Staged(SPEC)


def test_budget_that_keeps_nothing_names_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"table 'ids': budget 9B is too small, the minimum is \d+B"):
        build(SearchedTable(embedding_dim=6, budget="9B"))

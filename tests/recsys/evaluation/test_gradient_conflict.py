from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recsys.evaluation.attention_paths import attentive, paths_of
from recsys.evaluation.gradient_conflict import conflicts
from tests.recsys.models.aligned_world import batch, model
from tests.recsys.models.test_dare import dare
from tests.recsys.models.test_twin import twin


def by_category(leaves: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    """Gradients of the categories, summed in a loop, [5, D]."""
    total = torch.zeros(5, leaves["category"].shape[1])
    history = batch().jagged("history_category").values
    for ids, name in ((batch().ids("category"), "category"), (history, "history_category")):
        for row, gradient in zip(ids.tolist(), gradients[name], strict=True):
            total[row] += gradient
    return total


def test_conflict_equals_a_loop_over_occurrences() -> None:
    found = twin(search_k=3)
    paths = paths_of(found, batch())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(paths.logits, batch().labels["click"])
    sums = []
    for leaves in (paths.attention, paths.representation):
        names = ("category", "history_category")
        gradients = torch.autograd.grad(loss, [leaves[name] for name in names], retain_graph=True)
        sums.append(by_category(dict(leaves), dict(zip(names, gradients, strict=True))))
    (one,) = [one for one in conflicts(found, [batch()]) if one.feature == "category"]
    assert one.attention_norm == pytest.approx(float(sums[0].norm()), rel=1e-4)
    assert one.ratio == pytest.approx(float(sums[0].norm() / sums[1].norm()), rel=1e-4)
    opposed = {row: float((sums[0][row] @ sums[1][row]) < 0) for row in range(5) if sums[0][row].any()}
    assert {row: share for row, (share, _) in one.by_id.items()} == opposed
    assert one.conflict == pytest.approx(sum(opposed.values()) / len(opposed))


def test_conflict_is_of_the_loss_that_is_trained_with_its_weights() -> None:
    found, rows = twin(search_k=3), batch()
    half = replace(rows, weights=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    first = rows.select(torch.arange(3))
    for weighted, alone in zip(conflicts(found, [half]), conflicts(found, [first]), strict=True):
        assert weighted.attention_norm == pytest.approx(alone.attention_norm, rel=1e-4)
    plain, doubled = conflicts(found, [rows]), conflicts(twin(search_k=3, positive_weight=4.0), [rows])
    assert [one.representation_norm for one in plain] != [one.representation_norm for one in doubled]


def test_events_that_a_hard_search_left_have_no_gradient() -> None:
    """Ids of the categories: those of the targets alone, as what is found has the target's."""
    found = attentive(model("din", options={"search": "category", "search_k": 1}), "din")
    (one,) = [one for one in conflicts(found, [batch()]) if one.feature == "category"]
    assert one.attention_norm > 0
    assert set(one.by_id) <= set(batch().ids("category").tolist())


def test_tables_apart_have_no_conflict() -> None:
    found = {one.feature: one for one in conflicts(dare(), [batch(), batch(seed=1)])}
    assert set(found) == {"item", "category", "history_action", "history_age"}
    for one in found.values():
        assert (one.conflict, dict(one.by_id)) == (None, {})
        assert one.table != one.attention_table
        assert one.ratio is not None


def test_conflicts_change_no_weight() -> None:
    found = twin()
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    conflicts(found, [batch()])
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.state_dict().items())

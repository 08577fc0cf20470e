import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from features.batch import Batch, Jagged
from recsys.models.ragged import owners_of
from recsys.models.twin import TWIN, Projections
from recsys.phases import Step
from tests.recsys.models.aligned_world import LENGTHS, batch, model

STEP = Step(seed=0, phase="train", epoch=0, index=0)


def twin(**options: object) -> TWIN:
    made = model("twin", options={"hidden": (6,), "auxiliary_hidden": (5,), **options})
    assert isinstance(made, TWIN)
    return made.eval()


def padded(column: Jagged, row: int) -> Tensor:
    return column.values[column.offsets[row] : column.offsets[row + 1]]


def naive_interest(query: Tensor, keys: Tensor, values: Tensor, k: int, widths: tuple[int, ...]) -> Tensor:
    """H of one row, by a loop over parts and a sort."""
    scores = torch.zeros(len(keys))
    for place, width in enumerate(widths):
        low = sum(widths[:place])
        scores += keys[:, low : low + width] @ query[low : low + width] / width**0.5
    best = scores.argsort(descending=True)[:k]
    return scores[best].softmax(0) @ values[best]


@pytest.mark.parametrize("k", [1, 2, 4, 50])
def test_interest_equals_a_loop_over_rows(k: int) -> None:
    found, rows = twin(search_k=k), batch()
    vectors = found.look_up(rows, found.inputs)
    query, keys = found.matched(0, vectors, 6)
    target, values = found.represented(0, vectors, 6)
    (reading,) = found.readings(vectors, 6)
    assert_close(reading.target, target)
    interest = reading.found(k).interest()
    for row in range(6):
        of_row = slice(int(keys.offsets[row]), int(keys.offsets[row + 1]))
        expected = naive_interest(query[row], keys.values[of_row], values[of_row], k, (8, 6))
        assert_close(interest[row], expected)


def test_search_keeps_only_events_of_the_row_when_there_are_fewer_than_k() -> None:
    found, rows = twin(search_k=4), batch()
    kept = found.search(rows)
    history = kept.jagged("history")
    assert history.lengths.tolist() == [min(length, 4) for length in LENGTHS]
    for row in range(6):
        assert set(padded(history, row).tolist()) <= set(padded(rows.jagged("history"), row).tolist())


def test_search_and_step_score_alike() -> None:
    """`logits` looks up what a search kept, a training step looks up everything: the same logits."""
    found, rows = twin(search_k=3), batch()
    vectors = found.look_up(rows, found.inputs)
    whole = found.logits_of([one.found(3) for one in found.readings(vectors, 6)], vectors, rows, found.head)
    assert_close(found.logits(rows), whole[:, 0])


def test_search_of_as_many_as_there_are_is_soft_attention() -> None:
    found = twin(search_k=max(LENGTHS))
    vectors = found.look_up(batch(), found.inputs)
    (reading,) = found.readings(vectors, 6)
    assert_close(reading.found(max(LENGTHS)).interest(), reading.interest())


def test_empty_history_has_no_interest() -> None:
    found = twin()
    vectors = found.look_up(batch(), found.inputs)
    assert not found.readings(vectors, 6)[0].interest()[LENGTHS.index(0)].any()


def test_scores_do_not_depend_on_other_rows_or_on_the_order_of_events() -> None:
    found, rows = twin(search_k=3), batch()
    whole = found.logits(rows)
    assert_close(torch.cat([found.logits(rows.select(torch.tensor([row]))) for row in range(6)]), whole)
    owners = owners_of(rows.jagged("history").offsets, sum(LENGTHS))
    turned = (-torch.arange(len(owners)) + 1000 * owners).argsort()  # each row's events, the last first
    columns = {
        name: column.with_values(column.values[turned]) if isinstance(column, Jagged) else column
        for name, column in rows.features.items()
    }
    assert_close(found.logits(Batch(features=columns)), whole)


@pytest.mark.parametrize(("target_aware", "width"), [(True, 2), (False, 1)])
def test_target_aware_vectors_are_products_with_the_target(target_aware: bool, width: int) -> None:
    found = twin(target_aware=target_aware, batch_norm=False, features=("item", "history"))
    head = found.head.deep[0]
    assert isinstance(head, nn.Linear)
    assert head.in_features == 4 + width * 4


def test_loss_adds_the_auxiliary_one_by_its_weight() -> None:
    losses = [twin(auxiliary_weight=weight).row_losses(batch(), STEP) for weight in (0.0, 0.5, 2.0)]
    assert_close(losses[2] - losses[0], 4 * (losses[1] - losses[0]))
    assert bool((losses[2] > losses[0]).all())


def test_every_parameter_is_trained() -> None:
    found = twin(projections=True).train()
    found.row_losses(batch(), STEP).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in found.parameters())


def test_projections_that_are_the_identity_change_nothing() -> None:
    plain, projected = twin(), twin(projections=True)
    projected.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(projected.logits(batch()), plain.logits(batch()))
    of_group = projected.projections[0]
    assert isinstance(of_group, Projections)
    for layer in (*of_group.queries, *of_group.keys, of_group.value):
        nn.init.eye_(layer.weight)
    assert_close(projected.logits(batch()), plain.logits(batch()))

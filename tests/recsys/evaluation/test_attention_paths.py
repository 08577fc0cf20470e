import pytest
import torch
from torch.testing import assert_close

from recsys.evaluation.attention_paths import Attentive, attended_features, attentive, paths_of, weights_of
from recsys.models.twin import SearchedAttention
from tests.recsys.models import aligned_world
from tests.recsys.models.aligned_world import LENGTHS, batch
from tests.recsys.models.test_dare import dare
from tests.recsys.models.test_twin import twin

MODELS = ("din", "din_public", "twin", "projected", "dare")


def model(name: str) -> Attentive:
    if name.startswith("din"):
        form = "public" if name == "din_public" else "paper"
        return attentive(aligned_world.model("din", options={"form": form, "hidden": (6,)}), "din").eval()
    made = dare(search_k=3) if name == "dare" else twin(search_k=3, projections=name == "projected")
    return attentive(made, name).eval()


@pytest.mark.parametrize("name", MODELS)
def test_two_readings_give_the_models_logits(name: str) -> None:
    found = model(name)
    assert_close(paths_of(found, batch()).logits, found.logits(batch()))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_both_paths_sum_to_the_whole(name: str) -> None:
    """Of each table's rows; attention tables of DARE are read by attention alone."""
    found = model(name)
    named = dict(found.collection.backend.named_parameters())
    whole = torch.autograd.grad(found.logits(batch()).square().sum(), list(named.values()), allow_unused=True)
    paths = paths_of(found, batch())
    sides = (paths.attention, paths.representation)
    leaves = [leaf for side in sides for leaf in side.values()]
    parts = iter(torch.autograd.grad(paths.logits.square().sum(), leaves, allow_unused=True))
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for side, renamed in zip(sides, (paths.names, {}), strict=True):
        for feature in side:
            key = found.collection.table_key(renamed.get(feature, feature))
            column = batch().features[feature]
            ids = column if isinstance(column, torch.Tensor) else column.values
            if (gradient := next(parts)) is not None and key is not None:
                sums[key].index_add_(0, ids, gradient)
    for (table, total), expected in zip(sums.items(), whole, strict=True):
        assert_close(total, torch.zeros_like(total) if expected is None else expected, msg=table, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["din_public", "twin", "dare"])
def test_weights_of_a_softmax_sum_to_one(name: str) -> None:
    weights = weights_of(model(name), batch(), 0)
    sums = torch.stack([row.sum() for row in weights.split(list(LENGTHS))])
    assert_close(sums, (torch.tensor(LENGTHS) > 0).float())


def test_weights_of_a_hard_search_are_zero_for_what_it_left() -> None:
    options = {"form": "public", "search": "category", "search_k": 2, "hidden": (6,)}
    found, rows = attentive(aligned_world.model("din", options=options), "din").eval(), batch()
    history, weights = rows.jagged("history_category"), weights_of(found, rows, 0)
    for row, (events, own) in enumerate(
        zip(history.values.split(list(LENGTHS)), weights.split(list(LENGTHS)), strict=True)
    ):
        same = (events == rows.ids("category")[row]).nonzero()[:, 0][-2:]
        assert own.nonzero()[:, 0].tolist() == same.tolist()
        assert float(own.sum()) == pytest.approx(float(len(same) > 0))


def test_weights_of_a_search_are_those_that_make_the_interest() -> None:
    found = model("dare")
    assert isinstance(found, SearchedAttention)
    vectors = found.look_up(batch(), found.inputs)
    _, values = found.represented(0, vectors, 6)
    weighted = (weights_of(found, batch(), 0)[:, None] * values).split(list(LENGTHS))
    interest = found.readings(vectors, 6)[0].found(3).interest()
    assert_close(torch.stack([row.sum(0) for row in weighted]), interest)
    assert (weights_of(found, batch(), 0) > 0).sum() == sum(min(length, 3) for length in LENGTHS)


def test_model_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="model 'base' has no target attention; din, twin and dare have"):
        attentive(aligned_world.model("base"), "base")
    assert "history_age" in attended_features(model("twin"))

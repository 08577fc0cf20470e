"""`Ranker.candidate_logits` of every model that reads histories: the logits of rows that each have the history."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from features.batch import Batch, Jagged
from recsys.models import attention, interface
from recsys.models.interface import Ranker
from recsys.models.twin import SearchedAttention
from tests.recsys.models import aligned_world
from tests.recsys.models.test_dare import dare

SEARCHED = {"hidden": (6,), "auxiliary_hidden": (5,), "search_k": 3}
MODELS: dict[str, dict[str, Any]] = {
    "base": {},
    "base, mean": {"pooling": "mean"},
    "din": {},
    "din, public": {"form": "public", "activation": "dice", "attention_hidden": (6, 5, 4)},
    "din, search": {"search": "category", "search_k": 2},
    "dcn": {},
    "twin": SEARCHED,
    "twin, projections": SEARCHED | {"projections": True},
    "twin, no target": SEARCHED | {"target_aware": False},
    "dare": {},
}
SEQUENCES = ("history", "history_category", "history_action", "history_age")


def made(name: str) -> Ranker:
    model = dare(search_k=3) if name == "dare" else aligned_world.model(name.partition(",")[0], options=MODELS[name])
    return model.eval()


def asked(length: int) -> tuple[Batch, Batch]:
    """Six candidates of one user, and a history that they share."""
    generator = torch.Generator().manual_seed(length)
    item = torch.randint(0, 13, (length,), generator=generator)  # 0: an unknown one
    columns = {
        "history": item,
        "history_category": item % 4 + 1,
        "history_action": torch.randint(0, 4, (length,), generator=generator),
        "history_age": torch.arange(length, 0, -1).clamp(max=9),
    }
    offsets = torch.tensor([0, length])
    rows = aligned_world.batch().features
    return (
        Batch(features={name: column for name, column in rows.items() if name not in SEQUENCES}),
        Batch(features={name: Jagged(values=values, offsets=offsets) for name, values in columns.items()}),
    )


def repeated(rows: Batch, history: Batch) -> Batch:
    return Batch(features={**rows.features, **history.select(torch.zeros(len(rows), dtype=torch.int64)).features})


@pytest.mark.parametrize("length", [0, 1, 2, 3, 9, 400])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_candidates_are_scored_as_rows_of_their_own(name: str, length: int) -> None:
    model, (rows, history) = made(name), asked(length)
    assert_close(model.candidate_logits(rows, history), model.logits(repeated(rows, history)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["twin", "twin, projections", "dare"])
@torch.no_grad()
def test_keys_at_hand_stand_for_lookups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (rows, history) = made(name), asked(400)
    found = model.event_keys(history)["past"]
    assert (found.vectors.shape, found.precision) == ((400, 8), "float32")
    expected = model.candidate_logits(rows, history)
    read: list[str] = []
    whole = model.collection.forward

    def forward(*batches: Batch, **options: Any) -> Any:
        read.extend(name for batch in batches[1:] for name in batch.features)
        return whole(*batches, **options)

    monkeypatch.setattr(model.collection, "forward", forward)
    assert torch.equal(model.candidate_logits(rows, history, {"past": found.vectors}), expected)
    suffix = "-attention" if name == "dare" else ""
    assert read == [f"history_action{suffix}", f"history_age{suffix}"]


def test_keys_are_of_groups_whose_pairs_are_all_there() -> None:
    model, (_, history) = made("dare"), asked(3)
    for missing in ("history", "history_category"):
        rest = {name: column for name, column in history.features.items() if name != missing}
        assert model.event_keys(Batch(features=rest)) == {}


@pytest.mark.parametrize("features", [("item", "history"), ("price", "history_age", "history_action")])
@torch.no_grad()
def test_histories_of_one_part_are_searched(features: tuple[str, ...]) -> None:
    model, (rows, history) = aligned_world.model("twin", features=features, options=SEARCHED).eval(), asked(50)
    assert_close(model.candidate_logits(rows, history), model.logits(repeated(rows, history)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_values_are_looked_up_of_found_events_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (rows, history) = made("dare"), asked(400)
    assert isinstance(model, SearchedAttention)
    looked_up = model.look_up
    sizes: list[int] = []

    def counted(batch: Batch, *rest: Any) -> Any:
        sizes.append(len(batch.jagged("history").values))
        return looked_up(batch, *rest)

    monkeypatch.setattr(model, "look_up", counted)
    model.candidate_logits(rows, history)
    assert sizes == [6 * 3]


@pytest.mark.parametrize(("name", "module"), [("dcn", interface), ("din, search", interface), ("din", attention)])
@torch.no_grad()
def test_chunks_of_candidates_change_nothing(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (rows, history) = made(name), asked(9)
    whole = model.candidate_logits(rows, history)
    monkeypatch.setattr(module, "EVENTS_AT_ONCE", 20)
    assert_close(model.candidate_logits(rows, history), whole)


@pytest.mark.parametrize("name", ["base", "din"])
@torch.no_grad()
def test_history_is_looked_up_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (rows, history) = made(name), asked(40)
    sizes: dict[str, int] = {}
    whole = model.collection.lookup

    def lookup(requests: Any) -> Any:
        sizes.update({name: len(ids) for name, ids in requests.values()})
        return whole(requests)

    monkeypatch.setattr(model.collection, "lookup", lookup)
    model.candidate_logits(rows, history)
    assert sizes == {"user": 6, "item": 6, "category": 6} | dict.fromkeys(SEQUENCES, 40)


def test_models_without_search_have_no_keys() -> None:
    assert made("base").event_keys(asked(3)[1]) == {}

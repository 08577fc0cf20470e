from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from features.spec import FeatureSchema
from recsys.config import ModelConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.store import Normal
from recsys.models import make_model, table_encoder
from recsys.models import twin as twin_module
from recsys.models.dare import DARE
from recsys.models.interface import Vectors
from recsys.models.ragged import segment_softmax
from recsys.models.twin import TWIN
from recsys.phases import Step
from tests.recsys.models import aligned_world
from tests.recsys.models.aligned_world import SCHEMA, batch

STEP = Step(seed=0, phase="train", epoch=0, index=0)
VALUES, ATTENTION = "ids", "attention"


def dare(attention_dim: int = 4, **options: object) -> DARE:
    """Over the aligned world, tables plain and without an optimizer: values of width 4 (ids) and 3, attention apart."""
    section = ModelConfig(name="dare", options={"hidden": (6,), "auxiliary_hidden": (5,), **options})
    read = table_encoder(section, aligned_world.encoder())
    specs = {
        "ids": DenseTable(embedding_dim=4, init=Normal(std=1.0)),
        "actions": DenseTable(embedding_dim=4, init=Normal(std=1.0)),
        "attention": DenseTable(embedding_dim=attention_dim, init=Normal(std=1.0)),
    }
    used = {name: specs[name] for name in dict.fromkeys(spec.table for spec in read.schema.inputs) if name}
    collection = EmbeddingCollection(read, used, backend="plain")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = make_model(section, aligned_world.encoder(), collection)
    assert isinstance(made, DARE)
    return made


def gradients(found: DARE, loss: Tensor) -> dict[str, float]:
    """Specification of a table -> the size of its gradient."""
    named = dict(found.collection.backend.named_parameters())
    sums = dict.fromkeys((VALUES, "actions", ATTENTION), 0.0)
    for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True):
        sums[name.partition("/")[0]] += 0.0 if gradient is None else float(gradient.abs().sum())
    return sums


def detached(found: DARE, chosen: Callable[[str], bool]) -> Callable[..., Vectors]:
    """`look_up` with the vectors of the chosen features cut off from their tables."""
    whole = found.look_up

    def look_up(*arguments: object, **options: object) -> Vectors:
        vectors = whole(*arguments, **options)  # type: ignore[arg-type]
        cut = {
            name: vector.detach() if isinstance(vector, Tensor) else vector.with_values(vector.values.detach())
            for name, vector in vectors.items()
        }
        return {name: cut[name] if chosen(name) else vectors[name] for name in vectors}

    return look_up


def test_tables_have_a_copy_of_what_attention_reads() -> None:
    schema = DARE.table_schema(SCHEMA, DARE.Config())
    names = ("item", "category", "history", "history_category", "history_action", "history_age")
    copies = [spec for spec in schema.inputs if spec.table == ATTENTION]
    assert [spec.name for spec in copies] == [f"{name}-attention" for name in names]
    assert FeatureSchema.from_json(schema.to_json()) == schema
    encoder = aligned_world.encoder().with_schema(schema)
    for name in names:
        assert encoder.num_embeddings(f"{name}-attention") == encoder.num_embeddings(name)


def test_chosen_features_alone_are_copied() -> None:
    schema = DARE.table_schema(SCHEMA, DARE.Config(features=("item", "history")))
    assert [spec.name for spec in schema.inputs if spec.table == ATTENTION] == ["item-attention", "history-attention"]


def test_no_gradient_of_values_reaches_the_attention_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights of attention cut off, what is left is representation: attention tables get nothing."""
    found = dare()
    monkeypatch.setattr(twin_module, "segment_softmax", lambda *given: segment_softmax(*given).detach())
    sizes = gradients(found, found.row_losses(batch(), STEP).mean())
    assert sizes[ATTENTION] == 0
    assert min(sizes[VALUES], sizes["actions"]) > 0


def test_no_gradient_of_attention_reaches_the_tables_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """With values and the target's own vectors cut off, only the weights of attention are left."""
    found = dare()
    monkeypatch.setattr(found, "look_up", detached(found, lambda name: not name.endswith("-attention")))
    sizes = gradients(found, found.row_losses(batch(), STEP).mean())
    assert sizes[VALUES] == sizes["actions"] == 0
    assert sizes[ATTENTION] > 0


def test_search_gives_no_gradient() -> None:
    found = dare(search_k=1, auxiliary_weight=0.0)  # one event has weight 1 whatever its score
    sizes = gradients(found, found.row_losses(batch(), STEP).mean())
    assert sizes[ATTENTION] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("auxiliary_weight", [0.0, 1.0])
def test_with_equal_tables_dare_is_twin(auxiliary_weight: float) -> None:
    features = ("user", "item", "history", "category", "history_category")
    options: dict[str, Any] = {"features": features, "search_k": 3, "auxiliary_weight": auxiliary_weight}
    found = dare(**options)
    twin = aligned_world.model("twin", options={"hidden": (6,), "auxiliary_hidden": (5,), **options})
    assert isinstance(twin, TWIN)
    state = {name: one for name, one in found.state_dict().items() if ".actions." not in name}  # of another width
    twin.load_state_dict(state, strict=False)
    shared = twin.collection.backend.weights()
    for name, weight in found.collection.backend.weights().items():
        if name.startswith("attention."):
            weight.copy_(shared[name.replace("attention.", "ids.")])
    assert_close(found.row_losses(batch(), STEP), twin.row_losses(batch(), STEP))
    assert_close(found.eval().logits(batch()), twin.eval().logits(batch()))


def test_attention_table_of_the_schema_is_shared() -> None:
    found = dare(attention_table="ids", features=("item", "history"))
    assert found.collection.table_key("item-attention") == found.collection.table_key("item")


@pytest.mark.parametrize("attention_dim", [1, 7])
def test_attention_may_have_another_width(attention_dim: int) -> None:
    found = dare(attention_dim=attention_dim)
    vectors = found.look_up(batch(), found.inputs)
    query, _ = found.matched(0, vectors, 6)
    target, _ = found.represented(0, vectors, 6)
    assert query.shape == (6, 4 * attention_dim)
    assert target.shape == (6, 4 * 4)
    assert found.logits(batch()).shape == (6,)


def test_served_tables_score_alike() -> None:
    found = dare().eval()
    expected = found.logits(batch())
    found.collection = found.collection.freeze()
    assert_close(found.logits(batch()), expected)

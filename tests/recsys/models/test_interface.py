from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from features.batch import Batch
from features.encoder import Encoder
from features.spec import parse_schema
from recsys.laws.checkerboard import NUM_ITEMS, Checkerboard
from recsys.laws.model import STEP, Case, phases_of
from recsys.models.dcn import DCN
from recsys.models.interface import (
    ClosedForm,
    PhaseSettings,
    Ranker,
    Recommender,
    Retriever,
    Vectors,
    chosen_inputs,
    retrieval_inputs,
)
from recsys.models.mf import MatrixFactorization
from recsys.phases import Until

SCHEMA = parse_schema(
    {
        "name": "shop",
        "user": "user",
        "item": "item",
        "features": {
            "user": {"table": "ids"},
            "item": {"table": "ids"},
            "device": {"table": "ids"},
            "age": {"kind": "dense", "entity": "user"},
        },
        "sequences": {"past": {"of": {"history": "item"}, "max_length": 5}},
        "labels": {"click": {}, "buy": {}},
    },
    where="test",
)


def mf(**options: object) -> tuple[MatrixFactorization, Checkerboard]:
    case = Case(name="mf", options=options, inputs=("user", "item"))
    model = case.build(case.world())
    assert isinstance(model, MatrixFactorization)
    return model, case.world()


def dcn(**options: object) -> tuple[DCN, Checkerboard]:
    case = Case(name="dcn", options=options, inputs=("user", "item"))
    model = case.build(case.world())
    assert isinstance(model, DCN)
    return model, case.world()


def changed(encoder: Encoder, **update: object) -> Encoder:
    """An encoder whose schema differs in the named fields."""
    return Encoder(encoder.schema.model_copy(update=update), encoder.vocabularies)


@pytest.mark.parametrize("kind", [Ranker, Retriever, Recommender, ClosedForm])
def test_interface_refuses_a_class_without_its_methods(kind: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Unfinished", (kind,), {})()


def test_inputs_are_all_of_the_schema_unless_named() -> None:
    assert [spec.name for spec in chosen_inputs(SCHEMA, ())] == ["user", "item", "device", "age", "history"]
    assert [spec.name for spec in chosen_inputs(SCHEMA, ("history", "item"))] == ["history", "item"]
    with pytest.raises(ValueError, match=r"no feature 'histroy', did you mean 'history'"):
        chosen_inputs(SCHEMA, ("histroy",))
    with pytest.raises(ValueError, match=r"must be unique, \['item'\] stand twice"):
        chosen_inputs(SCHEMA, ("item", "user", "item"))


def test_retrieval_inputs_are_sorted_into_sides_without_event_features() -> None:
    users, items = retrieval_inputs(SCHEMA, ())
    assert [spec.name for spec in users] == ["user", "age", "history"]
    assert [spec.name for spec in items] == ["item"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [(("user", "item", "device"), "'device' belongs to events"), (("history",), "the item side has no feature")],
)
def test_retrieval_inputs_refuse_what_cannot_serve(names: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        retrieval_inputs(SCHEMA, names)


def test_ranker_loss_is_cross_entropy_of_each_row() -> None:
    model, world = dcn()
    batch = world.batch(world.users[:30], world.items[:30])
    p = model.logits(batch).sigmoid()
    expected = torch.where(batch.labels["liked"] > 0, -p.log(), -(1 - p).log())
    assert_close(model.row_losses(batch, STEP), expected)
    assert_close(model(batch), model.logits(batch))


def test_ranker_with_several_labels_adds_their_losses() -> None:
    model, world = dcn()
    liked = world.encoder.schema.labels[0]
    encoder = changed(world.encoder, labels=(liked, liked.model_copy(update={"name": "buy"})))
    both = DCN(encoder, model.collection, DCN.Config(labels=("buy", "liked")))
    batch = world.batch(world.users[:6], world.items[:6])
    batch = replace(batch, labels={"liked": batch.labels["liked"], "buy": torch.ones(6)})
    logits = both.logits(batch)
    assert logits.shape == (6, 2)
    targets = torch.stack([batch.labels["buy"], batch.labels["liked"]], 1)
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    assert_close(both.row_losses(batch, STEP), expected)


def test_ranker_names_labels_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"has no label 'bought'; it has \['liked'\]"):
        dcn(labels=("bought",))
    model, world = dcn()
    batch = Batch(features=world.batch(world.users[:3], world.items[:3]).features)
    with pytest.raises(ValueError, match="the batch has no label 'liked'"):
        model.row_losses(batch, STEP)


def test_phase_reads_the_loader_of_the_settings() -> None:
    model, world = mf()
    (phase,) = phases_of(model, world, epochs=3, batch_size=50)
    batches = list(phase.batches(0, 1))
    assert (phase.name, phase.until.max_epochs) == ("train", 3)
    assert phase.num_batches == -(-len(world.users) // 50)
    assert [position for _, position in batches] == list(range(2, phase.num_batches + 1))


def test_optimizers_hold_dense_parameters_and_no_table_rows() -> None:
    settings = PhaseSettings(batch_size=8, seed=0, until=Until(max_epochs=1), make_optimizer=torch.optim.SGD)
    ids_only, _ = mf()
    assert ids_only.optimizers(settings) == ()
    model, _ = dcn(hidden=(4,))
    (optimizer,) = model.optimizers(settings)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(p) for module in (model.cross, model.deep, model.head) for p in module.parameters()}


def test_item_matrix_does_not_depend_on_the_chunk() -> None:
    case = Case(name="twotower", inputs=("user", "item", "tags", "price"))
    model, world = case.build(case.world()), case.world()
    assert isinstance(model, Retriever)
    assert_close(model.item_matrix(world, chunk_size=3), model.item_matrix(world))
    assert model.item_matrix(world).shape == (NUM_ITEMS, 64)


def test_scorer_keeps_the_weights_of_its_making() -> None:
    model, world = mf()
    scorer, users = model.scorer(world), torch.tensor([3, 1])
    before = scorer(users)
    assert_close(before, model.scores(world, users))
    assert not before.requires_grad
    for store in model.collection.backend.weights().values():
        store.neg_()
    assert_close(model.scores(world, users), before)  # both sides changed sign
    assert_close(scorer(users), -before)  # its item vectors are the old ones


def test_retriever_needs_user_and_item_in_the_schema() -> None:
    model, world = mf()
    with pytest.raises(ValueError, match="needs `user` and `item`"):
        MatrixFactorization(changed(world.encoder, user=""), model.collection, MatrixFactorization.Config())


def test_several_vectors_per_user_score_by_the_best() -> None:
    model, world = mf(similarity="dot")

    class Mirrored(MatrixFactorization):
        def encode_users(self, vectors: Vectors, batch: Batch) -> Tensor:
            one = super().encode_users(vectors, batch)
            return torch.cat([one, -one], dim=1)

    mirrored = Mirrored(world.encoder, model.collection, Mirrored.Config(similarity="dot"))
    users = torch.tensor([0, 5])
    assert_close(mirrored.scores(world, users), model.scores(world, users).abs())

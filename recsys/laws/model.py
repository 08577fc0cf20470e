"""The laws that every model obeys, over the checkerboard, a world small enough to know all answers.

Each law is a function of a `Case` (a model's name and settings) that raises `AssertionError`, saying what was broken.
The tests run them over `CASES`, which has every model of ours; `recsys laws` runs them over a user's.
Not here: whether a model is good on real data (its config's header says), nor losses against naive loops (tests).

Shapes: B rows, n items, M vectors per user, D their width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from features.batch import Batch, Jagged
from recsys.config import ModelConfig
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import DenseTable
from recsys.embedding.optimizers import Adam
from recsys.laws.checkerboard import INPUTS, NUM_USERS, Checkerboard, held_out_item
from recsys.models import Model, make_model, model_class, table_encoder
from recsys.models.interface import ClosedForm, PhaseSettings, Ranker, Retriever
from recsys.phases import Phase, Step, Until

LEARNING_RATE = 0.03
EPOCHS = 15
USERS = torch.arange(NUM_USERS)
STEP = Step(seed=0, phase="law", epoch=0, index=0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model on trial.

    name, options: as in a config. inputs: the features that the world's schema has. embedding_dim: of its tables.
    interacts: whether its score of a user and an item can depend on the pair; if not, it need not learn the world.
    """

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    inputs: Sequence[str] = INPUTS
    embedding_dim: int = 8
    interacts: bool = True

    def world(self) -> Checkerboard:
        """The rows that the model trains on: the liked ones for all but rankers."""
        world = Checkerboard.of(self.inputs)
        return world if issubclass(model_class(self.name), Ranker) else world.positives()

    def build(self, world: Checkerboard, seed: int = 0) -> Model:
        """A fresh model over a plain collection with Adam."""
        section = ModelConfig(name=self.name, options=self.options)
        if issubclass(model_class(self.name), ClosedForm):
            return make_model(section)
        read = table_encoder(section, world.encoder)
        names = dict.fromkeys(spec.table for spec in read.schema.inputs if spec.table is not None)
        tables = {name: DenseTable(embedding_dim=self.embedding_dim) for name in names}
        optimizer = Adam(lr=LEARNING_RATE)
        collection = EmbeddingCollection(read, tables, backend="plain", optimizer=optimizer, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make_model(section, world.encoder, collection)

    def trained(self, world: Checkerboard, epochs: int = EPOCHS, batch_size: int = 64) -> Model:
        """The model after `epochs`, or after `fit` if it is closed-form."""
        model = self.build(world)
        if isinstance(model, ClosedForm):
            model.fit(world.interactions())
            return model
        for phase in phases_of(model, world, epochs, batch_size):
            for epoch in range(epochs):
                for batch, position in phase.batches(epoch, 0):
                    update(phase, batch, Step(seed=0, phase=phase.name, epoch=epoch, index=position - 1))
        return model.eval()


Law = Callable[[Case], None]

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case(name="popularity", interacts=False),
        Case(name="itemknn"),
        Case(name="p3"),
        Case(name="mf", options={"num_negatives": 8}, inputs=("user", "item")),
        Case(name="twotower", options={"layers": (16, 8)}),
        Case(name="dcn", options={"hidden": (16,)}),
        Case(name="deepfm", options={"hidden": (16,)}),
        Case(name="shared_bottom", options={"hidden": (16,), "tower": (8,)}),
        Case(name="mmoe", options={"num_experts": 2, "hidden": (16,), "tower": (8,)}),
        Case(name="base", options={"hidden": (16,)}),
        Case(name="din", options={"hidden": (16,), "attention_hidden": (8,)}),
        Case(name="twin", options={"hidden": (16,), "auxiliary_hidden": (8,), "projections": True}),
        Case(name="dare", options={"hidden": (16,), "auxiliary_hidden": (8,)}),
        Case(name="lr", embedding_dim=1, interacts=False),
    )
}


def laws_of(name: str) -> tuple[Law, ...]:
    """The laws that bind the model of that name."""
    model = model_class(name)
    if issubclass(model, ClosedForm):
        return (learns_the_checkerboard, *CLOSED_FORM_LAWS)
    kind = RETRIEVER_LAWS if issubclass(model, Retriever) else ()
    return (learns_the_checkerboard, *TRAINED_LAWS, *kind)


# --- laws of models that are trained ---


def overfits_eight_examples(case: Case) -> None:
    """Of eight rows, all of other users and items, labels are told apart, or each user's item ranks first."""
    world = case.world()
    items = torch.tensor([4, 6, 5, 7, 9, 8, 10, 11] if issubclass(model_class(case.name), Ranker) else range(4, 12))
    eight = world.rows(torch.cat([_row(world, user, int(item)) for user, item in enumerate(items)]))
    model = case.trained(eight, epochs=200, batch_size=8)
    if isinstance(model, Ranker):
        logits = model.logits(eight.batch(eight.users, eight.items)).flatten()
        told_apart = bool(((logits > 0) == (eight.liked > 0)).all())
        _require(told_apart, f"labels {eight.liked.tolist()}, logits {logits.tolist()}")
    elif isinstance(model, Retriever):
        scores = model.scores(eight, eight.users)[:, eight.items]
        _require(scores.argmax(1).tolist() == list(range(8)), f"a user's own item is not first: {scores.tolist()}")


def every_parameter_is_trained(case: Case) -> None:
    """One step of each phase together give every dense parameter a gradient and change every store of the tables."""
    world = case.world()
    model = _trainable(case, world)
    before = {name: store.clone() for name, store in model.collection.backend.weights().items()}
    for phase in phases_of(model, world, epochs=1, batch_size=len(world.users)):
        batch, _ = next(phase.batches(0, 0))
        phase.loss(batch, STEP).mean().backward()
    for name, parameter in model.named_parameters():
        _require(parameter.grad is not None and bool(parameter.grad.any()), f"parameter {name!r} has no gradient")
    for name, store in model.collection.backend.weights().items():
        _require(not torch.equal(store, before[name]), f"store {name!r} is not updated")


def scores_do_not_depend_on_the_batch(case: Case) -> None:
    """A row's score is the same in any order, alone, and beside rows with longer lists."""
    world = case.world()
    model = _trainable(case, world).eval()
    batch = world.batch(world.users[:24], world.items[:24])
    order = torch.arange(24).flip(0)
    scores = _row_scores(model, batch)
    _close(_row_scores(model, batch.select(order)), scores[order], "in another order")
    alone = torch.cat([_row_scores(model, batch.select(torch.tensor([row]))) for row in range(24)])
    _close(alone, scores, "alone")


def loss_is_a_function_of_batch_and_step(case: Case) -> None:
    """The same batch at the same step costs the same again: one finite number per row."""
    world = case.world()
    model = _trainable(case, world)
    for phase in phases_of(model, world, epochs=1, batch_size=32):
        batch, position = next(phase.batches(0, 0))
        losses = phase.loss(batch, STEP)
        _require(position == 1 and losses.shape == (len(batch),), f"the loss has shape {tuple(losses.shape)}, not [B]")
        _require(bool(losses.isfinite().all()), f"losses are not finite: {losses.tolist()}")
        _require(torch.equal(losses, phase.loss(batch, STEP)), "the same batch at the same step has another loss")


def empty_lists_are_harmless(case: Case) -> None:
    """A user without a history and an item without tags give finite losses and gradients."""
    world = case.world()
    model = _trainable(case, world)
    for phase in phases_of(model, world, epochs=1, batch_size=32):
        batch, _ = next(phase.batches(0, 0))
        losses = phase.loss(_without_lists(batch), STEP)
        losses.mean().backward()
        _require(bool(losses.isfinite().all()), f"losses are not finite: {losses.tolist()}")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for name, tensor in (gradients | model.collection.backend.weights()).items():
        _require(bool(tensor.isfinite().all()), f"{name!r} is not finite after the step")


TRAINED_LAWS: tuple[Law, ...] = (
    overfits_eight_examples,
    every_parameter_is_trained,
    scores_do_not_depend_on_the_batch,
    loss_is_a_function_of_batch_and_step,
    empty_lists_are_harmless,
)


def scores_are_inner_products(case: Case) -> None:
    """The score of a user and an item is the largest inner product of the user's vectors and the item's."""
    world = case.world()
    model = _trainable(case, world).eval()
    assert isinstance(model, Retriever)
    user_batch, item_batch = world.user_batch(USERS), world.item_batch(torch.arange(world.num_items))
    with torch.no_grad():
        users, items = model.user_vectors(user_batch), model.item_matrix(world)
        both_users, both_items = model.both_vectors(user_batch, item_batch)
    naive = torch.tensor([[max(float(vector @ item) for vector in user) for item in items] for user in users])
    _close(model.scores(world, USERS), naive, "by single inner products")
    _close(both_users, users, "when users and items are looked up together")
    _close(both_items, items, "when users and items are looked up together")


RETRIEVER_LAWS: tuple[Law, ...] = (scores_are_inner_products,)


# --- laws of closed-form models ---


def new_user_is_served_by_history(case: Case) -> None:
    """A history scores the same whoever has it: as a user of the training rows, or as a new one in another batch."""
    world = case.world()
    model = case.trained(world)
    assert isinstance(model, ClosedForm)
    histories = world.interactions()
    alone = torch.cat([model.history_scores(histories[user]) for user in range(NUM_USERS)])
    _close(alone, model.scores(world, USERS), "one history at a time")
    _require(alone.dtype == torch.float32 and alone.shape == histories.shape, f"scores are {alone.dtype} {alone.shape}")


def tensors_are_the_whole_model(case: Case) -> None:
    """A model that takes another's tensors gives its scores bit for bit, and one without any refuses to score."""
    world = case.world()
    fitted, fresh = case.trained(world), case.build(world)
    assert isinstance(fitted, ClosedForm)
    assert isinstance(fresh, ClosedForm)
    try:
        fresh.history_scores(world.interactions())
    except ValueError:
        fresh.load_tensors({name: tensor.clone() for name, tensor in fitted.tensors().items()})
    else:
        raise AssertionError("a model that was not fitted gives scores")
    same = torch.equal(fresh.scores(world, USERS), fitted.scores(world, USERS))
    _require(same, "scores differ after tensors() and load_tensors()")


CLOSED_FORM_LAWS: tuple[Law, ...] = (new_user_is_served_by_history, tensors_are_the_whole_model)


# --- the law of all models ---


def learns_the_checkerboard(case: Case) -> None:
    """Of its two held-out items, nine users in ten are given the one that they like first; cases that do not interact
    need only give finite scores.
    """
    world = case.world()
    model = case.trained(world)
    liked, disliked = held_out_item(USERS, liked=True), held_out_item(USERS, liked=False)
    if isinstance(model, Ranker):
        with torch.no_grad():
            margins = model.logits(world.batch(USERS, liked)) - model.logits(world.batch(USERS, disliked))
    else:
        scores = model.scores(world, USERS)
        margins = scores[USERS, liked] - scores[USERS, disliked]
    _require(bool(margins.isfinite().all()), f"scores are not finite: {margins.tolist()}")
    share = float((margins > 0).float().mean())
    _require(share >= 0.9 or not case.interacts, f"only {share:.0%} of users are given the item that they like first")


# --- how the laws train and compare ---


def phases_of(model: Ranker | Retriever, world: Checkerboard, epochs: int, batch_size: int) -> list[Phase]:
    """The model's phases over the world's rows, with Adam."""
    settings = PhaseSettings(
        batch_size=batch_size,
        seed=0,
        until=Until(max_epochs=epochs),
        make_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATE),
    )
    return model.phases(world, settings)


def update(phase: Phase, batch: Batch, step: Step) -> None:
    """One step, as the trainer takes it on one rank without clipping."""
    for optimizer in phase.optimizers:
        optimizer.zero_grad()
    weights = batch.row_weights()
    objective = (phase.loss(batch, step) * weights).sum() / weights.sum()
    if phase.penalty is not None:
        objective = objective + phase.penalty(batch, step)
    objective.backward()
    for optimizer in phase.optimizers:
        optimizer.step()


def _trainable(case: Case, world: Checkerboard) -> Ranker | Retriever:
    model = case.build(world)
    assert isinstance(model, Ranker | Retriever), "this law is for models that are trained"
    return model


def _row(world: Checkerboard, user: int, item: int) -> Tensor:
    return ((world.users == user) & (world.items == item)).nonzero()[:, 0]


@torch.no_grad()
def _row_scores(model: Ranker | Retriever, batch: Batch) -> Tensor:
    """The score of each row's user and item, [B]."""
    if isinstance(model, Ranker):
        return model.logits(batch)
    users, items = model.both_vectors(batch, batch)
    return (users * items[:, None]).sum(2).amax(1)


def _without_lists(batch: Batch) -> Batch:
    none = Jagged.from_lists([[]] * len(batch))
    features = {name: none if isinstance(column, Jagged) else column for name, column in batch.features.items()}
    return Batch(features=features, labels=batch.labels, row_ids=batch.row_ids)


def _close(found: Tensor, expected: Tensor, where: str) -> None:
    gap = float((found - expected).abs().max())
    _require(gap <= 1e-5, f"scores {where} differ by {gap:.2g}")


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise AssertionError(broken)

"""The three kinds of model, and what each hands the trainer: `Ranker`, `Retriever`, `Recommender`.

A `Ranker` scores a given user and item. A `Retriever` gives users and items vectors whose inner product is the score,
so that an index can search the catalogue. A `Recommender` scores the whole catalogue for a user: every retriever does,
and so do the closed-form models (`ClosedForm`), which have no vectors and no training loop.

Not here: the loop (`recsys.training`), exact or approximate search (`recsys.retrieval`), the losses (`losses.py`).

Shapes: B rows, T tasks, M vectors per user, D their width, n items (of the catalogue, or of one step), R ranks' rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from features.batch import Batch, Jagged
from features.encoder import Encoder
from features.spec import FeatureSchema, FeatureSpec
from features.values import Value
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.precision import Precision
from recsys.models.options import ModelOptions, RankerOptions, RetrieverOptions
from recsys.models.retrieval_loss import Gather, RetrievalLoss, own_rows, part, scores_of
from recsys.models.view import DataView
from recsys.phases import Phase, Step, Until

Vectors = Mapping[str, Tensor | Jagged]
EVENTS_AT_ONCE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """What the run decides about a model's phases.

    batch_size: rows of a step over all ranks. make_optimizer: parameters -> the optimizer of the dense part.
    gather(rows, row_ids): rows [B, ...] of this rank and their `Batch.row_ids` -> rows [R, ...] of all ranks, with
        gradient (`recsys.distributed.gather_rows`).
    """

    batch_size: int
    seed: int
    until: Until
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    rank: int = 0
    world_size: int = 1
    gather: Gather = own_rows


@dataclass(frozen=True, kw_only=True)
class EventKeys:
    """vectors: [N, W], of N events. precision: of the tables that they were read from, float32 where those differ."""

    vectors: Tensor
    precision: Precision


class EmbeddingModel(nn.Module):
    """What rankers and retrievers share: a schema's inputs, read through one collection."""

    Config: ClassVar[type[ModelOptions]] = ModelOptions

    @classmethod
    def table_schema(cls, schema: FeatureSchema, config: ModelOptions) -> FeatureSchema:
        """The schema that the model's tables are built from: the data's, unless a subclass adds features to it.

        A model that reads one feature through several tables adds copies of it under other names, in other tables; it
        gives the collection their ids itself. `collection.schema` is then this one, `schema` stays the data's.
        """
        return schema

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: ModelOptions) -> None:
        super().__init__()
        self.schema: FeatureSchema = encoder.schema
        self.collection = collection
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the tables are, and batches must be."""
        tensors = [*self.collection.backend.weights().values(), *self.parameters()]
        return tensors[0].device if tensors else torch.device("cpu")

    def optimizers(self, settings: PhaseSettings) -> tuple[torch.optim.Optimizer, ...]:
        """One over the dense parameters, those of compressed tables included; none where there are none.

        Rows of tables are not among them, since a collection updates its own within `backward()`; only those of a
        collection without an optimizer are ordinary parameters.
        """
        parameters = list(self.parameters())
        return (settings.make_optimizer(parameters),) if parameters else ()


class Ranker(EmbeddingModel, ABC):
    """Scores rows: the logit of each label for a user and an item, with everything known about the row."""

    Config: ClassVar[type[RankerOptions]] = RankerOptions
    several_labels: ClassVar[bool] = False  # whether a model without `labels` predicts all of the schema's

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: RankerOptions) -> None:
        super().__init__(encoder, collection, config)
        self.inputs = chosen_inputs(self.schema, config.features)
        self.labels = chosen_labels(self.schema, config.labels, self.several_labels)
        self._loss_weights = _loss_weights(self.labels, config)

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Scores before the sigmoid: [B], or [B, T] with several labels."""

    def forward(self, batch: Batch) -> Tensor:
        """The same as `logits`."""
        return self.logits(batch)

    def row_losses(self, batch: Batch, step: Step) -> Tensor:
        """The loss of each row, [B]."""
        return self.losses(self.logits(batch), batch)

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy of each row of logits, summed over the labels, [B], with the weights of the options.

        A positive_weight w makes w times the true odds the best answer. So the loss is taken at logit + log w, and the
        logit itself, which is what is served, aims at the true odds: the weight moves attention, not calibration.
        """
        missing = [name for name in self.labels if name not in batch.labels]
        if missing:
            raise ValueError(f"the batch has no label {missing[0]!r}; it has {sorted(batch.labels)}")
        targets = torch.stack([batch.labels[name] for name in self.labels], dim=1)  # [B, T]
        self._check_targets(targets)
        logits = logits.float().reshape(targets.shape)  # under autocast a loss is still of float32
        weights = self._loss_weights.to(logits)  # [2, T]
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits + weights[0].log(), targets, reduction="none", pos_weight=weights[0]
        )
        return (losses * weights[1]).sum(1)

    def _check_targets(self, targets: Tensor) -> None:
        outside = ((targets < 0) | (targets > 1)).nonzero()
        if len(outside):
            row, task = outside[0].tolist()
            raise ValueError(
                f"label {self.labels[task]!r} is {float(targets[row, task]):g} in some row, a ranker takes 0..1: say "
                "which values are positive, by `positive` or `positive_from` in the schema's label"
            )

    def phases(self, data: DataView, settings: PhaseSettings) -> list[Phase]:
        """One phase, "train": all rows of `data`, shuffled, with `row_losses`."""
        return [_train_phase(self.row_losses, data, settings, self.optimizers(settings))]

    # --- many candidates for one history ---

    def candidate_logits(self, rows: Batch, history: Batch, keys: Mapping[str, Tensor] | None = None) -> Tensor:
        """`logits` of rows that share one history, [C] or [C, T]: what does not depend on the row may be done once.

        rows: C candidates, with every input but the sequences. history: the sequences, one row. keys: the `event_keys`
        [L, W] of its events that are at hand, by sequence group.
        A model without a way of its own gets the history beside every row, some 2^18 events at a time.
        """
        length = max(
            (len(column.values) for column in history.features.values() if isinstance(column, Jagged)), default=0
        )
        logits = []
        for chunk in torch.arange(len(rows), device=self.device).split(max(1, EVENTS_AT_ONCE // max(1, length))):
            repeated = history.select(torch.zeros_like(chunk))
            logits.append(self.logits(Batch(features={**rows.select(chunk).features, **repeated.features})))
        return torch.cat(logits)

    def event_keys(self, events: Batch) -> dict[str, "EventKeys"]:
        """What `candidate_logits` makes of each event's item alone, by sequence group; none for most models.

        events: sequences of item features, one row. Since it does not depend on who had the event, it can be kept for
        every item of a catalogue (`CatalogueKeys`).
        """
        return {}

    def vectors(self, batch: Batch) -> Vectors:
        """The looked-up vectors of this model's inputs, in one collection call."""
        looked_up: Vectors = self.collection(part(batch, self.inputs))
        return looked_up


class Recommender(ABC):
    """Scores the whole catalogue."""

    @abstractmethod
    def scorer(self, view: DataView) -> Callable[[Tensor], Tensor]:
        """A function: user positions [B] -> scores of all items [B, n], in float32, without gradient.

        What does not depend on the user is computed once, here, with the weights as they stand: ask for a new scorer
        after training on. Users are seen as known at the end of `view`; nothing is masked.
        """

    def scores(self, view: DataView, users: Tensor) -> Tensor:
        """Scores of all items, [B, n], for a few users; for many, keep the `scorer`."""
        return self.scorer(view)(users)


class ClosedForm(Recommender):
    """A recommender that is computed from the interactions, not trained; it scores a history, hence new users too."""

    Config: ClassVar[type[Value]] = Value

    def __init__(self, config: Value) -> None:
        self.config = config
        self._tensors: dict[str, Tensor] | None = None

    @abstractmethod
    def solve(self, interactions: csr_matrix) -> dict[str, Tensor]:
        """Binary interactions [num users, n] -> the model as named tensors."""

    @abstractmethod
    def history_scores(self, histories: csr_matrix) -> Tensor:
        """Binary histories [B, n] -> scores of all items [B, n] float32. Raises ValueError before `fit`."""

    def fit(self, interactions: csr_matrix) -> None:
        """Compute the model from binary interactions [num users, n]."""
        self.load_tensors(self.solve(interactions))

    def tensors(self) -> dict[str, Tensor]:
        """The fitted model as named tensors. Raises ValueError before `fit`."""
        if self._tensors is None:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit or load_tensors first")
        return self._tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a model as `tensors` gave it."""
        self._tensors = dict(tensors)

    def scorer(self, view: DataView) -> Callable[[Tensor], Tensor]:
        """Scores from each user's interactions in `view`."""
        histories = view.interactions()
        return lambda users: self.history_scores(histories[users.cpu().numpy()])


class Retriever(EmbeddingModel, Recommender):
    """Gives users and items vectors; score = max over the user's M vectors of the inner product.

    A subclass says how looked-up vectors become user and item vectors; the looking up, the loss, the phases and the
    scoring of a catalogue are here. The user side reads the user's features and histories, the item side the item's
    features, so a cold user or item has a vector whenever its features do; event features have no place.
    """

    Config: ClassVar[type[RetrieverOptions]] = RetrieverOptions
    config: RetrieverOptions

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: RetrieverOptions) -> None:
        super().__init__(encoder, collection, config)
        if not (self.schema.user and self.schema.item):
            raise ValueError(f"a retriever needs `user` and `item` in schema {self.schema.name!r}")
        self.user_inputs, self.item_inputs = retrieval_inputs(self.schema, config.features)

    @abstractmethod
    def encode_users(self, vectors: Vectors, batch: Batch) -> Tensor:
        """Looked-up vectors (and the batch, for dense features) of users -> their vectors [B, M, D]."""

    @abstractmethod
    def encode_items(self, vectors: Vectors, batch: Batch) -> Tensor:
        """Looked-up vectors (and the batch) of items -> their vectors [n, D]."""

    def user_vectors(self, batch: Batch) -> Tensor:
        """Vectors of users, as an index is asked with, [B, M, D]."""
        users = part(batch, self.user_inputs)
        return self._finished(self.encode_users(self.collection(users), users))

    def item_vectors(self, batch: Batch) -> Tensor:
        """Vectors of items, as an index holds them, [n, D]."""
        items = part(batch, self.item_inputs)
        return self._finished(self.encode_items(self.collection(items), items))

    def both_vectors(self, users: Batch, items: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of users [B, M, D] and of items [n, D] from ONE collection call, as a training step needs."""
        users, items = part(users, self.user_inputs), part(items, self.item_inputs)
        user_rows, item_rows = self.collection(users, items)
        return self._finished(self.encode_users(user_rows, users)), self._finished(self.encode_items(item_rows, items))

    def _finished(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1) if self.config.similarity == "cosine" else vectors

    # --- training ---

    def phases(self, data: DataView, settings: PhaseSettings) -> list[Phase]:
        """One phase, "train", with the loss of the config over all rows of `data`, each of which is a positive."""
        row_losses = RetrievalLoss(self, data, settings.gather)
        return [_train_phase(row_losses, data, settings, self.optimizers(settings))]

    # --- the whole catalogue ---

    @torch.no_grad()
    def item_matrix(self, view: DataView, chunk_size: int = 65536) -> Tensor:
        """Vectors of the whole catalogue, [n, D], `chunk_size` items at a time, with the weights as they stand."""
        chunks = torch.arange(view.num_items).split(chunk_size)
        return torch.cat([self.item_vectors(view.item_batch(chunk).to(self.device)) for chunk in chunks])

    @torch.no_grad()
    def score_users(self, view: DataView, users: Tensor, items: Tensor) -> Tensor:
        """User positions [B] and item vectors [n, D] -> scores [B, n]."""
        return scores_of(self.user_vectors(view.user_batch(users).to(self.device)), items)

    def scorer(self, view: DataView) -> Callable[[Tensor], Tensor]:
        """Scores by the inner products of `item_matrix`, which is computed once, here."""
        items = self.item_matrix(view)
        return lambda users: self.score_users(view, users, items)


def _train_phase(
    loss: Callable[[Batch, Step], Tensor],
    data: DataView,
    settings: PhaseSettings,
    optimizers: tuple[torch.optim.Optimizer, ...],
) -> Phase:
    loader = data.loader(
        settings.batch_size, seed=settings.seed, shuffle=True, rank=settings.rank, world_size=settings.world_size
    )
    return Phase(
        name="train", batches=loader.epoch, num_batches=loader.num_batches, loss=loss, optimizers=optimizers,
        until=settings.until,
    )  # fmt: skip


def chosen_inputs(schema: FeatureSchema, names: Sequence[str]) -> tuple[FeatureSpec, ...]:
    """The named inputs of the schema, all of them for (); ValueError for a name that is unknown or stands twice."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"features of the model must be unique, {twice} stand twice")
    return tuple(schema.feature(name) for name in names) if names else schema.inputs


def retrieval_inputs(
    schema: FeatureSchema, names: Sequence[str]
) -> tuple[tuple[FeatureSpec, ...], tuple[FeatureSpec, ...]]:
    """The inputs of the user side and of the item side; ValueError for a named event feature, or an empty side."""
    for spec in chosen_inputs(schema, names):
        if names and spec.entity == "event":
            raise ValueError(f"feature {spec.name!r} belongs to events; a retriever reads those of users and items")
    users = tuple(spec for spec in chosen_inputs(schema, names) if spec.entity == "user")
    items = tuple(spec for spec in chosen_inputs(schema, names) if spec.entity == "item")
    for side, inputs in (("user", users), ("item", items)):
        if not inputs:
            raise ValueError(f"the {side} side has no feature among {list(names)}")
    return users, items


def chosen_labels(schema: FeatureSchema, names: Sequence[str], several: bool) -> tuple[str, ...]:
    """The labels of these names; of none, all of the schema's where the model is for several, else the first."""
    known = [label.name for label in schema.labels]
    if not known:
        raise ValueError(f"a ranker needs a label, schema {schema.name!r} has none")
    for name in names:
        if name not in known:
            raise ValueError(f"schema {schema.name!r} has no label {name!r}; it has {known}")
    return tuple(names) or tuple(known if several else known[:1])


def _loss_weights(labels: Sequence[str], config: RankerOptions) -> Tensor:
    """The weight of each label's positives, then of each label, [2, T]; ValueError for one of another label."""
    positive = config.positive_weight
    by_label = positive if isinstance(positive, Mapping) else dict.fromkeys(labels, positive)
    for key, weights in (("positive_weight", by_label), ("label_weights", config.label_weights)):
        for name in weights:
            if name not in labels:
                raise ValueError(f"{key} names label {name!r}, this model predicts {list(labels)}")
    return torch.tensor([[by_label.get(name, 1.0), config.label_weights.get(name, 1.0)] for name in labels]).T

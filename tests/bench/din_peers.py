"""DIN by others, to measure ours against: written by hand on the bare fbgemm op, DeepCTR-Torch's, and FuxiCTR's.

All read the columns of `configs/schemas/movielens1m_seq.toml`, with vectors, layers and activations as wide as the
config's. `HandWritten` computes what our model computes, from our weights. The libraries' networks are their own public
classes, given what they ask for: histories padded, a constant id as the target's value of a sequence that no feature of
the target stands against, and no BatchNorm, which theirs have not at that place. Each `..._steps` gives one step, that
is forward, backward and update, for each batch, with its inputs ready as the library's own loader would hand them over.

Shapes: B rows, N events of all histories, L the longest history, D width of a vector, E of an event, C looked-up ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    BoundsCheckMode,
    ComputeDevice,
    EmbeddingLocation,
    OptimType,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Batch
from tests.bench.peers import Step

USER = ("user", "gender", "age", "occupation", "zip")
PAIRS = {"movie": "history", "category": "history_category"}
ALONE = ("history_action", "history_age")
SEQUENCES = (*PAIRS.values(), *ALONE)
SINGLE = (*USER, *PAIRS)
LABEL = "liked"


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Of the config, and its batches: what all candidates share."""

    rows: Mapping[str, int]  # of each feature's table; a sequence reads the table of the feature it repeats
    dim: int
    attention: int
    hidden: tuple[int, ...]
    longest: int


class HandWritten(nn.Module):
    """DIN for this one schema: one op, one table of all features, ragged rows, and nothing that is not arithmetic.

    The op is read as two features, access i as bag i // 2 of feature i % 2, since with one feature fbgemm takes a
    slower kernel. regrouped: the first layer of the attention as our `ActivationUnit` computes it; False: over the
    concatenation [q, k, q - k, q * k], as it is usually written, which is the same number from twice the products.
    """

    def __init__(self, widths: Widths, lr: float, eps: float, regrouped: bool) -> None:
        super().__init__()
        self.dim, self.regrouped = widths.dim, regrouped
        self.starts, total = {}, 0
        for name in (*SINGLE, *ALONE):
            self.starts[name] = total
            total += widths.rows[name]
        self.starts |= {sequence: self.starts[target] for target, sequence in PAIRS.items()}
        self.op = SplitTableBatchedEmbeddingBagsCodegen(
            [(total, widths.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            feature_table_map=[0, 0],
            optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=lr,
            eps=eps,
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.NONE,
            device=torch.device("cpu"),
        )
        event, width = len(SEQUENCES) * widths.dim, (len(SINGLE) + 2 * len(SEQUENCES)) * widths.dim
        self.alone = nn.Parameter(torch.zeros(len(ALONE) * widths.dim))
        self.first = nn.Linear(4 * event, widths.attention)
        self.score = nn.Linear(widths.attention, 1)
        self.norm = nn.BatchNorm1d(width)
        sizes = (width, *widths.hidden)
        layers = [part for pair in zip(sizes, widths.hidden, strict=False) for part in (nn.Linear(*pair), nn.SiLU())]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def start_from(self, rows: Mapping[str, Tensor], dense: Sequence[Tensor]) -> None:
        """Take over a model's rows by feature, and its dense parameters in the order of this one's."""
        weight = self.op.split_embedding_weights()[0]
        with torch.no_grad():
            for name, values in rows.items():
                weight[self.starts[name] : self.starts[name] + len(values)] = values
            for own, given in zip(self.dense(), dense, strict=True):
                own.copy_(given)

    def dense(self) -> list[nn.Parameter]:
        """All but the table, which the op updates."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("op.")]

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B]."""
        history = batch.jagged(PAIRS["movie"])
        num_rows, num_events = len(batch), len(history.values)
        single = torch.stack([batch.ids(name) + self.starts[name] for name in SINGLE], dim=1)  # [B, 7]
        events = torch.stack([batch.jagged(name).values + self.starts[name] for name in SEQUENCES], dim=1)  # [N, 4]
        vectors = self.looked_up(torch.cat([single.flatten(), events.flatten()]))
        own = vectors[: single.numel()].view(num_rows, -1)
        keys = vectors[single.numel() :].view(num_events, -1)  # [N, E]
        query = torch.cat([own[:, len(USER) * self.dim :], self.alone.expand(num_rows, -1)], dim=1)  # [B, E]
        owners = torch.arange(num_rows).repeat_interleave(history.offsets.diff(), output_size=num_events)
        weights = self.score(F.silu(self.before_activation(query, keys, owners)))  # [N, 1]
        found = query.new_zeros(query.shape).index_add(0, owners, weights * keys)
        logits: Tensor = self.head(self.norm(torch.cat([own, found, found * query], dim=1)))
        return logits.squeeze(1)

    def looked_up(self, ids: Tensor) -> Tensor:
        """Vectors [C, D] of ids [C]: dealt to two features, the last bag left empty when C is odd."""
        count = len(ids)
        bags = torch.arange(2 * (-(-count // 2)) + 1).clamp(max=count)
        found: Tensor = self.op(torch.cat([ids[0::2], ids[1::2]]), bags)
        return found.view(-1, self.dim)[:count]

    def before_activation(self, query: Tensor, keys: Tensor, owners: Tensor) -> Tensor:
        """The first layer of the attention, [N, H]."""
        spread = query.index_select(0, owners)
        if not self.regrouped:
            found: Tensor = self.first(torch.cat([spread, keys, spread - keys, spread * keys], dim=1))
            return found
        of_query, of_key, of_difference, of_product = self.first.weight.chunk(4, dim=1)
        by_row = F.linear(query, of_query + of_difference, self.first.bias).index_select(0, owners)
        by_event = torch.addmm(by_row, keys, (of_key - of_difference).t())
        return torch.addmm(by_event, spread * keys, of_product.t())


def hand_written_steps(model: HandWritten, batches: Sequence[Batch], lr: float) -> list[Step]:
    """The plainest loop: no check, no seed, no weights of rows."""
    optimizer = torch.optim.Adam(model.dense(), lr=lr)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(batch), batch.labels[LABEL]).backward()
        optimizer.step()

    return [partial(step, batch) for batch in batches]


def deepctr_steps(widths: Widths, batches: Sequence[Batch], optimizer: str) -> list[Step]:
    """`deepctr_torch.models.DIN`, stepped as its `fit` does, without the metrics of its progress bar.

    Its input is one float matrix of all columns. No L2, which it has by default and which would read whole tables.
    """
    inputs, models = import_module("deepctr_torch.inputs"), import_module("deepctr_torch.models")
    single = [inputs.SparseFeat(name, widths.rows[name] + 1, widths.dim) for name in (*SINGLE, *ALONE)]
    repeated = {**PAIRS, **{name: name for name in ALONE}}  # feature whose table it reads -> sequence
    sequences = [
        inputs.VarLenSparseFeat(
            inputs.SparseFeat(f"hist_{name}", widths.rows[name] + 1, widths.dim, embedding_name=name),
            maxlen=widths.longest,
            length_name="length",
        )
        for name in repeated
    ]
    model = models.DIN(
        [*single, *sequences],
        list(repeated),
        dnn_hidden_units=widths.hidden,
        dnn_activation=nn.SiLU,
        att_hidden_size=(widths.attention,),
        att_activation=nn.SiLU,
        l2_reg_embedding=0.0,
    )
    model.compile(optimizer.lower(), "binary_crossentropy")
    model.train()

    def matrix(batch: Batch) -> Tensor:
        columns = {name: column.unsqueeze(1) for name, column in single_columns(widths, batch).items()}
        columns |= {f"hist_{name}": padded(batch, sequence, widths.longest) for name, sequence in repeated.items()}
        columns["length"] = batch.jagged(PAIRS["movie"]).lengths.unsqueeze(1)
        return torch.cat([columns[name] for name in model.feature_index], dim=1).float()

    def step(x: Tensor, y: Tensor) -> None:
        found = model(x).squeeze(1)
        model.optim.zero_grad()
        loss = model.loss_func(found, y, reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        loss.item(), total.item()
        total.backward()
        model.optim.step()

    return [partial(step, matrix(batch), batch.labels[LABEL]) for batch in batches]


def fuxictr_steps(widths: Widths, batches: Sequence[Batch], optimizer: str) -> list[Step]:
    """`model_zoo.LongCTR.DIN` of FuxiCTR's wheel, by its own `train_step`, which clips gradients as its `fit` does.

    Its input: the user's columns, the items of all histories with the target at the end of each, and a mask.
    """
    feature_map = import_module("fuxictr.features").FeatureMap("bench", "")
    items = (*PAIRS, *ALONE)
    for name in (*USER, *items):
        source = "item" if name in items else "user"
        spec = {"type": "categorical", "source": source, "vocab_size": widths.rows[name] + 1, "padding_idx": 0}
        feature_map.features[name] = spec
    feature_map.labels, feature_map.default_emb_dim = [LABEL], widths.dim
    model = import_module("model_zoo.LongCTR.DIN").DIN(
        feature_map,
        dnn_hidden_units=list(widths.hidden),
        dnn_activations="SiLU",
        attention_hidden_units=[widths.attention],
        attention_hidden_activations="SiLU",
        embedding_dim=widths.dim,
        optimizer=optimizer,
        loss="binary_crossentropy",
        metrics=["AUC"],
        model_root="",
        verbose=0,
    )
    model._batch_index, model._max_gradient_norm = 0, 10.0  # what its fit sets, to what it sets them
    model.train()

    def inputs(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        target = single_columns(widths, batch)
        users = {name: target[name] for name in USER} | {LABEL: batch.labels[LABEL]}
        history = {name: padded(batch, PAIRS.get(name, name), widths.longest, before=True) for name in items}
        events = {name: torch.cat([history[name], target[name].unsqueeze(1)], dim=1).flatten() for name in items}
        places = torch.arange(widths.longest).flip(0)
        return users, events, (places < batch.jagged(PAIRS["movie"]).lengths.unsqueeze(1)).float()

    def step(given: Any) -> None:
        model.train_step(given).item()

    return [partial(step, inputs(batch)) for batch in batches]


def single_columns(widths: Widths, batch: Batch) -> dict[str, Tensor]:
    """One id a row: the inputs, and for what stands alone an id of its own, the one after the last."""
    constant = {name: torch.full((len(batch),), widths.rows[name]) for name in ALONE}
    return {name: batch.ids(name) for name in SINGLE} | constant


def padded(batch: Batch, name: str, longest: int, before: bool = False) -> Tensor:
    """A sequence as [B, L], zeros behind or before its ids."""
    column = batch.jagged(name)
    rows = column.row_of_value
    places = torch.arange(len(rows)) - column.offsets[rows]
    if before:
        places = places + longest - column.lengths[rows]
    matrix = torch.zeros(len(batch), longest, dtype=torch.int64)
    matrix[rows, places] = column.values
    return matrix

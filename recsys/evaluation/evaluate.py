"""One model, one split, one `Report`: metrics, how they were measured, counts, and the values per user or row.

`evaluate_retrieval` ranks the whole catalogue for each user with held-out items, `evaluate_ranking` scores each row,
and `compare` says whether one model is above another beyond the bootstrap interval. The metrics themselves are in
`ranking.py` and `ctr.py`, the intervals in `bootstrap.py`.

Shapes: U users measured, N rows, n items.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from features import storage
from features.batch import Batch, Jagged
from recsys import distributed
from recsys.evaluation.bootstrap import Comparison, Draws, compare_aucs, compare_means
from recsys.evaluation.ctr import ScoredRows, logits_of, row_losses
from recsys.evaluation.ranking import RankingProtocol, rank_users
from recsys.models.interface import Ranker, Recommender
from recsys.models.view import BatchLoader, DataView

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY = "probability"  # a label that is no label: the planted truth of a world
CEILING = "ceiling_"
WORDS = ("model", "split", "protocol", "config_hash")


class EvaluationView(DataView, Protocol):
    """The known rows, and what was held out from them; `features.prepared.View` is one."""

    def truth(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Users [U], offsets [U + 1] and item positions of another split."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The metrics of one model on one split.

    metrics: name -> value. protocol: in words, what was ranked or scored and masked. counts: users, rows, items.
    arrays: what the metrics are means of. Retrieval: "users" [U] and each metric [U]. Ranking: columns of `ScoredRows`.
    """

    model: str
    split: str
    protocol: str
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    config_hash: str = ""
    arrays: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def summary(self) -> dict[str, Any]:
        """Everything but the arrays in one flat mapping, metrics first."""
        return dict(self.metrics) | {word: getattr(self, word) for word in WORDS} | {"counts": dict(self.counts)}

    def to_json(self) -> str:
        """The summary in one line."""
        return json.dumps(self.summary(), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Report":
        """The inverse of `to_json`; without arrays."""
        values = json.loads(text)
        words = {word: values.pop(word) for word in (*WORDS, "counts")}
        return Report(metrics=values, **words)

    def save(self, folder: Path | str) -> None:
        """Write report.json and, when there are arrays, arrays.safetensors into `folder`, which is made."""
        folder = Path(folder)
        if self.arrays:
            arrays = {name: array.contiguous() for name, array in self.arrays.items()}
            storage.write_bytes(folder / "arrays.safetensors", save(arrays))
        storage.write_text(folder / "report.json", self.to_json() + "\n")

    @staticmethod
    def load(folder: Path | str) -> "Report":
        """The report that was saved in `folder`. Raises ValueError naming a file that is missing or not whole."""
        folder = Path(folder)
        try:
            report = Report.from_json((folder / "report.json").read_text())
            arrays = load_file(folder / "arrays.safetensors") if (folder / "arrays.safetensors").exists() else {}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{folder} does not hold a report: {error!r}") from None
        return Report(**{**vars(report), "arrays": arrays})

    def to_pandas(self) -> "pd.DataFrame":
        """One row: the metrics, then the words and counts; reports of several runs can be concatenated."""
        import pandas as pd

        values = self.summary()
        return pd.DataFrame([values | values.pop("counts")])

    def arrays_to_pandas(self) -> "pd.DataFrame":
        """The arrays, one row per user or scored row."""
        import pandas as pd

        return pd.DataFrame({name: array.numpy() for name, array in self.arrays.items()})

    def to_rich(self) -> Table:
        """A table of the metrics for a terminal."""
        table = Table(title=f"{self.model} on {self.split}", caption=self._caption(), title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in self.metrics.items():
            table.add_row(name, f"{value:.4f}")
        return table

    def __str__(self) -> str:
        width = max((len(name) for name in self.metrics), default=0)
        lines = [f"{name:<{width}}  {value:.4f}" for name, value in self.metrics.items()]
        return "\n".join([f"{self.model} on {self.split}", *lines, self._caption()])

    def _caption(self) -> str:
        return f"{self.protocol} ({', '.join(f'{value:,} {name}' for name, value in self.counts.items())})"


def evaluate_retrieval(
    recommender: Recommender,
    view: EvaluationView,
    *,
    split: str,
    ks: Sequence[int] = (20,),
    metrics: Sequence[str] = RankingProtocol().metrics,
    config_hash: str = "",
    name: str = "",
    chunk: int | None = None,
) -> Report:
    """Rank all items for each user with held-out items in `split`; the user's items in `view` are masked.

    view: what is known before the split (train, and validation when testing). name: of the model in the report
    (default: its class). chunk: users scored at a time (None: as many as fit a fixed memory).
    Raises ValueError when no user has held-out items.
    """
    users, offsets, items = view.truth(split)
    protocol = RankingProtocol(ks=tuple(ks), metrics=tuple(metrics), chunk=chunk)
    truth = Jagged(values=items, offsets=offsets)
    with _evaluating(recommender):
        scores = recommender.scorer(view)
        result = rank_users(scores, users, truth, view.num_items, seen=view.interactions(), protocol=protocol)
    counts = {"users": len(result.users), "skipped users": result.num_skipped, "items": view.num_items}
    arrays = {"users": result.users} | {metric: values.float() for metric, values in result.per_user.items()}
    return Report(
        model=name or type(recommender).__name__, split=split, metrics=result.means, counts=counts,
        config_hash=config_hash,
        protocol="all items ranked, those known before the split left out; mean over users with held-out items",
        arrays=arrays,
    )  # fmt: skip


def evaluate_ranking(
    ranker: Ranker, loader: BatchLoader, *, split: str, config_hash: str = "", name: str = "", cluster: str = ""
) -> Report:
    """Score every row of the loader; metrics of the first label, and "name[label]" of each further one.

    cluster: the `id` feature whose rows belong together when confidence is estimated (default: the schema's user, else
    the batch's group). A planted probability is scored too, as "ceiling_auc" and so on: no model can do better.
    The ranks of a distributed run each score the rows of their loader, and all return the report of all rows.
    """
    columns = _Columns(cluster or ranker.schema.user)
    with _evaluating(ranker):
        for batch, _ in loader.epoch(0):
            columns.add(batch, ranker.logits(batch).reshape(len(batch), len(ranker.labels)), ranker.labels)
    found = columns.gathered()
    main, *others = ranker.labels
    rows = _rows(found, main)
    metrics = _metrics(rows, main, split)
    for label in others:
        of_label = _metrics(_rows(found, label), label, split)
        metrics |= {f"{metric}[{label}]": value for metric, value in of_label.items()}
    if PROBABILITY in found:
        ceiling = _rows(found | {f"logits {main}": logits_of(found[PROBABILITY])}, main)
        metrics |= {f"{CEILING}{metric}": value for metric, value in ceiling.metrics().items()}
    counts = {"rows": len(rows), "positives": int(rows.labels.sum())}
    return Report(
        model=name or type(ranker).__name__, split=split, metrics=metrics, counts=counts, config_hash=config_hash,
        protocol=f"every row scored, label {main!r}; rows of weight 0 left out", arrays=rows.columns(),
    )  # fmt: skip


def check_metric(metric: str, model: Recommender | Ranker, ks: Sequence[int]) -> None:
    """Raise ValueError unless evaluating the model gives this metric, and it says which of two epochs is better.

    ks: the list lengths of a recommender's metrics.
    """
    if isinstance(model, Ranker):
        names = ("auc", "logloss", "normalized_entropy", *(("gauc",) if model.schema.group else ()))
        known = [*names, *(f"{name}[{label}]" for label in model.labels[1:] for name in names)]
    else:
        known = [f"{name}@{k}" for name in RankingProtocol().metrics for k in ks]
    if metric not in known:
        raise ValueError(f"training.metric is {metric!r}, accepted is one of {', '.join(known)}")


def compare(a: Report | Sequence[Report], b: Report | Sequence[Report], metric: str, draws: Draws) -> Comparison:
    """Whether model A is above model B in a metric beyond the interval: `compare(...).above`.

    Paired by user or row, clustered by user; several reports of a model are its training seeds. Metrics of retrieval
    are those in both reports; of ranking "auc" and "logloss" (where above means worse).
    Raises ValueError when the reports are not of the same users or rows, or do not hold the metric.
    """
    first, second = ([part] if isinstance(part, Report) else list(part) for part in (a, b))
    key = "users" if "users" in first[0].arrays else "labels"
    for report in (*first, *second):
        _check_comparable(report, first[0], key)
    if key == "users":
        return compare_means(metric, _arrays(first, metric), _arrays(second, metric), draws)
    labels, clusters = first[0].arrays["labels"], first[0].arrays.get("clusters")
    weights = first[0].arrays.get("weights")
    mine, other = _arrays(first, "logits"), _arrays(second, "logits")
    if metric == "auc":
        return compare_aucs(labels, mine, other, draws, clusters=clusters, weights=weights)
    if metric != "logloss":
        raise ValueError(f"reports of ranking are compared by 'auc' or 'logloss', not by {metric!r}")
    losses, others = ([row_losses(labels, logits) for logits in columns] for columns in (mine, other))
    return compare_means(metric, losses, others, draws, clusters=clusters, weights=weights)


def _check_comparable(report: Report, first: Report, key: str) -> None:
    mine, other = report.arrays.get(key), first.arrays.get(key)
    if mine is None or other is None:
        raise ValueError(f"a report of {report.model} on {report.split} holds no {key}: it was made without arrays")
    if not torch.equal(mine, other):
        raise ValueError(f"reports of {first.model} and {report.model} are not of the same {key}: no pairs")


def _arrays(reports: Sequence[Report], name: str) -> list[Tensor]:
    for report in reports:
        if name not in report.arrays:
            known = sorted(set(report.arrays) - {"users"})
            raise ValueError(f"the report of {report.model} has no values of {name!r}; it has {known}")
    return [report.arrays[name] for report in reports]


class _Columns:
    """Collects what the metrics need of each batch: a few numbers a row, not the features."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, batch: Batch, logits: Tensor, labels: Sequence[str]) -> None:
        """Logits [B, T], one column for each of the labels."""
        columns = {f"logits {name}": logits[:, number].float() for number, name in enumerate(labels)}
        columns |= {f"label {name}": batch.labels[name] for name in labels}
        optional = {"weights": batch.weights, "group": batch.group, "row_ids": batch.row_ids}
        optional |= {PROBABILITY: batch.labels.get(PROBABILITY), "clusters": self._clusters(batch)}
        columns |= {name: column for name, column in optional.items() if column is not None}
        kept = batch.row_weights() > 0  # a rank without rows takes part with a copy of weight 0
        for name, column in columns.items():
            self.parts.setdefault(name, []).append(column[kept].cpu())

    def _clusters(self, batch: Batch) -> Tensor | None:
        return batch.ids(self.cluster) if self.cluster in batch.features else batch.group

    def gathered(self) -> dict[str, Tensor]:
        """The rows of all ranks."""
        columns = {name: torch.cat(parts) for name, parts in self.parts.items()}
        row_ids = columns.pop("row_ids", None)
        rows = {name: distributed.gather_rows(column, row_ids) for name, column in columns.items()}
        if not any(len(column) for column in rows.values()):
            raise ValueError("the loader gave no rows to score")
        return rows


def _rows(columns: Mapping[str, Tensor], label: str) -> ScoredRows:
    return ScoredRows(
        labels=columns[f"label {label}"], logits=columns[f"logits {label}"], weights=columns.get("weights"),
        group=columns.get("group"), clusters=columns.get("clusters"),
    )  # fmt: skip


def _metrics(rows: ScoredRows, label: str, split: str) -> dict[str, float]:
    try:
        return rows.metrics()
    except ValueError as error:
        raise ValueError(f"split {split!r}, label {label!r}: {error}") from None


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """No gradients, and eval mode where there is one; afterwards as before."""
    training = isinstance(model, nn.Module) and model.training
    with torch.no_grad():
        if isinstance(model, nn.Module):
            model.eval()
        yield
        if isinstance(model, nn.Module):
            model.train(training)

"""One model, one split, one `Report`: metrics, how they were measured, counts, and the values per user or row.

`evaluate_retrieval` ranks the whole catalogue for each user with held-out items, `evaluate_ranking` scores each row.
The metrics themselves are in `ranking.py` and `ctr.py`; whether one report is above another says `compare.py`.

Shapes: U users measured, N rows, n items.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from features import storage
from features.batch import Batch, Jagged
from recsys import distributed
from recsys.evaluation.calibrators import Calibrator
from recsys.evaluation.ctr import ScoredRows, logits_of
from recsys.evaluation.ranking import RankingProtocol, rank_users
from recsys.evaluation.row_files import GrowingColumns
from recsys.models.interface import Ranker, Recommender
from recsys.models.view import BatchLoader, DataView

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY = "probability"  # a label that is no label: the planted truth of a world
CEILING, CALIBRATED, FEATURE = "ceiling_", "calibrated_", "feature "
OF_CEILING = ("auc", "gauc", "logloss", "normalized_entropy", "pr_auc")
OF_CALIBRATION = ("auc", "logloss", "normalized_entropy", "calibration", "calibration_error")
FORMAT = 2  # since clusters are users, not rows of their vocabulary
BATCHES_AT_ONCE = 16  # between two times that ranks exchange rows
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
        """The summary in one line, with the version of what arrays mean."""
        return json.dumps({"format": FORMAT, **self.summary()}, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Report":
        """The inverse of `to_json`; without arrays. Raises ValueError for a report of another version."""
        values = json.loads(text)
        if values.pop("format", 1) != FORMAT:
            raise ValueError("it is of another version; evaluate the run again")
        words = {word: values.pop(word) for word in (*WORDS, "counts")}
        return Report(metrics=values, **words)

    def save(self, folder: Path | str) -> None:
        """Write report.json and, when there are arrays, arrays.safetensors into `folder`, which is made."""
        folder = Path(folder)
        if self.arrays:
            arrays = {name: array.contiguous() for name, array in self.arrays.items()}
            with storage.file_aside(folder / "arrays.safetensors") as aside:
                save_file(arrays, aside)
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


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What is measured of scored rows beside the metrics, and where.

    kept: `id` and `dense` features whose values go into the report, for `calibration_by`. calibrator: the labels that
    it has a curve for are measured once more, as "calibrated_logloss" and so on; the report's logits stay the model's.
    scratch: the folder for the columns and sorted runs of many rows (default: the system's for temporary files).
    """

    kept: Sequence[str] = ()
    calibrator: Calibrator | None = None
    scratch: Path | None = None


def evaluate_ranking(
    ranker: Ranker,
    loader: BatchLoader,
    *,
    split: str,
    config_hash: str = "",
    name: str = "",
    cluster: str = "",
    settings: RowSettings | None = None,
    shown: Callable[[Batch], Batch] | None = None,
) -> Report:
    """Score every row of the loader; metrics of the first label, and "name[label]" of each further one.

    cluster: the `id` feature whose rows belong together when confidence is estimated (default: the batch's cluster,
    else the schema's user, else the batch's group). A planted probability is scored too, as "ceiling_auc" and so on:
    no model can do better.
    shown: what the ranker is given of a batch (default: the batch); all else is measured on the batch itself.
    The ranks of a distributed run each score the rows of their loader, and all return the report of all rows. Memory is
    bounded by batches, not by the loader's rows: columns of many rows are files, 28 bytes a row and more with several
    labels.
    """
    settings = settings or RowSettings()
    columns = _Columns(cluster, ranker.schema.user, settings)
    with _evaluating(ranker):
        for batch, _ in loader.epoch(0):
            given = batch if shown is None else shown(batch)
            columns.add(batch, ranker.logits(given).reshape(len(batch), len(ranker.labels)), ranker.labels)
    found = columns.gathered()
    main, *others = ranker.labels
    metrics, groups = _measured(found, main, split, settings.scratch)
    for label in others:
        of_label, _ = _measured(found, label, split, settings.scratch)
        metrics |= {f"{metric}[{label}]": value for metric, value in of_label.items()}
    if PROBABILITY in found:
        best, _ = _measured(found, main, split, settings.scratch, logits=PROBABILITY)
        metrics |= _named(CEILING, {name: best[name] for name in OF_CEILING if name in best})
    rows = _rows(found, main, f"logit {main}")
    further = {f"{column}s[{label}]": found[f"{column} {label}"] for label in others for column in ("label", "logit")}
    for number, label in enumerate(ranker.labels):
        if f"{CALIBRATED}{label}" in found:
            further[f"{CALIBRATED}logits" + (f"[{label}]" if number else "")] = found[f"{CALIBRATED}{label}"]
    return Report(
        model=name or type(ranker).__name__, split=split, metrics=metrics, config_hash=config_hash,
        counts={"rows": len(rows), "positives": int(rows.labels.sum(dtype=torch.float64))} | groups,
        protocol=f"every row scored, label {main!r}; rows of weight 0 left out",
        arrays=rows.columns() | further | {name: found[name] for name in found if name.startswith(FEATURE)},
    )  # fmt: skip


def scored_rows(report: Report, label: str = "", calibrated: bool = False) -> ScoredRows:
    """The rows of a report of ranking, of its first label or of a further one. Raises ValueError when it has none.

    calibrated: with the logits as served, which are those of the run's calibrator where it has one.
    """
    key = f"[{label}]" if f"logits[{label}]" in report.arrays else ""
    if f"logits{key}" not in report.arrays:
        raise ValueError(f"a report of {report.model} on {report.split} holds no rows: it was made without arrays")
    served = f"{CALIBRATED}logits{key}"
    logits = served if calibrated and served in report.arrays else f"logits{key}"
    shared = {name: report.arrays.get(name) for name in ("weights", "group", "clusters")}
    return ScoredRows(labels=report.arrays[f"labels{key}"], logits=report.arrays[logits], **shared)


def check_metric(metric: str, model: Recommender | Ranker, ks: Sequence[int], negative_rate: float = 1.0) -> None:
    """Raise ValueError unless evaluating the model gives this metric, and it says which of two epochs is better.

    ks: the list lengths of a recommender's metrics. negative_rate: the share of negatives that a ranker trains on;
    below 1 its logits are log(1 / rate) too high for the held-out rows, so that no loss on these can choose.
    """
    if isinstance(model, Ranker):
        of_odds = () if negative_rate < 1 else ("logloss", "normalized_entropy")
        names = ("auc", *of_odds, "pr_auc", *(("gauc",) if model.schema.group else ()))
        known = [*names, *(f"{name}[{label}]" for label in model.labels[1:] for name in names)]
    else:
        known = [f"{name}@{k}" for name in RankingProtocol().metrics for k in ks]
    if metric not in known:
        thinned = " with data.downsample" if negative_rate < 1 else ""
        raise ValueError(f"training.metric is {metric!r}, accepted is one of {', '.join(known)}{thinned}")


class _Columns:
    """Collects what the metrics need of each batch, over all ranks: a few numbers a row, not the features."""

    def __init__(self, cluster: str, user: str, settings: RowSettings) -> None:
        self.cluster, self.user = cluster, user
        self.kept, self.calibrator = settings.kept, settings.calibrator
        self.parts: dict[str, list[Tensor]] = {}
        self.num_batches = 0
        self.rows = GrowingColumns(scratch=settings.scratch)

    def add(self, batch: Batch, logits: Tensor, labels: Sequence[str]) -> None:
        """Logits [B, T], one column for each of the labels; every rank adds as many batches."""
        columns = {f"label {name}": batch.labels[name] for name in labels}
        for number, name in enumerate(labels):
            columns[f"logit {name}"] = logits[:, number].float()
            if self.calibrator is not None and name in self.calibrator.curves:
                columns[f"{CALIBRATED}{name}"] = self.calibrator.logits(logits[:, number], name).float()
        columns |= {f"{FEATURE}{name}": batch.ids(name) for name in self.kept}
        if PROBABILITY in batch.labels:
            columns[PROBABILITY] = logits_of(batch.labels[PROBABILITY])
        weights = batch.row_weights() if distributed.world_size() > 1 else batch.weights  # a padded rank has some
        optional = {"weights": weights, "group": batch.group, "row_ids": batch.row_ids}
        optional |= {"clusters": self._clusters(batch)}
        columns |= {name: column for name, column in optional.items() if column is not None}
        counted = batch.row_weights() > 0  # a rank without rows takes part with a copy of weight 0
        for name, column in columns.items():
            self.parts.setdefault(name, []).append(column[counted].cpu())
        self.num_batches += 1
        if self.num_batches % BATCHES_AT_ONCE == 0:
            self._gather()

    def _clusters(self, batch: Batch) -> Tensor | None:
        if self.cluster:
            return batch.ids(self.cluster)
        if batch.cluster is not None:
            return batch.cluster
        return batch.ids(self.user) if self.user in batch.features else batch.group

    def _gather(self) -> None:
        """Move the rows of all ranks since the last time to where they stay."""
        columns = {name: torch.cat(parts) for name, parts in self.parts.items()}
        self.parts = {}
        row_ids = columns.pop("row_ids", None)
        self.rows.add({name: distributed.gather_rows(column, row_ids) for name, column in columns.items()})

    def gathered(self) -> dict[str, Tensor]:
        """The rows of all ranks."""
        self._gather()
        if not self.rows.num_rows:
            raise ValueError("the loader gave no rows to score")
        found = self.rows.finished()
        if distributed.world_size() > 1 and bool((found["weights"] == 1).all()):
            del found["weights"]
        return found


def _rows(columns: Mapping[str, Tensor], label: str, logits: str) -> ScoredRows:
    return ScoredRows(
        labels=columns[f"label {label}"], logits=columns[logits], weights=columns.get("weights"),
        group=columns.get("group"), clusters=columns.get("clusters"),
    )  # fmt: skip


def _measured(
    columns: Mapping[str, Tensor], label: str, split: str, scratch: Path | None, logits: str = ""
) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics and counts of a label by some column of logits (default: the model's, then the calibrated ones)."""
    try:
        metrics, counts = _rows(columns, label, logits or f"logit {label}").measured(scratch=scratch)
        if not logits and f"{CALIBRATED}{label}" in columns:
            again, _ = _rows(columns, label, f"{CALIBRATED}{label}").measured(scratch=scratch)
            metrics |= _named(CALIBRATED, {name: again[name] for name in OF_CALIBRATION})
    except ValueError as error:
        raise ValueError(f"split {split!r}, label {label!r}: {error}") from None
    return metrics, counts


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in metrics.items()}


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

"""Whether a model is above another in a metric beyond the interval: reports of the same rows or users, compared.

Paired by user or row, bootstrap clustered by user, over the training seeds (`bootstrap.py` says how). Reports of
retrieval are compared in any metric that they hold for each user; reports of ranking in

    auc       of all rows
    gauc      the AUC within each group, averaged by its rows; whole users are drawn, or whole groups where one has
              rows of several users
    logloss   where above means worse
    calibrated_logloss   the same as served: of the logits that a calibrator mended, for the runs that have one

of the first label, or as "auc[label]" of a further one. Memory: some numbers for each row and column, so that unlike
the metrics themselves this needs memory for all rows.

Shapes: N rows or users, S columns (models and their training seeds), G groups with both classes.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from recsys.evaluation.bootstrap import Comparison, Draws, Sampled
from recsys.evaluation.ctr import ScoredRows, group_aucs, row_losses
from recsys.evaluation.evaluate import CALIBRATED, Report, scored_rows

CALIBRATED_LOSS = f"{CALIBRATED}logloss"
OF_RANKING = ("auc", "gauc", "logloss", CALIBRATED_LOSS)


def compare(a: Report | Sequence[Report], b: Report | Sequence[Report], metric: str, draws: Draws) -> Comparison:
    """Whether model A is above model B: `compare(...).above`; several reports of a model are its training seeds.

    Raises ValueError when the reports are not of the same users or rows, or do not hold the metric.
    """
    first, second = ([part] if isinstance(part, Report) else list(part) for part in (a, b))
    return compare_with_first([second, first], metric, draws)[0]


def compare_with_first(models: Sequence[Sequence[Report]], metric: str, draws: Draws) -> list[Comparison]:
    """Each model but the first (A of the comparison) against the first (B), all on the same draws. Raises as above."""
    if not all(models):
        raise ValueError("each model to compare needs a report, or one for each of its training seeds")
    reports = [report for model in models for report in model]
    first = reports[0]
    for report in reports:
        _check_comparable(report, first)
    if "users" in first.arrays:
        sampled = Sampled.means(torch.stack([_values(report, metric) for report in reports], dim=1), draws)
    else:
        sampled = _of_rows(reports, metric, draws)
    ends = list(accumulate(len(model) for model in models))
    base, *others = (slice(end - len(model), end) for end, model in zip(ends, models, strict=True))
    return [sampled.compared(metric, other, base, draws) for other in others]


def metrics_in_common(reports: Sequence[Report]) -> list[str]:
    """The metrics in which all of the reports can be compared."""
    first = reports[0]
    if "users" in first.arrays:
        return [name for name in first.metrics if all(name in report.arrays for report in reports)]
    calibrated = any(CALIBRATED_LOSS in report.metrics for report in reports)
    of_all = [name for name in OF_RANKING if all(name in report.metrics for report in reports)]
    return [*of_all, CALIBRATED_LOSS] if calibrated and CALIBRATED_LOSS not in of_all else of_all


def _of_rows(reports: Sequence[Report], metric: str, draws: Draws) -> Sampled:
    kind, _, label = metric.rstrip("]").partition("[")
    if kind not in OF_RANKING:
        raise ValueError(f"reports of ranking are compared by {', '.join(OF_RANKING)}, not by {metric!r}")
    if label and any(f"logits[{label}]" not in report.arrays for report in reports):
        raise ValueError(f"{metric!r}: not all of the reports have a label {label!r} beside their first")
    scored = [scored_rows(report, label, calibrated=kind == CALIBRATED_LOSS) for report in reports]
    first = scored[0]
    if not all(torch.equal(rows.labels, first.labels) for rows in scored):
        raise ValueError(f"{metric!r}: the reports are not of the same labels {label!r}: no pairs")
    if kind == "gauc":
        return _of_groups(scored, draws)
    shared = {"clusters": first.clusters, "weights": first.weights}
    if kind == "auc":
        columns = torch.stack([rows.logits for rows in scored], dim=1)
        return Sampled.aucs(first.labels, columns.double(), draws, **shared)
    return Sampled.means(torch.stack([row_losses(rows.labels, rows.logits) for rows in scored], dim=1), draws, **shared)


def _of_groups(scored: Sequence[ScoredRows], draws: Draws) -> Sampled:
    """The AUCs within groups [G, S], which all columns have for the same groups."""
    first = scored[0]
    if first.group is None:
        raise ValueError("the reports have no groups to compare by 'gauc'; the schema names none")
    within = [group_aucs(rows.labels, rows.logits, first.group, rows.weights) for rows in scored]
    if not len(within[0].aucs):
        raise ValueError("no group has rows of both classes, so there is no 'gauc' to compare by")
    clusters = _clusters_of_groups(first.group, first.clusters)
    columns = torch.stack([part.aucs for part in within], dim=1)
    chosen = None if clusters is None else clusters[within[0].group]
    return Sampled.means(columns, draws, clusters=chosen, weights=within[0].weights)


def _clusters_of_groups(group: Tensor, clusters: Tensor | None) -> Tensor | None:
    """The cluster of each group, in the order of their ids; None where a group has rows of several."""
    if clusters is None:
        return None
    found, number = group.unique(return_inverse=True)
    lowest, highest = (
        clusters.new_zeros(len(found)).scatter_reduce(0, number, clusters, kind, include_self=False)
        for kind in ("amin", "amax")
    )
    return lowest if torch.equal(lowest, highest) else None


def _check_comparable(report: Report, first: Report) -> None:
    key = "users" if "users" in first.arrays else "labels"
    if key not in report.arrays or key not in first.arrays:
        raise ValueError(f"a report of {report.model} on {report.split} holds no {key}: it was made without arrays")
    for name in (key, "weights", "group", "clusters"):
        mine, other = report.arrays.get(name), first.arrays.get(name)
        same = mine is other if mine is None or other is None else torch.equal(mine, other)
        if not same:
            raise ValueError(f"reports of {first.model} and {report.model} are not of the same {name}: no pairs")


def _values(report: Report, metric: str) -> Tensor:
    if metric not in report.arrays:
        known = sorted(set(report.arrays) - {"users"})
        raise ValueError(f"the report of {report.model} has no values of {metric!r}; it has {known}")
    return report.arrays[metric]

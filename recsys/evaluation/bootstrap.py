"""How sure a metric is: bootstrap intervals, plain and paired, clustered by user and over training seeds.

Users are drawn with replacement, each with all of its rows, since the rows of one user are not independent. Two models
are compared on the same draws (paired). Where there are several training seeds of a model, each draw also draws as many
seeds with replacement and averages over them, so that the interval covers training as well.
An interval holds the middle `confidence` of the draws (percentile bootstrap). Draws are a function of the seed.

Shapes: N rows, C clusters, S columns (models or training seeds), R draws, P positive rows, Q negative rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.evaluation import ctr

DRAWS = 1000
CONFIDENCE = 0.95
_COUNTS_AT_ONCE = 1 << 22  # cells of a chunk of draws


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the interval [low, high] that holds `confidence` of the draws."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of models A and B on the same users, and the interval of A - B.

    rela_impr: of an AUC or GAUC, (A - .5) / (B - .5) - 1 with its interval; None where B is not above chance.
    """

    metric: str
    a: float
    b: float
    difference: Interval
    rela_impr: Interval | None = None

    @property
    def above(self) -> bool:
        """Whether A is above B beyond the interval: all of it lies over 0."""
        return self.difference.low > 0

    @property
    def below(self) -> bool:
        """Whether A is below B beyond the interval."""
        return self.difference.high < 0

    def __str__(self) -> str:
        verdict = "above" if self.above else "below" if self.below else "not told apart"
        share = f"{self.difference.confidence:.0%} interval"
        return f"{self.metric}: {self.a:.4f} against {self.b:.4f}, difference {self.difference} ({share}): {verdict}"


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How to resample: the seed, the number of draws, and the share of them that an interval holds."""

    seed: int
    num_draws: int = DRAWS
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if self.num_draws < 20:
            raise ValueError(f"num_draws must be at least 20, got {self.num_draws}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")

    def counts(self, num_clusters: int) -> Iterator[Tensor]:
        """Chunks [r, C] float64 of how often each cluster is drawn; R rows in all."""
        generator = torch.Generator().manual_seed(self.seed)
        step = max(1, _COUNTS_AT_ONCE // num_clusters)
        for start in range(0, self.num_draws, step):
            rows = min(step, self.num_draws - start)
            drawn = torch.randint(num_clusters, (rows, num_clusters), generator=generator)
            drawn += torch.arange(rows)[:, None] * num_clusters
            yield drawn.view(-1).bincount(minlength=rows * num_clusters).view(rows, num_clusters).double()

    def interval(self, value: float, samples: Tensor) -> Interval:
        """The interval of samples [R]."""
        tail = (1 - self.confidence) / 2
        low, high = samples.double().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return Interval(value=value, low=low, high=high, confidence=self.confidence)

    def over_seeds(self, samples: Tensor, salt: int) -> Tensor:
        """Samples [R, S] of S training seeds -> [R], each the mean of S seeds drawn with replacement."""
        generator = torch.Generator().manual_seed(self.seed * 2 + salt + 1)
        drawn = torch.randint(samples.shape[1], samples.shape, generator=generator)
        return samples.gather(1, drawn).mean(1)


def resampled_means(
    values: Tensor, draws: Draws, *, clusters: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Means of values [N, S] over each draw of clusters, [R, S] float64; every column on the same draws.

    clusters [N] int64: the user of each row (None: each row is its own). weights [N]: the means are weighted.
    """
    weight = _row_weights(weights, len(values))
    cluster, num_clusters = _numbered(clusters, len(values))
    columns = torch.cat([values.double() * weight[:, None], weight[:, None]], dim=1)
    sums = torch.zeros(num_clusters, columns.shape[1], dtype=torch.float64).index_add(0, cluster, columns)
    means = [counts @ sums for counts in draws.counts(num_clusters)]  # [r, S + 1]
    totals = torch.cat(means)
    return totals[:, :-1] / totals[:, -1:]


def resampled_aucs(
    labels: Tensor, scores: Tensor, draws: Draws, *, clusters: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """AUC of scores [N, S] over each draw of clusters, [R, S] float64; every column on the same draws.

    Rows are sorted once; a draw costs one pass over them. Raises ValueError when a draw has rows of one class alone.
    """
    cluster, num_clusters = _numbered(clusters, len(labels))
    weight = _row_weights(weights, len(labels))
    sorted_columns = [_SortedRows.of(labels, column, cluster, weight) for column in scores.unbind(1)]
    rows = [
        torch.stack([column.auc(count) for column in sorted_columns])
        for counts in draws.counts(num_clusters)
        for count in counts
    ]
    samples = torch.stack(rows)
    if bool(samples.isnan().any()):
        lost = int(samples.isnan().any(1).sum())
        raise ValueError(f"{lost} of {draws.num_draws} draws of {num_clusters} clusters hold rows of one class alone")
    return samples


@dataclass(frozen=True)
class Sampled:
    """A metric of several columns (models and their training seeds): values [S], samples [R, S] on the same draws."""

    values: Tensor
    samples: Tensor

    @staticmethod
    def means(
        columns: Tensor, draws: Draws, *, clusters: Tensor | None = None, weights: Tensor | None = None
    ) -> "Sampled":
        """Of the means of columns [N, S]; see `resampled_means`."""
        weight = _row_weights(weights, len(columns))
        values = (columns.double() * weight[:, None]).sum(0) / weight.sum()
        return Sampled(values, resampled_means(columns, draws, clusters=clusters, weights=weights))

    @staticmethod
    def aucs(
        labels: Tensor, columns: Tensor, draws: Draws, *, clusters: Tensor | None = None, weights: Tensor | None = None
    ) -> "Sampled":
        """Of the AUCs of columns [N, S] of scores; see `resampled_aucs`."""
        weight = _row_weights(weights, len(labels))
        cluster, num_clusters = _numbered(clusters, len(labels))
        once = torch.ones(num_clusters, dtype=torch.float64)
        values = [_SortedRows.of(labels, column, cluster, weight).auc(once) for column in columns.unbind(1)]
        return Sampled(torch.stack(values), resampled_aucs(labels, columns, draws, clusters=clusters, weights=weights))

    def compared(self, metric: str, a: slice, b: slice, draws: Draws) -> Comparison:
        """The columns of A (its training seeds) against those of B."""
        mine, other = float(self.values[a].mean()), float(self.values[b].mean())
        above, below = draws.over_seeds(self.samples[:, a], 0), draws.over_seeds(self.samples[:, b], 1)
        rela_impr = None
        if metric.partition("[")[0] in ("auc", "gauc") and other > 0.5 and bool((below > 0.5).all()):
            rela_impr = draws.interval(ctr.rela_impr(mine, other), (above - 0.5) / (below - 0.5) - 1)
        difference = draws.interval(mine - other, above - below)
        return Comparison(metric=metric, a=mine, b=other, difference=difference, rela_impr=rela_impr)


def _row_weights(weights: Tensor | None, num_rows: int) -> Tensor:
    return torch.ones(num_rows, dtype=torch.float64) if weights is None else weights.double()


def _numbered(clusters: Tensor | None, num_rows: int) -> tuple[Tensor, int]:
    """Cluster of each row as a number 0..C - 1, and C."""
    if num_rows == 0:
        raise ValueError("there are no rows to draw from")
    if clusters is None:
        return torch.arange(num_rows), num_rows
    if list(clusters.shape) != [num_rows]:
        raise ValueError(f"clusters must be [{num_rows}], one per row, got {list(clusters.shape)}")
    found, number = clusters.unique(return_inverse=True)
    return number, len(found)


@dataclass(frozen=True)
class _SortedRows:
    """The rows of one score column by class; what a draw needs, so that it sorts nothing.

    Negatives rise by score. For a positive, `below` negatives score lower and `not_above` lower or the same.
    """

    negative_cluster: Tensor  # [Q]
    negative_weight: Tensor  # [Q]
    positive_cluster: Tensor  # [P]
    positive_weight: Tensor  # [P]
    below: Tensor  # [P]
    not_above: Tensor  # [P]

    @staticmethod
    def of(labels: Tensor, scores: Tensor, cluster: Tensor, weight: Tensor) -> "_SortedRows":
        negatives, positives = (labels == 0).nonzero()[:, 0], (labels == 1).nonzero()[:, 0]
        if len(negatives) + len(positives) != len(labels):
            raise ValueError("labels must be 0 or 1 for auc")
        negatives = negatives[scores[negatives].argsort()]
        positives = positives[scores[positives].argsort()]  # neighbours in score are neighbours in memory
        low, high = scores[negatives], scores[positives]
        below, not_above = torch.searchsorted(low, high), torch.searchsorted(low, high, right=True)
        return _SortedRows(
            cluster[negatives], weight[negatives], cluster[positives], weight[positives], below, not_above
        )

    def auc(self, counts: Tensor) -> Tensor:
        """Weighted AUC when cluster c counts counts[c] times; NaN without both classes."""
        negatives = torch.zeros(len(self.negative_cluster) + 1, dtype=torch.float64)
        torch.cumsum(counts[self.negative_cluster] * self.negative_weight, 0, out=negatives[1:])
        positives = counts[self.positive_cluster] * self.positive_weight
        wins = positives @ (negatives[self.below] + negatives[self.not_above]) / 2
        return wins / (positives.sum() * negatives[-1])

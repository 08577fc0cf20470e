"""Metrics of ranked lists over the whole catalogue: exact, in bounded memory, one value kept per user.

With R_u the held-out items of user u and rel_j in {0, 1} the relevance of the item at rank j (from 1) of the list that
is left after masking what u has already:

    hit@k = 1 if any hit      precision@k = hits / k      recall@k = hits / |R_u|      mrr@k = 1 / rank of the first hit
    ndcg@k = sum_{j<=k} rel_j / log2(j + 1)  /  sum_{j<=min(k, |R_u|)} 1 / log2(j + 1)
    map@k  = sum_{j<=k} rel_j * precision@j  /  min(k, |R_u|)

`ndcg_hits_ideal` is what the public code of NGCF and KGAT calls nDCG: its ideal list holds the model's own hits among
the first 100 (`hits_depth`) instead of R_u, so one hit at rank 1 of seven relevant items scores 1 instead of .2749. It
is here to compare with numbers published that way, and for nothing else.

Users without held-out items are left out and counted. Equal scores rank by lowest item position. Not here: sampled
candidates, on which metrics are inconsistent, and rows with labels (`ctr.py`).

Shapes: B users of a chunk, U users measured, n items, K the longest list, T held-out pairs of a chunk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from features.batch import Jagged
from recsys.retrieval.topk import top_k

MAX_CELLS = 1 << 25  # scores of a chunk of users: 128 MiB in float32
Metric = Callable[[Tensor, Tensor, int], Tensor]  # relevance [B, K] float64, |R_u| [B], k -> [B] float64


def recall(relevance: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """Hits / |R_u|."""
    return relevance[:, :k].sum(1) / num_relevant


def precision(relevance: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """Hits / k."""
    return relevance[:, :k].sum(1) / k


def hit(relevance: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """1 when there is a hit."""
    return (relevance[:, :k].sum(1) > 0).double()


def mrr(relevance: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """1 / rank of the first hit, 0 without one."""
    ranks = torch.arange(1, relevance[:, :k].shape[1] + 1)
    return (relevance[:, :k] / ranks).amax(1)


def average_precision(relevance: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """Sum of precision@j at the hits / min(k, |R_u|)."""
    cut = relevance[:, :k]
    ranks = torch.arange(1, cut.shape[1] + 1)
    return (cut * cut.cumsum(1) / ranks).sum(1) / num_relevant.clamp(max=k)


def ndcg(relevance: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """DCG / the DCG of a list that begins with min(k, |R_u|) hits: the standard form."""
    ideal = _discounts(k).cumsum(0)[num_relevant.clamp(max=k) - 1]
    return _dcg(relevance, k) / ideal


def ndcg_hits_ideal(relevance: Tensor, num_relevant: Tensor, k: int) -> Tensor:
    """DCG / the DCG of the own hits, of all K ranks given, moved to the front; 0 without hits."""
    ideal = _dcg(relevance.sort(dim=1, descending=True).values, k)
    return _dcg(relevance, k) / ideal.where(ideal > 0, 1)


METRICS: dict[str, Metric] = {
    "recall": recall,
    "ndcg": ndcg,
    "precision": precision,
    "hit": hit,
    "mrr": mrr,
    "map": average_precision,
    "ndcg_hits_ideal": ndcg_hits_ideal,
}


@dataclass(frozen=True, kw_only=True)
class RankingProtocol:
    """What is measured.

    ks: list lengths. metrics: names in `METRICS`. chunk: users scored at a time (None: by `MAX_CELLS`). hits_depth: how
    deep ndcg_hits_ideal looks for hits. Raises ValueError naming the metric or number that is not accepted.
    """

    ks: Sequence[int] = (20,)
    metrics: Sequence[str] = ("recall", "ndcg", "precision", "hit", "mrr", "map")
    chunk: int | None = None
    hits_depth: int = 100

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be list lengths of at least 1, got {list(self.ks)}")
        unknown = sorted(set(self.metrics) - set(METRICS))
        if unknown or not self.metrics:
            raise ValueError(f"metrics must be among {list(METRICS)}, got {unknown or list(self.metrics)}")
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 user, got {self.chunk}")

    @property
    def depth(self) -> int:
        """The longest list that any of the metrics looks at."""
        return max(*self.ks, self.hits_depth) if "ndcg_hits_ideal" in self.metrics else max(self.ks)


DEFAULT = RankingProtocol()


@dataclass(frozen=True, kw_only=True)
class RankingResult:
    """users [U] int64 positions, those with held-out items; per_user: "recall@20" -> [U] float64, in their order.

    num_skipped: users that were asked for and have no held-out item.
    """

    users: Tensor
    per_user: Mapping[str, Tensor]
    num_skipped: int

    @property
    def means(self) -> dict[str, float]:
        """The mean over users of every metric."""
        return {name: float(values.mean()) for name, values in self.per_user.items()}


def rank_users(
    scores: Callable[[Tensor], Tensor],
    users: Tensor,
    truth: Jagged,
    num_items: int,
    *,
    seen: csr_matrix | None = None,
    protocol: RankingProtocol = DEFAULT,
) -> RankingResult:
    """Rank all n items for each user and compare with what was held out.

    scores: user positions [B] -> scores of all items [B, n]; -inf means "never recommended". users: positions [U].
    truth: the held-out item positions, one row per user of `users`; an item that stands twice counts once.
    seen: binary [num users, n], the items to mask. Raises ValueError naming the user or item that is not accepted.
    """
    _check_truth(users, truth, num_items)
    kept = (truth.lengths > 0).nonzero()[:, 0]
    if len(kept) == 0:
        raise ValueError(f"none of the {len(users)} users has held-out items; there is nothing to measure")
    parts = []
    for rows in kept.split(protocol.chunk or max(1, MAX_CELLS // num_items)):
        some = users[rows]
        ranked = _masked(_checked_scores(scores(some), len(some), num_items), some, seen)
        relevance, num_relevant = _relevance(ranked, truth.select(rows), protocol.depth)
        parts.append(ranking_metrics(relevance, num_relevant, protocol))
    per_user = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return RankingResult(users=users[kept], per_user=per_user, num_skipped=len(users) - len(kept))


def ranking_metrics(relevance: Tensor, num_relevant: Tensor, protocol: RankingProtocol = DEFAULT) -> dict[str, Tensor]:
    """Metrics of ranked lists, {"recall@20": [B] float64, ...}.

    relevance: [B, K], whether the item at each rank is held out; a list shorter than k counts as followed by misses.
    num_relevant: |R_u| of each user, [B], at least 1.
    """
    relevance = relevance.double()
    return {f"{name}@{k}": METRICS[name](relevance, num_relevant, k) for k in protocol.ks for name in protocol.metrics}


def _relevance(scores: Tensor, truth: Jagged, depth: int) -> tuple[Tensor, Tensor]:
    """Masked scores [B, n] -> (whether the item at each rank is held out, bool [B, K]; held-out items of each user)."""
    num_items = scores.shape[1]
    held_out = (truth.row_of_value * num_items + truth.values).unique()  # [T], one number per (user, item), rising
    values, items = top_k(scores, depth)
    ranked = torch.arange(len(items))[:, None] * num_items + items
    nearest = torch.searchsorted(held_out, ranked).clamp(max=len(held_out) - 1)
    relevance = (held_out[nearest] == ranked) & (values > float("-inf"))
    return relevance, (held_out // num_items).bincount(minlength=len(items))


def _masked(scores: Tensor, users: Tensor, seen: csr_matrix | None) -> Tensor:
    """A copy (a model may hand out its own memory) with -inf at the seen items of each user."""
    if seen is None:
        return scores
    rows = seen[users.numpy()]
    items = torch.from_numpy(rows.indices).long()
    user = torch.arange(len(users)).repeat_interleave(torch.from_numpy(rows.indptr).long().diff())
    return scores.index_put((user, items), scores.new_tensor(float("-inf")))


def _dcg(relevance: Tensor, k: int) -> Tensor:
    cut = relevance[:, :k]
    return (cut * _discounts(cut.shape[1])).sum(1)


def _discounts(k: int) -> Tensor:
    """1 / log2(rank + 1) of ranks 1..k, [k] float64."""
    return 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()


def _check_truth(users: Tensor, truth: Jagged, num_items: int) -> None:
    if truth.num_rows != len(users):
        raise ValueError(f"truth has {truth.num_rows} rows for {len(users)} users")
    outside = ((truth.values < 0) | (truth.values >= num_items)).nonzero()
    if len(outside):
        value = int(outside[0])
        user = int(users[truth.row_of_value[value]])
        raise ValueError(
            f"held-out item {int(truth.values[value])} of user {user} is not a position of {num_items} items"
        )


def _checked_scores(scores: Tensor, num_users: int, num_items: int) -> Tensor:
    if list(scores.shape) != [num_users, num_items] or not scores.is_floating_point():
        came = f"{scores.dtype} {list(scores.shape)}"
        raise ValueError(f"scores must be floating point [{num_users}, {num_items}], got {came}")
    return scores.detach().cpu()

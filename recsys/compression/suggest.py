"""Which tables fit a budget: rows, chunks and precision from how many ids there are and how often each occurs.

Without collisions where that fits: one row per id in int8, else in int4, which lose next to nothing. Else one
multiplexed store, whose chunks have to do with two kinds of harm. An id is *lost* when in every one of its k chunks it
shares the row with a more frequent id of its own reader, which then decides what stands there; more chunks help. And a
row is *crowded*, by ids of all readers, which the model must tell apart by direction; more chunks make that worse.

    lost_t = sum_x p_t(x) q_t(x)^k                  q_t(x) = 1 - (1 - 1 / M)^r_t(x)
    load   = k sum_t exp(H_t) / M                   H_t = - sum_x p_t(x) ln p_t(x)
    harm   = max(max_t lost_t, min(1, load / CROWD))

    p_t(x)  share of id x in the occurrences of reader t in train
    r_t(x)  number of ids of t that are more frequent: each hits the row of a chunk of x with probability 1 / M
    exp(H)  ids that a reader has in effect: as many, equally frequent, would be as uncertain

What is proposed has the least harm. That is rows at the precision that gives the most of them, and so many chunks that
`lost` is small, but no more. As the budget grows, M grows, and harm never rises.

CROWD is set by measurements: ML-1M, DCN-V2, width 30, 13,154 ids, 7,479 in effect. Test AUC by harm, in int4 at 158 kB
(k = 3) .8914 by .02, 50 kB (3) .887 by .05, 25 kB (3) .880 by .11, 10 kB (3) .866 by .34; in float32 at 158 kB .880 by
.07 (k = 3), .879 by .19 (2), .82 by .52 (1); without collisions .8918 in float32 and int8, .8916 in int4. And at 25 kB
in int4, validation: .8768 for 3 chunks of 10 (.114), .8755 for 4 of 8 (.120), .8738 for 5 of 6 (.131). Fewer chunks
where they do no harm (158 kB: user 3, movie and zip 2, the small features 1) gave .8898 on validation, 3 for all .8893,
with 10 look-ups for 18. One world, one model, single seeds: what is proposed is a start, which `recsys compress sweep`
measures.

Shapes: G groups of ids of a reader, by frequency; n ids, k chunks, d chunk_dim, M rows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.embedding.precision import PRECISIONS, Precision, row_bytes
from recsys.embedding.table import Reader

CROWD = 80.0
MIN_CHUNK_DIM = 4  # a narrower packed row is scale and offset for the most part
HARMFUL = 0.1
WITHOUT_COLLISIONS: tuple[Precision, ...] = ("int8", "int4")
_HEAD, _GROUPS = 1000, 3000


@dataclass(frozen=True, kw_only=True, eq=False)
class Usage:
    """How the occurrences of one reader spread over its ids, most frequent first.

    rank [G] float64: r of the ids of a group; mass [G]: their share of the occurrences, together 1; size [G]: their
    number.
    listed: whether its ids are known one by one, so that each can have a row. assumed: the frequencies are a guess.
    """

    name: str
    num_embeddings: int
    rank: Tensor
    mass: Tensor
    size: Tensor
    listed: bool = True
    assumed: bool = False

    @staticmethod
    def counted(name: str, counts: Tensor) -> "Usage":
        """From occurrences [n] in train; every id is a group."""
        falling = counts.double().sort(descending=True).values
        total = float(falling.sum())
        mass = falling / total if total else torch.full_like(falling, 1 / len(falling))
        rank = torch.arange(len(counts), dtype=torch.float64)
        return Usage(name=name, num_embeddings=len(counts), rank=rank, mass=mass, size=torch.ones_like(rank))

    @staticmethod
    def zipf(name: str, num_embeddings: int, listed: bool = True) -> "Usage":
        """As Zipf's law says where nothing was counted: the r-th most frequent id occurs in proportion to 1 / r.

        Beyond the first _HEAD ids in geometric groups, so that 10^9 ids take no more memory than a few thousand.
        """
        head = torch.arange(1, min(num_embeddings, _HEAD) + 1, dtype=torch.float64)
        rank, mass, size = head - 1, 1 / head, torch.ones_like(head)
        if num_embeddings > _HEAD:
            ends = (_HEAD + 0.5, num_embeddings + 0.5)
            edges = torch.logspace(math.log10(ends[0]), math.log10(ends[1]), _GROUPS + 1, dtype=torch.float64)
            rank = torch.cat([rank, (edges[1:] + edges[:-1]) / 2 - 1])
            mass, size = torch.cat([mass, (edges[1:] / edges[:-1]).log()]), torch.cat([size, edges.diff()])
        mass /= mass.sum()
        return Usage(
            name=name, num_embeddings=num_embeddings, rank=rank, mass=mass, size=size, listed=listed, assumed=True
        )

    @staticmethod
    def of(reader: Reader, num_embeddings: int | None = None, hashed: bool = False) -> "Usage":
        """Of a reader as it is known; num_embeddings: said by hand where it is not.

        Raises ValueError naming the reader when its number of ids is known by neither.
        """
        if reader.counts is not None:
            return Usage.counted(reader.name, reader.counts)
        number = reader.num_embeddings or num_embeddings
        if number is None:
            raise ValueError(f"the number of ids of {reader.name!r} is not known here")
        return Usage.zipf(reader.name, number, listed=not hashed)

    @property
    def effective(self) -> float:
        """exp(H): how many ids there are in effect, in groups of alike ones too."""
        present = self.mass > 0
        alike = self.size[present]
        return float((-(self.mass[present] * (self.mass[present] / alike).log()).sum()).exp())

    def lost(self, rows: int, chunks: int) -> float:
        """Share of the occurrences whose id meets a more frequent one of this reader in all of its chunks."""
        shared = 1 - (1 - 1 / rows) ** self.rank  # [G]
        return float((self.mass * shared**chunks).sum())


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to spend the budget. lost: share of lost occurrences, by reader; {} without collisions. load: ids on a
    row, in effect.
    """

    precision: Precision
    chunks: int
    chunk_dim: int
    rows: int
    lost: Mapping[str, float]
    load: float

    @property
    def collisionless(self) -> bool:
        """Whether every id has a row of its own."""
        return not self.lost

    @property
    def bytes(self) -> int:
        """As served."""
        return self.rows * row_bytes(self.chunk_dim, self.precision)

    @property
    def worst(self) -> float:
        """`lost` of the reader that loses most."""
        return max(self.lost.values(), default=0.0)

    @property
    def crowded(self) -> float:
        """How full rows are, 1 being too full."""
        return 0.0 if self.collisionless else min(1.0, self.load / CROWD)

    @property
    def harm(self) -> float:
        """The worse of the two."""
        return max(self.worst, self.crowded)


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What to take, what else was looked at, and why.

    fewer: readers -> the fewest chunks that lose no more than `chosen.harm` of them, where these are fewer than chosen.
    """

    table: str
    budget: int
    chosen: Candidate
    others: tuple[Candidate, ...]
    fewer: Mapping[str, int]
    why: tuple[str, ...]

    def section(self) -> str:
        """The config's section, TOML."""
        chosen = self.chosen
        lines = [f"[tables.{self.table}]  # {chosen.bytes:,} of {self.budget:,} bytes"]
        if chosen.collisionless:
            lines += ['method = "dense"', f"embedding_dim = {chosen.chunk_dim}"]
        else:
            lines += ['method = "unified"', f"num_embeddings = {chosen.rows}", f"chunk_dim = {chosen.chunk_dim}"]
            lines += [f"chunks = {chosen.chunks}"]
        return "\n".join([*lines, f'precision = "{chosen.precision}"'])


def suggest(table: str, usages: Sequence[Usage], embedding_dim: int, budget: int) -> Suggestion:
    """Tables of about this width within `budget` served bytes; the same for the same input, whatever the order.

    As the budget grows, `harm` never rises. Raises ValueError, naming the minimum, when it does not pay for one row.
    """
    usages = sorted(usages, key=lambda usage: usage.name)
    flat = [_flat(usages, embedding_dim, precision) for precision in PRECISIONS]
    listed = all(usage.listed for usage in usages)
    fitting = [found for found in flat if listed and found.precision in WITHOUT_COLLISIONS and found.bytes <= budget]
    shared = list(_shared(usages, embedding_dim, budget))
    if not shared:
        least = min(row_bytes(d, p) for _, d in _shapes(embedding_dim) for p in PRECISIONS)
        raise ValueError(f"table {table!r}: {budget}B is too small, the minimum is {least}B, one row")
    best = min(shared, key=lambda found: (found.harm, found.worst, found.chunks))
    chosen = max(fitting, key=lambda found: found.bytes, default=best)
    fewer = {} if chosen.collisionless else dict(_fewer(usages, chosen))
    others = tuple(found for found in (*flat, *shared) if found is not chosen)
    why = tuple(_reasons(usages, flat, shared, chosen, budget))
    return Suggestion(table=table, budget=budget, chosen=chosen, others=others, fewer=fewer, why=why)


def _flat(usages: Sequence[Usage], embedding_dim: int, precision: Precision) -> Candidate:
    rows = sum(usage.num_embeddings for usage in usages)
    return Candidate(precision=precision, chunks=1, chunk_dim=embedding_dim, rows=rows, lost={}, load=1.0)


def _shapes(embedding_dim: int) -> Iterator[tuple[int, int]]:
    """Chunks and chunk_dim of vectors of at least this width; one chunk always."""
    yield 1, embedding_dim
    for chunks in range(2, embedding_dim + 1):
        chunk_dim = -(-embedding_dim // chunks)
        if chunk_dim >= MIN_CHUNK_DIM and (chunks - 1) * chunk_dim < embedding_dim:  # none that the width needs not
            yield chunks, chunk_dim


def _shared(usages: Sequence[Usage], embedding_dim: int, budget: int) -> Iterator[Candidate]:
    for precision in PRECISIONS:
        for chunks, chunk_dim in _shapes(embedding_dim):
            rows = budget // row_bytes(chunk_dim, precision)
            if rows:
                lost = {usage.name: usage.lost(rows, chunks) for usage in usages}
                load = chunks * sum(usage.effective for usage in usages) / rows
                yield Candidate(
                    precision=precision, chunks=chunks, chunk_dim=chunk_dim, rows=rows, lost=lost, load=load
                )


def _fewer(usages: Sequence[Usage], chosen: Candidate) -> Iterator[tuple[str, int]]:
    for usage in usages:
        enough = [chunks for chunks in range(1, chosen.chunks) if usage.lost(chosen.rows, chunks) <= chosen.harm]
        if enough:
            yield usage.name, enough[0]


def _reasons(
    usages: Sequence[Usage], flat: Sequence[Candidate], shared: Sequence[Candidate], chosen: Candidate, budget: int
) -> Iterator[str]:
    ids = sum(usage.num_embeddings for usage in usages)
    sizes = ", ".join(f"{found.bytes:,} in {found.precision}" for found in flat)
    yield f"{ids:,} ids of {len(usages)} readers, one row of {flat[0].chunk_dim} each: bytes {sizes}"
    assumed = [usage.name for usage in usages if usage.assumed]
    if assumed:
        yield f"frequencies of {', '.join(assumed)} are assumed (Zipf), not counted"
    if chosen.collisionless:
        yield f"every id has a row of its own in {chosen.precision} within {budget:,} bytes: multiplexing buys nothing"
        return
    yield f"rows: {chosen.precision} pays for the most, {chosen.rows:,} of {chosen.chunk_dim}"
    for found in shared:
        if found.precision == chosen.precision and abs(found.chunks - chosen.chunks) <= 1:
            lost = f"at most {found.worst:.1%} of a reader's occurrences are lost"
            yield f"chunks: with {found.chunks} of {found.chunk_dim} {lost}, rows are crowded {found.crowded:.1%}"
    if chosen.harm > HARMFUL:
        yield "ids will be confused and quality will suffer: give more bytes if you can"

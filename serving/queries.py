"""The questions and answers of the pipeline, as plain values: what the wire carries, without the wire.

Ids are raw ids as the catalogue writes them: int64 numbers, or texts. Columns are Arrow arrays of raw values.

Shapes: K items of an answer, B rows to score, T tasks, D dimension of the index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.retrieval.filters import And, Equal, In, Not, Or, Range
from serving.deadline import Deadline

if TYPE_CHECKING:
    import pandas as pd

RawId = int | str
RawIds = Sequence[int] | Sequence[str] | NDArray[Any]
Filter = And | Or | Not | Equal | In | Range


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest request that is answered; a larger one is refused before any work."""

    k: int = 10_000
    history: int = 10_000
    excluded: int = 10_000
    rows: int = 10_000


@dataclass(frozen=True, kw_only=True)
class SubjectQuery:
    """Who is asked about, and when.

    history: items [L], the latest last; None: the one that the bundle holds for the user. history_times: when they
    happened, [L], as the log writes times; they may then come in any order. history_features: event feature -> raw
    values [L]; those not given are missing. time: when this is asked: events at that time or later are not read, and
    ages are counted to it. None: after the newest event, of the history if it has times, else of all that the bundle
    holds.
    """

    user: RawId | None = None
    history: RawIds | None = None
    history_times: Sequence[int] | NDArray[np.int64] | None = None
    history_features: Mapping[str, pa.Array] = field(default_factory=dict)
    time: int | None = None


@dataclass(frozen=True, kw_only=True)
class RetrieveQuery(SubjectQuery):
    """Candidates for whom: user, history and features in any combination, or a vector [D].

    exclude_seen: leave out what the bundle says that the user has seen, and the request's history. excluded: leave
    these out besides. filter: which items are allowed.
    """

    k: int
    features: Mapping[str, pa.Array] = field(default_factory=dict)
    vector: NDArray[np.float32] | None = None
    exclude_seen: bool = False
    excluded: RawIds = ()
    filter: Filter | None = None


class FallbackReason(Enum):
    """Why the declared fallback answered and not the model."""

    NO_SUBJECT = "no_subject"
    UNKNOWN_USER = "unknown_user"
    NOTHING_USABLE = "nothing_usable"


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """That the fallback answered: why, and one sentence for a person."""

    reason: FallbackReason
    detail: str


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Candidates, best first. items [K] int64 or texts, scores [K] float32, sources [K] index into source_names.

    unknown_*: ids of the request that the catalogue does not hold, skipped. unread_history_ids: items of the request's
    history that the model did not read, because it reads fewer, or none, or they are not past.
    """

    items: NDArray[Any]
    scores: NDArray[np.float32]
    sources: NDArray[np.uint32]
    source_names: tuple[str, ...]
    fallback: Fallback | None = None
    user_known: bool = False
    unknown_history_ids: int = 0
    unknown_excluded_ids: int = 0
    unread_history_ids: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def to_pandas(self) -> "pd.DataFrame":
        """One row per candidate: rank (from 1), item, score, source."""
        import pandas as pd

        names = [self.source_names[source] for source in self.sources]
        ranks = np.arange(1, len(self.items) + 1)
        return pd.DataFrame({"rank": ranks, "item": self.items, "score": self.scores, "source": names})


@dataclass(frozen=True, kw_only=True)
class ScoreQuery(SubjectQuery):
    """Rows to score: one per item, or as many as the longest column has; a column of one row is repeated.

    columns go before what the bundle holds for the user and the items, and before the history.
    """

    items: RawIds | None = None
    columns: Mapping[str, pa.Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Probabilities [B, T] float32, one column per task; counts as in `Retrieved`. Unknown items are scored too."""

    scores: NDArray[np.float32]
    tasks: tuple[str, ...]
    user_known: bool = False
    unknown_item_ids: int = 0
    unknown_history_ids: int = 0
    unread_history_ids: int = 0


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The ids that a part of the bundle knows. *_are_texts: whether they are texts, and not numbers."""

    num_users: int
    num_items: int
    users_are_texts: bool
    items_are_texts: bool


@dataclass(frozen=True, kw_only=True)
class RetrievalInfo:
    """What Retrieve reads. embedding_dim 0: the model has no vectors.

    history_features: event features of a history that the model reads. history_times: whether it needs their times.
    """

    model: str
    catalogue: Catalogue
    embedding_dim: int
    features: tuple[str, ...]
    attributes: tuple[str, ...]
    history_features: tuple[str, ...] = ()
    history_times: bool = False


@dataclass(frozen=True, kw_only=True)
class RankingInfo:
    """What Score reads and predicts."""

    model: str
    catalogue: Catalogue
    features: tuple[str, ...]
    tasks: tuple[str, ...]
    history_features: tuple[str, ...] = ()
    history_times: bool = False


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What is served: the bundle's id, role -> component id, and its parts."""

    bundle_id: str
    components: Mapping[str, str]
    retrieval: RetrievalInfo | None
    ranking: RankingInfo | None


class Answerer(Protocol):
    """What answers; `serving.pipeline.Pipeline` does. Methods may be called from many threads at once.

    They raise the errors of `serving.errors`, DeadlineExpiredError between stages.
    """

    @property
    def bundle_id(self) -> str:
        """Of the bundle that the answers come from."""

    @property
    def info(self) -> BundleInfo:
        """What is served."""

    def retrieve(self, query: RetrieveQuery, deadline: Deadline) -> Retrieved:
        """The k best items."""

    def score(self, query: ScoreQuery, deadline: Deadline) -> Scored:
        """Probabilities of rows."""

"""Candidates for one request: subject, query, search, and what is left out. The retriever's part of the pipeline.

Two kinds of model answer: one with vectors, through its index, and one in closed form, which scores the catalogue from
a history. Where neither can say anything of the subject, the declared fallback (popularity) answers and says why.

Shapes: K candidates, n items of the catalogue, M vectors of a user, D their dimension.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from features.batch import Batch
from recsys.components.parts import RetrieverPart
from recsys.models.interface import ClosedForm
from recsys.retrieval import Attributes, Index, top_k
from serving.deadline import Deadline
from serving.errors import InvalidArgumentError
from serving.inputs import Column, Inputs, Positions, Subject, catalogue_of, positions_of, user_columns
from serving.queries import (
    Fallback,
    FallbackReason,
    Filter,
    Limits,
    RetrievalInfo,
    Retrieved,
    RetrieveQuery,
)

FALLBACK = "fallback"
Search = Callable[[int, Tensor | None], tuple[Tensor, Tensor]]  # (k, allowed [n]) -> positions, scores, best first


class Retrieval:
    """Answers RetrieveQuery from the retriever part of a bundle."""

    def __init__(self, part: RetrieverPart, limits: Limits) -> None:
        self._part = part
        self._limits = limits
        self._num_items = len(part.items)
        reads = () if isinstance(part.model, ClosedForm) else part.model.user_inputs
        self._inputs = Inputs(part.entities, reads)
        self._features = user_columns(part.entities.encoder.schema)
        self._attributes = Attributes(part.items.attributes)

    @property
    def info(self) -> RetrievalInfo:
        """What can be asked."""
        return RetrievalInfo(
            model=self._part.name,
            catalogue=catalogue_of(self._part.entities),
            embedding_dim=0 if self._part.index is None else self._part.index.embedding_dim,
            features=tuple(self._features),
            attributes=tuple(self._attributes.names),
            history_features=self._inputs.history_features,
            history_times=self._inputs.reads_times,
        )

    def warm_up(self) -> None:
        """Answer for the first user there is."""
        users = self._part.entities.users
        if users is not None and len(users.table) and self._num_items:
            query = RetrieveQuery(k=1, user=users.table.raw_ids[0], excluded=self._part.items.raw_ids[:1])
            self.answer(query, Deadline.never())

    def answer(self, query: RetrieveQuery, deadline: Deadline) -> Retrieved:
        """The candidates; InvalidArgumentError for what cannot be answered, DeadlineExpiredError between stages."""
        self._check(query)
        subject = self._inputs.subject(query, self._limits.history)
        excluded = positions_of(self._part.items, query.excluded, "excluded")
        allowed = None if query.filter is None else self._allowed(query.filter)
        deadline.check("query")
        search, fallback = self._search(query, subject)
        deadline.check("search")
        dropped = self._dropped(query, subject, excluded[excluded >= 0])
        items, scores = _without(search, query.k, allowed, dropped)
        deadline.check("reply")
        return Retrieved(
            items=np.asarray(self._part.items.raw(items)),
            scores=scores.numpy(),
            sources=np.zeros(len(items), dtype=np.uint32),
            source_names=(FALLBACK if fallback else self._part.name,),
            fallback=fallback,
            user_known=subject.user >= 0,
            unknown_history_ids=subject.unknown_history_ids,
            unknown_excluded_ids=int((excluded < 0).sum()),
            unread_history_ids=self._unread(subject),
        )

    def _check(self, query: RetrieveQuery) -> None:
        if not 1 <= query.k <= self._limits.k:
            raise InvalidArgumentError.got("k", query.k, f"1 to {self._limits.k}")
        if len(query.excluded) > self._limits.excluded:
            raise InvalidArgumentError.got("excluded", f"{len(query.excluded)} ids", f"at most {self._limits.excluded}")
        for name, column in query.features.items():
            if len(column) != 1:
                raise InvalidArgumentError.got(f"features[{name}]", f"{len(column)} rows", "one row")
        if query.vector is not None:
            self._check_vector(query, query.vector)

    def _check_vector(self, query: RetrieveQuery, vector: NDArray[np.float32]) -> None:
        if self._part.index is None:
            raise InvalidArgumentError("vector", f"model {self._part.name!r} has no vectors, accepted: no vector")
        if vector.shape != (self._part.index.embedding_dim,):
            came, dim = f"{vector.size} numbers", self._part.index.embedding_dim
            raise InvalidArgumentError.got("vector", came, f"{dim}, the dimension of the index")
        if not np.isfinite(vector).all():
            place = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise InvalidArgumentError.got(f"vector[{place}]", float(vector[place]), "finite numbers")
        if query.features:
            raise InvalidArgumentError("features", "a vector is given, accepted: no features beside it")

    def _allowed(self, predicate: Filter) -> Tensor:
        try:
            return self._attributes.bitmap(predicate)
        except ValueError as error:
            raise InvalidArgumentError("filter", str(error)) from None

    def _dropped(self, query: RetrieveQuery, subject: Subject, excluded: Positions) -> Tensor:
        """The positions to leave out, unique."""
        parts = [excluded]
        if query.exclude_seen:
            parts.append(self._part.seen(subject.user))
            parts.append(np.zeros(0, dtype=np.int64) if subject.history is None else subject.history)
        return torch.from_numpy(np.unique(np.concatenate(parts)))

    def _unread(self, subject: Subject) -> int:
        return 0 if isinstance(self._part.model, ClosedForm) else self._inputs.unread(subject)

    # --- who answers ---

    def _search(self, query: RetrieveQuery, subject: Subject) -> tuple[Search, Fallback | None]:
        """The search that answers, and the reason if it is the fallback's."""
        given = self._inputs.encoded(query.features, "features", self._features)
        index, model = self._part.index, self._part.model
        if index is not None and query.vector is not None:
            return _index_search(index, torch.from_numpy(query.vector)[None]), None
        found: Search | None = None
        if isinstance(model, ClosedForm):
            found = self._closed_form(model, subject)
        elif index is not None and self._says_something(subject, given):
            found = _index_search(index, model.user_vectors(self._user_batch(subject, given)))
        if found is not None:
            return found, None
        return _score_search(self._part.fallback), self._why(query, known=subject.user >= 0)

    def _says_something(self, subject: Subject, given: dict[str, Column]) -> bool:
        """Whether the user is known, or the model reads anything that the request gives of him."""
        if subject.user >= 0:
            return True
        history = subject.history is not None and len(subject.history) > 0 and self._inputs.max_history > 0
        return (history or bool(given)) and self._inputs.takes_unknown_user(given)

    def _user_batch(self, subject: Subject, given: dict[str, Column]) -> Batch:
        """One row: what the bundle holds for the user (or for an unknown one), and before it what the request gives."""
        users = np.array([subject.user])
        stored = self._inputs.of_users(users, given) | self._inputs.sequences(users, subject, given)
        return Batch(features=stored | given)

    def _closed_form(self, model: ClosedForm, subject: Subject) -> Search | None:
        """Scores from the history; None when they are all the same, as for an empty history."""
        history = self._part.seen(subject.user) if subject.history is None else np.unique(subject.history)
        if subject.user < 0 and len(history) == 0:
            return None
        offsets = np.array([0, len(history)])
        row = csr_matrix((np.ones(len(history), np.float32), history, offsets), shape=(1, self._num_items))
        scores = model.history_scores(row)[0]  # [n]
        return _score_search(scores) if len(scores) and bool(scores.min() < scores.max()) else None

    def _why(self, query: RetrieveQuery, known: bool) -> Fallback:
        if query.history is None and not query.features and not known:
            if query.user is None:
                detail = "the request gives no user, history or features"
                return Fallback(reason=FallbackReason.NO_SUBJECT, detail=detail)
            detail = "the bundle does not know the user, and the request gives neither history nor features"
            return Fallback(reason=FallbackReason.UNKNOWN_USER, detail=detail)
        closed = isinstance(self._part.model, ClosedForm)
        reads = "the known items of a history" if closed else ", ".join(self._inputs.names)
        detail = f"model {self._part.name!r} reads {reads}, and there is nothing of that"
        return Fallback(reason=FallbackReason.NOTHING_USABLE, detail=detail)


def _index_search(index: Index, queries: Tensor) -> Search:
    """Queries [1, D] or [1, M, D]."""

    def search(k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        hits = index.search(queries, k, allowed)
        count = int(hits.counts[0])
        return hits.ids[0, :count], hits.scores[0, :count]

    return search


def _score_search(scores: Tensor) -> Search:
    """Scores of every item [n]."""

    def search(k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        masked = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
        best, positions = top_k(masked[None], k)
        found = best[0] > float("-inf")
        return positions[0, found], best[0, found]

    return search


def _without(search: Search, k: int, allowed: Tensor | None, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """The k best without the dropped ones: as many more are asked for as could be dropped."""
    items, scores = search(k + len(dropped), allowed)
    kept = ~torch.isin(items, dropped)
    return items[kept][:k], scores[kept][:k]

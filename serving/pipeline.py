"""What the server does, without a server: a loaded bundle that answers queries. No gRPC, no protobuf.

The same object answers offline, which is how served and offline lists are compared.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch

from recsys.bundle import Bundle
from recsys.components.parts import RankerPart, RetrieverPart, load_ranker, load_retriever
from serving.deadline import Deadline
from serving.errors import NotServedError
from serving.queries import BundleInfo, Limits, Retrieved, RetrieveQuery, Scored, ScoreQuery
from serving.retrieval import Retrieval
from serving.scoring import Scoring


class Pipeline:
    """One bundle, ready to answer. Safe to use from many threads at once: nothing changes after it was made.

    components: role -> component id.
    Example: `Pipeline.load(BundleStore("store").open()).retrieve(RetrieveQuery(user=7, k=10)).items`.
    """

    def __init__(
        self,
        bundle_id: str,
        components: Mapping[str, str],
        retriever: RetrieverPart | None,
        ranker: RankerPart | None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self.bundle_id = bundle_id
        self._components = dict(components)
        self._retrieval = None if retriever is None else Retrieval(retriever, limits)
        self._scoring = None if ranker is None else Scoring(ranker, limits)

    @classmethod
    def load(cls, bundle: Bundle, allowed: Sequence[str] = (), limits: Limits | None = None) -> Self:
        """Read the parts that a verified bundle holds.

        allowed: packages of the user's whose classes may be imported. Raises ValueError when a part cannot be built.
        """
        components = {role: part.component for role, part in bundle.manifest.roles.items()}
        retriever = load_retriever(bundle, allowed) if "retriever" in bundle.roles else None
        ranker = load_ranker(bundle, allowed) if "ranker" in bundle.roles else None
        pipeline = cls(bundle.id, components, retriever, ranker, limits)
        pipeline._warm_up()
        return pipeline

    def _warm_up(self) -> None:
        """Do what is done once, at the first use of each table, before there is a caller to wait for it."""
        with torch.inference_mode():
            for part in (self._retrieval, self._scoring):
                if part is not None:
                    part.warm_up()

    @property
    def info(self) -> BundleInfo:
        """What is served."""
        return BundleInfo(
            bundle_id=self.bundle_id,
            components=self._components,
            retrieval=None if self._retrieval is None else self._retrieval.info,
            ranking=None if self._scoring is None else self._scoring.info,
        )

    def retrieve(self, query: RetrieveQuery, deadline: Deadline | None = None) -> Retrieved:
        """The k best items. Raises the errors of `serving.errors`; DeadlineExpiredError between stages."""
        if self._retrieval is None:
            raise NotServedError(f"bundle {self.bundle_id[:12]} holds no retriever")
        with torch.inference_mode():
            return self._retrieval.answer(query, deadline or Deadline.never())

    def score(self, query: ScoreQuery, deadline: Deadline | None = None) -> Scored:
        """Probabilities of rows. Raises the errors of `serving.errors`; DeadlineExpiredError between stages."""
        if self._scoring is None:
            raise NotServedError(f"bundle {self.bundle_id[:12]} holds no ranker")
        with torch.inference_mode():
            return self._scoring.answer(query, deadline or Deadline.never())

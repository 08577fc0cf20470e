"""A few steps of a specification's stages over the small schema of the table laws, without the trainer."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from features.batch import Batch
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.optimizers import RowWiseAdagrad
from recsys.embedding.table import EmbeddingTable, Search, TableSpec
from recsys.laws.small_schema import build, fixed, flat, names_of, small_batch
from recsys.phases import Phase, Step, Until

STEPS = 25


class Staged:
    """A collection, its dense optimizer, and the phases that its specification makes of one of `STEPS` steps.

    seen: called after each step with the name of the phase. restarts: how often a table asked for initial values.
    """

    def __init__(
        self,
        spec: TableSpec,
        score: Callable[[EmbeddingCollection], float] | None = None,
        seen: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.collection = build(spec, RowWiseAdagrad(lr=0.1))
        self.dense = torch.optim.Adam([*self.collection.parameters(), torch.zeros(1, requires_grad=True)], lr=0.01)
        self.restarts = 0
        self.seen = seen
        self.evaluate = None if score is None else lambda: {"auc": score(self.collection)}
        self.phases = self.collection.schedule([self._phase()], self._search)

    def _phase(self) -> Phase:
        def batches(epoch: int, start: int) -> Iterator[tuple[Batch, int]]:
            yield from ((small_batch(), position) for position in range(start + 1, STEPS + 1))

        until = Until(max_epochs=1)
        return Phase(
            name="ctr", batches=batches, num_batches=STEPS, loss=self._loss, optimizers=(self.dense,), until=until
        )

    def _loss(self, batch: Batch, step: Step) -> Tensor:
        vectors = flat(self.collection(batch), names_of(self.collection))
        return (vectors - fixed(len(vectors), seed=4)).square().mean().unsqueeze(0)

    def _search(self, tables: Mapping[str, EmbeddingTable]) -> Search:
        return Search(
            tables=tables,
            weights=self.collection.backend.weights,
            evaluate=self.evaluate,
            metric="auc",
            higher_is_better=True,
            restart=self._restart,
            seed=0,
        )

    def _restart(self) -> None:
        self.restarts += 1

    def train(self, phases: Sequence[Phase] | None = None) -> "Staged":
        """Run the phases (all of them)."""
        for phase in self.phases if phases is None else phases:
            for epoch in range(phase.until.max_epochs):
                for batch, position in phase.batches(epoch, 0):
                    self._step(phase, batch, Step(seed=0, phase=phase.name, epoch=epoch, index=position - 1))
            if phase.on_end is not None:
                phase.on_end()
        return self

    def _step(self, phase: Phase, batch: Batch, step: Step) -> None:
        self.dense.zero_grad()
        loss, penalty = phase.loss(batch, step).sum(), self.collection.penalty()
        (loss if penalty is None else loss + penalty).backward()
        self.dense.step()
        self.collection.on_step()
        self.seen(phase.name)

"""The only training loop: it steps phases, watches a metric, checkpoints, resumes, and knows no model by name.

One process or many: a rank's loss is W * sum(w_i * loss_i) / (sum of w over all ranks), gradients of the dense part
are averaged over ranks, and the tables divide theirs by W: the result is the weighted mean over the global batch.

A run that is resumed equals one that never stopped: data order and every random draw are functions of
(seed, phase, epoch, global batch), and the rest is in the checkpoint.

Shapes: B rows of this rank's part of a global batch; W ranks.
"""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from features.batch import Batch
from recsys import distributed
from recsys.config import Precision
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.stores import NonFiniteGradientError
from recsys.phases import Phase, Step
from recsys.training.checkpoint import Checkpoints
from recsys.training.profiling import BACKWARD, FORWARD, LOADER, UPDATE
from recsys.training.schedule import Schedule
from recsys.training.state import dense_tensors, load_model, load_training, model_tensors, table_tensors

Evaluate = Callable[[], Mapping[str, float]]

STOPPED = "stopped by a signal; the last finished step is in the checkpoint"
LOWER_IS_BETTER = ("logloss", "calibrated_logloss", "loss", "normalized_entropy")


def higher_is_better(metric: str) -> bool:
    """Which way a metric goes; "logloss[label]", that of a further label, goes as "logloss" does."""
    return metric.partition("[")[0] not in LOWER_IS_BETTER


class Interrupted(Exception):  # noqa: N818  # it is no error
    """Training was asked to stop (SIGTERM or SIGINT); a checkpoint of the last finished step has been written."""


class Observer(Protocol):
    """Who watches the training: a progress bar, a log."""

    def on_step(self, progress: "Progress", total_batches: int, loss: float, rows: int) -> None:
        """A step over `rows` rows of all ranks, those of weight 0 not counted, is done."""

    def on_evaluation(self, progress: "Progress", metrics: Mapping[str, float], best: bool) -> None:
        """A validation is done; best says whether it is the best so far, in a phase that keeps its best."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train: seed, the watched metric, epochs between evaluations, clipping, and seconds between checkpoints.

    keep_best: the model ends with the weights of its best evaluation rather than the last.
    fingerprint: goes into checkpoints (config hash and the like); one that differs is refused on resuming.
    device: where the model is; batches are moved there. precision: "bf16" runs the forward pass under torch's autocast,
        matrix products in bfloat16; weights, losses, optimizer state and evaluations stay in float32.
    dense_schedule, table_schedule: learning rates by step, None for constant ones.
    """

    seed: int
    metric: str = ""
    evaluate_every: int = 1
    clip_norm: float | None = None
    checkpoint_every_s: float = 60.0
    keep_best: bool = True
    fingerprint: str = ""
    device: str = "cpu"
    precision: Precision = "float32"
    dense_schedule: Schedule | None = None
    table_schedule: Schedule | None = None


@dataclass(frozen=True)
class Progress:
    """Where training stands. phase, name: index and name of the phase; batch: next global batch of `epoch`; seconds:
    time in training.

    best, best_epoch, since_best: the best validation metric, the number of epochs after which it was reached, and the
    evaluations since. done: nothing is left.
    """

    phase: int = 0
    name: str = ""
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    since_best: int = 0
    evaluated: bool = False
    done: bool = False
    history: tuple[Mapping[str, float], ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class _Agreed:
    """What all ranks know of a step: sum of weights, mean loss, rows, and whether to stop and to save after it."""

    weight: float
    loss: float
    rows: int
    stop: bool
    save: bool


def evaluated(model: nn.Module, evaluate: Evaluate) -> Mapping[str, float]:
    """The metrics of the model in eval mode, without gradient, the same on all ranks; it returns to its mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        metrics: Mapping[str, float] = distributed.broadcast_object(dict(evaluate()))  # a last bit apart, ranks part
    model.train(training)
    return metrics


class Trainer:
    """Runs phases over a model. `fit()` goes from the last checkpoint, if there is one, to the end.

    model: every parameter and table of it is checkpointed. evaluate: validation metrics of the model as it stands
    (called on all ranks, must return the same on all), or None for training without validation.
    """

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        checkpoints: Checkpoints,
        settings: Settings,
        evaluate: Evaluate | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.model = model
        self.phases = tuple(phases)
        self.checkpoints = checkpoints
        self.settings = settings
        self.evaluate = evaluate
        self.observers = tuple(observers)
        self.collections = [module for module in model.modules() if isinstance(module, EmbeddingCollection)]
        self.progress = Progress()
        groups = [group for phase in self.phases for optimizer in phase.optimizers for group in optimizer.param_groups]
        self._rates = {id(group): group["lr"] for group in groups}
        self._saved_at = time.monotonic()
        self._stop_asked = False

    def fit(self) -> Progress:
        """Train to the end. Raises Interrupted after a signal, ValueError when the loss is not finite."""
        self.restore()
        with self._signals():
            while not self.progress.done:
                self._run_phase(self.phases[self.progress.phase])
        return self.progress

    def restore(self) -> None:
        """Continue from the checkpoint `last`; a checkpoint of another config is refused with both hashes."""
        if not self.checkpoints.exists("last"):
            self._advance(done=not self.phases)
            return
        meta = self.checkpoints.meta("last")
        self._check_fingerprint(meta)
        self._check_threads(meta)
        load_training(self.model, self.phases, self.checkpoints, "last")
        self.progress = Progress(**{**meta["progress"], "history": tuple(meta["progress"]["history"])})

    # --- phases and epochs ---

    def _run_phase(self, phase: Phase) -> None:
        self._advance(name=phase.name)
        while self.progress.epoch < phase.until.max_epochs and not self._out_of_patience(phase):
            if not self.progress.evaluated:
                self._run_epoch(phase)
                self._end_of_epoch(phase)
            self._advance(epoch=self.progress.epoch + 1, batch=0, evaluated=False)
        self._end_phase(phase)

    def _end_phase(self, phase: Phase) -> None:
        """Go back to the phase's best weights, let it end, and note that it has; a kill before that repeats this."""
        if self.settings.keep_best and phase.keep_best and self.progress.best is not None:
            load_model(self.model, self.checkpoints, "best")
        if phase.on_end is not None:
            phase.on_end()
        before, after = self.progress, self.progress.phase + 1
        fresh = Progress(phase=after, step=before.step, seconds=before.seconds, history=before.history)
        self.progress = replace(before, done=True) if after == len(self.phases) else fresh
        self.save()

    def _run_epoch(self, phase: Phase) -> None:
        self.model.train()
        batches = iter(phase.batches(self.progress.epoch, self.progress.batch))
        while (found := self._next(batches)) is not None:
            self._timed_step(phase, *found)

    def _next(self, batches: Iterator[tuple[Batch, int]]) -> tuple[Batch, int] | None:
        """The next batch, where the model is, and its position; None at the end of the epoch."""
        with record_function(LOADER):
            found = next(batches, None)
            if found is None or self.settings.device == "cpu":
                return found
            return found[0].to(self.settings.device), found[1]

    def _timed_step(self, phase: Phase, batch: Batch, position: int) -> None:
        started = time.monotonic()
        step = Step(
            seed=self.settings.seed, phase=phase.name, epoch=self.progress.epoch, index=self.progress.batch
        )  # fmt: skip
        agreed = self._step(phase, batch, step)
        seconds = self.progress.seconds + time.monotonic() - started
        self._advance(batch=position, step=self.progress.step + 1, seconds=seconds)
        for observer in self.observers:
            observer.on_step(self.progress, phase.num_batches, agreed.loss, agreed.rows)
        if agreed.stop or agreed.save:
            self.save()
        if agreed.stop:
            raise Interrupted(STOPPED)

    def _end_of_epoch(self, phase: Phase) -> None:
        """Evaluate when it is due, and note in the checkpoint that this epoch has been evaluated."""
        epochs = self.progress.epoch + 1
        due = epochs % self.settings.evaluate_every == 0 or epochs == phase.until.max_epochs
        if self.evaluate is None or not due:
            return
        metrics = evaluated(self.model, self.evaluate)
        better = self._is_better(metrics)
        record = {"phase": float(self.progress.phase), "epoch": float(epochs), **metrics}
        self._advance(history=(*self.progress.history, record), evaluated=True)
        if better:
            self._advance(best=metrics[self.settings.metric], best_epoch=epochs, since_best=0)
        else:
            self._advance(since_best=self.progress.since_best + 1)
        for observer in self.observers:
            observer.on_evaluation(self.progress, metrics, better and phase.keep_best)
        if better and self.settings.keep_best and phase.keep_best:
            self.save("best")
        self.save()
        if distributed.any_rank(self._stop_asked):
            raise Interrupted(STOPPED)

    def _is_better(self, metrics: Mapping[str, float]) -> bool:
        if self.settings.metric not in metrics:
            raise ValueError(f"metric {self.settings.metric!r} is not among the validation metrics {sorted(metrics)}")
        value, best = metrics[self.settings.metric], self.progress.best
        sign = 1.0 if higher_is_better(self.settings.metric) else -1.0
        return best is None or sign * value > sign * best

    def _out_of_patience(self, phase: Phase) -> bool:
        patience = phase.until.patience
        return patience is not None and self.progress.since_best >= patience and not self.progress.evaluated

    # --- one step ---

    def _step(self, phase: Phase, batch: Batch, step: Step) -> _Agreed:
        """One update."""
        torch.manual_seed(step.generator().initial_seed())  # dropout of a user's layers: the same after resuming
        self._set_learning_rates(phase, step)
        for optimizer in phase.optimizers:
            optimizer.zero_grad(set_to_none=True)
        weights = batch.row_weights()
        with record_function(FORWARD), self._autocast():
            losses = phase.loss(batch, step)  # [B]
        if losses.shape != weights.shape:
            raise ValueError(f"phase {phase.name!r}: loss has shape {tuple(losses.shape)}, one per row is {len(batch)}")
        local = (losses * weights).sum()
        agreed = self._agree(weights, local.detach())
        self._check_finite(agreed.loss, phase, step)
        objective = local * (distributed.world_size() / agreed.weight)
        if phase.penalty is not None:
            objective = objective + phase.penalty(batch, step)
        for collection in self.collections:
            if (penalty := collection.penalty()) is not None:
                objective = objective + penalty
        self._backward(objective, phase, step)
        with record_function(UPDATE):
            self._update_dense(phase, step)
            for collection in self.collections:
                collection.on_step()
        return agreed

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.settings.device, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _set_learning_rates(self, phase: Phase, step: Step) -> None:
        """What the schedules say of this step, which is all that they know: nothing of them is in a checkpoint."""
        done = step.epoch * phase.num_batches + step.index
        if (schedule := self.settings.dense_schedule) is not None:
            for group in (group for optimizer in phase.optimizers for group in optimizer.param_groups):
                group["lr"] = self._rates[id(group)] * schedule.factor(done, phase.num_batches)
        if (schedule := self.settings.table_schedule) is not None:
            for collection in self.collections:
                collection.backend.scale_learning_rate(schedule.factor(done, phase.num_batches))

    def _backward(self, objective: Tensor, phase: Phase, step: Step) -> None:
        try:
            with record_function(BACKWARD):
                objective.backward()
        except NonFiniteGradientError as error:
            raise ValueError(f"{error} {self._place(phase, step)}") from None

    def _update_dense(self, phase: Phase, step: Step) -> None:
        parameters = [p for optimizer in phase.optimizers for group in optimizer.param_groups for p in group["params"]]
        distributed.average_gradients(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._check_finite(float(norm), phase, step, what="norm of the gradient")
        if self.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_norm, norm)
        for optimizer in phase.optimizers:
            optimizer.step()

    def _agree(self, weights: Tensor, total: Tensor) -> _Agreed:
        """Sum weights and loss over ranks; stop if any rank was asked to, save when rank 0's clock says so."""
        due = distributed.rank() == 0 and time.monotonic() - self._saved_at >= self.settings.checkpoint_every_s
        flags = torch.tensor([self._stop_asked, due], dtype=torch.float64, device=weights.device)
        sums = torch.stack([weights.sum().double(), total.double(), (weights > 0).sum().double()])
        weight_sum, total_sum, rows_sum, stop, save = distributed.all_reduce_sum(torch.cat([sums, flags])).tolist()
        weight_sum = max(weight_sum, 1e-30)
        loss = total_sum / weight_sum
        return _Agreed(weight=weight_sum, loss=loss, rows=int(rows_sum), stop=stop > 0, save=save > 0)

    def _check_finite(self, value: float, phase: Phase, step: Step, what: str = "loss") -> None:
        if not math.isfinite(value):
            raise ValueError(f"the {what} is {value} {self._place(phase, step)}")

    def _place(self, phase: Phase, step: Step) -> str:
        return (
            f"in phase {phase.name!r}, epoch {step.epoch}, batch {step.index}: look for a too high learning rate or "
            "for NaN in the features; the checkpoint before it is kept"
        )

    # --- state ---

    def save(self, tag: str = "last") -> None:
        """Write a checkpoint of everything (tag "last") or of the model alone ("best")."""
        tensors = model_tensors(self.model)
        if tag == "last":
            tensors |= table_tensors(self.model) | dense_tensors(self.model, self.phases)
        meta = {
            "progress": asdict(self.progress),
            "fingerprint": self.settings.fingerprint,
            "threads": torch.get_num_threads(),
            "world_size": distributed.world_size(),
        }
        self.checkpoints.save(tensors, meta, tag=tag)
        self._saved_at = time.monotonic()

    def _check_fingerprint(self, meta: Mapping[str, Any]) -> None:
        came = meta["fingerprint"]
        if came != self.settings.fingerprint:
            raise ValueError(
                f"the checkpoint in {self.checkpoints.folder} belongs to config {came[:12]}, "
                f"this run has {self.settings.fingerprint[:12]}; use another run name"
            )

    def _check_threads(self, meta: Mapping[str, Any]) -> None:
        """Say that a resumed run will differ in last bits from one never stopped, as it does over other ranks."""
        before, now = meta["threads"], torch.get_num_threads()
        if meta["world_size"] == distributed.world_size() and before != now:
            warnings.warn(
                f"the checkpoint was written with {before} torch threads, there are {now} now: sums are taken in "
                "another order and losses part in their last bits; set training.threads to have the same",
                stacklevel=3,
            )

    def _advance(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While training, SIGTERM and SIGINT ask for a checkpoint after the step in hand.

        Only the main thread may say so to Python; in another one signals keep their meaning.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(_signal: int, _frame: object) -> None:
            self._stop_asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

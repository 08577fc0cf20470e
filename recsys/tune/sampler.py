"""What a trial tries, and when it is given up: Optuna's TPE sampler and median pruner, without any state of their own.

What trial n tries is a function of (space, seed, n, the trials before it): Optuna's study is rebuilt from these for
each trial, in memory, with a sampler seeded by (seed, n). So a search that was killed and goes on is the one that was
never stopped, and nothing of Optuna's lies on disk. Bergstra et al. 2011 (TPE); Golovin et al. 2017 (median rule).
"""

import json
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from features.hashes import hash64
from recsys.training.trainer import Progress
from recsys.tune.space import Choice, Range, Setting, Space
from recsys.tune.trial import Trial

STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
FREE_TRIALS = 5  # are never pruned: there is no median yet
FREE_EVALUATIONS = 1


class Pruned(Exception):  # noqa: N818  # it is no error
    """The trial is worse than the median of the trials before it after as many evaluations."""


class Sampler:
    """Suggests the next trial of a space, given those before it, and judges it while it trains."""

    def __init__(self, space: Space, seed: int, maximize: bool) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.seed = seed
        self.maximize = maximize
        self.distributions = {key: distribution_of(allowed) for key, allowed in space.items()}

    def next(self, before: Sequence[Trial], metric: str) -> "Suggestion":
        """Trial number len(before), to be judged by a validation metric."""
        study = optuna.create_study(
            direction="maximize" if self.maximize else "minimize",
            sampler=optuna.samplers.TPESampler(seed=hash64(f"{self.seed}/{len(before)}", salt="trial") % 2**32),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FREE_TRIALS, n_warmup_steps=FREE_EVALUATIONS),
        )
        for trial in before:
            study.add_trial(self._frozen(trial))
        return Suggestion(study.ask(self.distributions), metric)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return optuna.trial.create_trial(
            state=STATES[trial.status],
            params={key: _encoded(trial.settings[key], kind) for key, kind in self.distributions.items()},
            distributions=self.distributions,
            value=trial.value if trial.status == "finished" else None,
            intermediate_values=dict(enumerate(trial.values)),
        )


class Suggestion:
    """One trial under way; as the trainer's observer it raises Pruned out of an evaluation.

    settings: what to try. values: the metric after each evaluation. seconds: of training.
    """

    def __init__(self, trial: optuna.Trial, metric: str) -> None:
        self._trial = trial
        self._metric = metric
        kinds = trial.distributions
        self.settings: Mapping[str, Setting] = {key: _decoded(value, kinds[key]) for key, value in trial.params.items()}
        self.values: list[float] = []
        self.seconds = 0.0

    def on_step(self, progress: Progress, total_batches: int, loss: float, rows: int) -> None:
        """Nothing: what counts is validation."""

    def on_evaluation(self, progress: Progress, metrics: Mapping[str, float], best: bool) -> None:
        """Compare with the trials before; a resumed one reports what it had evaluated earlier, too."""
        for record in progress.history[len(self.values) :]:
            self._trial.report(record[self._metric], len(self.values))
            self.values.append(record[self._metric])
        self.seconds = progress.seconds
        if self._trial.should_prune():
            raise Pruned


def distribution_of(allowed: Range | Choice) -> BaseDistribution:
    """Optuna's form; choices as JSON texts, since it takes no lists."""
    if isinstance(allowed, Choice):
        return CategoricalDistribution([json.dumps(choice) for choice in allowed.choices])
    if allowed.whole:
        return IntDistribution(int(allowed.low), int(allowed.high), log=allowed.log, step=int(allowed.step or 1))
    return FloatDistribution(float(allowed.low), float(allowed.high), log=allowed.log, step=allowed.step)


def _encoded(value: Setting, kind: BaseDistribution) -> Setting:
    return json.dumps(value) if isinstance(kind, CategoricalDistribution) else value


def _decoded(value: Setting, kind: BaseDistribution) -> Setting:
    decoded: Setting = json.loads(str(value)) if isinstance(kind, CategoricalDistribution) else value
    return decoded

from collections.abc import Sequence

import pytest

pytest.importorskip("optuna")

from recsys.training.trainer import Progress
from recsys.tune.sampler import Pruned, Sampler
from recsys.tune.space import Choice, Range, Setting, Space
from recsys.tune.trial import Trial

SPACE: Space = {
    "a": Range(low=-1.0, high=1.0),
    "b": Range(low=1, high=9, step=2),
    "c": Choice(choices=([1, 2], "x", 0.5)),
}


def score(settings: dict[str, Setting]) -> float:
    return -(float(settings["a"]) ** 2) + (0.5 if settings["c"] == "x" else 0.0)  # type: ignore[arg-type]


def trials(count: int, seed: int = 0, before: Sequence[Trial] = ()) -> list[Trial]:
    found = list(before)
    sampler = Sampler(SPACE, seed, maximize=True)
    while len(found) < count:
        settings = dict(sampler.next(found, "auc").settings)
        value = score(settings)
        found.append(Trial(number=len(found), status="finished", settings=settings, value=value, values=[value]))
    return found


def test_sampler_goes_on_as_if_it_had_not_stopped() -> None:
    whole = trials(16)
    assert trials(16, before=whole[:9]) == whole
    assert trials(16, seed=1) != whole


def test_sampler_keeps_to_the_space_and_finds_the_better_part() -> None:
    found = trials(40)
    assert {type(trial.settings["b"]) for trial in found} == {int}
    assert {trial.settings["b"] for trial in found} <= {1, 3, 5, 7, 9}
    assert all(trial.settings["c"] in ([1, 2], "x", 0.5) for trial in found)
    assert max(trial.value or -9.0 for trial in found[20:]) > 0.45


def test_suggestion_is_pruned_below_the_median_of_earlier_trials() -> None:
    settings: dict[str, Setting] = {"a": 0.0, "b": 1, "c": "x"}
    before = [
        Trial(number=n, status="finished", settings=settings, value=0.8, values=[0.7, 0.75, 0.8]) for n in range(6)
    ]
    suggestion = Sampler(SPACE, 0, maximize=True).next(before, "auc")
    history = ({"auc": 0.6}, {"auc": 0.65})
    suggestion.on_evaluation(Progress(history=history[:1]), {}, False)
    with pytest.raises(Pruned):
        suggestion.on_evaluation(Progress(history=history), {}, False)
    assert suggestion.values == [0.6, 0.65]


def test_failed_trials_teach_nothing_and_stop_nothing() -> None:
    failed = Trial(number=0, status="failed", settings={"a": 0.0, "b": 1, "c": "x"}, reason="diverged")
    assert len(trials(3, before=[failed])) == 3

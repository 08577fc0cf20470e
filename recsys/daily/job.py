"""The job itself, day after day: prepare, test, promote, train. See the package for what it leaves behind.

For day d, model d - 1 being the newest before it:

    1. prepare d on top of the prepared data of model d - 1; a day without examples is left out
    2. test model d - 1, and the promoted model, on d, which neither has seen (progressive validation)
    3. promote model d - 1, unless it is below the promoted one beyond the interval
    4. train model d on d, starting from the weights and the optimizer state of model d - 1

and when all days are trained, 1 to 3 for the day after the last. Every step finds what it has done already on disk, and
nothing else says how far the job came: killed anywhere and started again it ends as if it had not been, and `--from`
the day after goes on. Days that are done are not prepared, read or compared with the raw data again; a day that was
tested but not trained on is, and tested anew when its data has changed since (it was not over yet).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from features import storage
from features.utc_day import UtcDay
from features.view import Prepared
from recsys.config import ConfigError, RunConfig
from recsys.daily.series import write_series
from recsys.daily.trial import DAY_NAME, Candidate, Trial, Trials, judged
from recsys.held_folder import held
from recsys.models import model_class, table_encoder
from recsys.models.interface import Ranker
from recsys.run import Run
from recsys.run_state import FINISHED, differing_keys, read_config, read_state
from recsys.training.growth import check_can_grow

POINTER = "promoted.json"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the job is done with.

    prepare: a day on top of an earlier day's folder; None for a day without examples (`features.days.prepare_day`).
    train: a run, to its end. say: a line for people. publish: exports a run, points a label at it and returns the
    bundle's id; None where nothing is exported.
    """

    prepare: Callable[[UtcDay, Prepared | None], Prepared | None]
    train: Callable[[Run], None]
    say: Callable[[str], None]
    publish: Callable[[Run], str] | None = None


class Daily:
    """A job: one config, one folder.

    keep: runs whose checkpoints stay, the newest ones (0 = all); so do the promoted one's, and its last rival's.
    """

    def __init__(self, config: RunConfig, folder: Path, around: Surroundings, keep: int = 0) -> None:
        self.config, self.folder, self.around, self.keep = config, folder, around, keep
        self.trials = Trials(folder)

    def run(self, days: Sequence[UtcDay]) -> None:
        """Do what is not done yet of these days, which rise.

        Raises ConfigError for a config that has no days or no click model, a folder that is another config's or in use
        by another process, and where no day has examples; ValueError as `prepare_day` does.
        """
        self._check()
        with self._held():
            self._check_folder()
            for day in [*self._missed(days[0]), *days]:
                self._day(day, train=True)
            self._day(UtcDay(days[-1].date + timedelta(days=1)), train=False)
            self._conclude()
            if not self.trained():
                span = f"{days[0]}..{days[-1]}" if len(days) > 1 else str(days[0])
                raise ConfigError(f"no day of {span} has examples in {_raw_paths(self.config)}")

    def _missed(self, first: UtcDay) -> list[UtcDay]:
        """The days between the newest model and the first day asked for, which could never be trained later."""
        trained = [date.fromisoformat(name) for name in self.trained()]
        gap = (first.date - trained[-1]).days - 1 if trained else 0
        if gap > 0:
            self.around.say(f"{gap} days between {trained[-1]} and {first} are not done; they come first")
        return [UtcDay(first.date - timedelta(days=back)) for back in range(gap, 0, -1)]

    def trained(self) -> list[str]:
        """The days that have a finished model, in order."""
        folders = [path for path in sorted(self.folder.glob(DAY_NAME)) if (path / "config.json").exists()]
        return [path.name for path in folders if read_state(path / "run.json").stage == FINISHED]

    def _check(self) -> None:
        if not issubclass(model_class(self.config.model.name), Ranker):
            raise ConfigError(f"model {self.config.model.name!r} scores no rows; the daily job is for click models")
        if self.config.data.split.kind != "day":
            kind = self.config.data.split.kind
            raise ConfigError(
                f"data.split.kind is {kind!r}; the daily job needs 'day': a day trains, the next one tests"
            )

    @contextmanager
    def _held(self) -> Iterator[None]:
        if (self.folder / "config.json").exists():
            raise ConfigError(f"{self.folder} is a run of its own; choose another --name")
        with held(self.folder, "process", "--name"):
            yield

    def _check_folder(self) -> None:
        for path in sorted(self.folder.glob(f"{DAY_NAME}/config.json")):
            there = read_config(path)
            if there.content_hash != self.config.content_hash:
                keys = ", ".join(differing_keys(self.config, there))
                raise ConfigError(f"{path.parent} belongs to a config with other {keys}; choose another --name")

    # --- one day ---

    def _day(self, day: UtcDay, train: bool) -> None:
        trained = self.trained()
        newest = max((name for name in trained if name < str(day)), default="")
        if str(day) in trained:
            return
        data = None if trained and trained[-1] > str(day) else self._data(day, newest)
        if data is None:
            self.around.say(f"{day}: {self._reason(day, newest, train)}")
            return
        self._test(day, data, newest)
        if train:
            self._train(day, data, newest)
            self._conclude()

    def _reason(self, day: UtcDay, newest: str, train: bool) -> str:
        """Why nothing is done for a day."""
        if self.trained() and self.trained()[-1] > str(day):
            return "left out, a later day is trained already"
        return "no examples, left out" if train or not newest else f"no examples yet to test model {newest} on"

    def _conclude(self) -> None:
        storage.remove_leftovers(self.folder)
        write_series(self.folder, self.config, self.trials.all())
        self._prune()

    def _data(self, day: UtcDay, newest: str) -> Prepared | None:
        """The day's prepared data: that of its run where there is one, else made."""
        if (self.folder / str(day) / "config.json").exists():
            return Run.open(self.folder / str(day)).prepared
        return self.around.prepare(day, Run.open(self.folder / newest).prepared if newest else None)

    def _test(self, day: UtcDay, data: Prepared, newest: str) -> None:
        trial = self.trials.of(day)
        if trial is None or (trial.data_hash, trial.model) != (data.content_hash, newest):
            trial = self._tried(day, data, newest)
            self.trials.write(trial)
            if newest:
                outcome = "promoted" if trial.promoted else "NOT promoted"
                self.around.say(f"{day}: model {newest} is {outcome}, {trial.why}")
        self._point()

    def _tried(self, day: UtcDay, data: Prepared, newest: str) -> Trial:
        trial, held = Trial.on(day, data), self.trials.promotion(before=day)
        if not newest:
            return trial
        champion = self._tested(held.model, data) if held else None
        return judged(trial, self._tested(newest, data), champion, self.config.seed)

    def _tested(self, name: str, data: Prepared) -> Candidate:
        report = Run.open(self.folder / name).evaluate_on(data, "train") if _has_both_classes(data) else None
        return Candidate(name, report)

    def _train(self, day: UtcDay, data: Prepared, newest: str) -> None:
        named = self.config.model_copy(update={"name": str(day)})
        start = self.folder / newest if newest else None
        if not newest:
            read = table_encoder(self.config.model, data.encoder)
            check_can_grow(self.config.tables.specs, read, self.config.seed)  # else tomorrow would say so
        run = Run.create(named, self.folder / str(day), data, resume=True, init_from=start)
        if not run.finished:
            self.around.train(run)

    # --- the promoted model ---

    def _point(self) -> None:
        """Publish what the trials say is promoted, and then make the pointer say so, unless both is done."""
        trial, there, publish = self.trials.promotion(), self.pointer(), self.around.publish
        if trial is None:
            return
        wanted = {"run": trial.model, "tested_on": trial.day, "metrics": dict(trial.metrics)}
        if there.get("run") == trial.model and "bundle" in there:
            wanted["bundle"] = there["bundle"]
        elif publish is not None:
            wanted["bundle"] = publish(Run.open(self.folder / trial.model))
        if wanted != there:
            storage.write_json(self.folder / POINTER, wanted)

    def pointer(self) -> dict[str, Any]:
        """What is promoted: the run's name, the day that it was tested on, its metrics there, perhaps its bundle."""
        path = self.folder / POINTER
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _prune(self) -> None:
        """Remove the checkpoints of older runs; what they scored stays.

        Kept are the promoted run and the one before it that the newest test was against: that day may be tested again.
        """
        trials, trained = self.trials.all(), self.trained()
        needed = {self.pointer().get("run"), *(trial.champion for trial in trials[-1:])}
        for name in trained[: -self.keep] if self.keep else []:
            if name not in needed:
                storage.remove_tree(self.folder / name / "checkpoints")


def _raw_paths(config: RunConfig) -> str:
    return ", ".join([config.data.path, *config.data.files.values()])


def _has_both_classes(data: Prepared) -> bool:
    label = data.schema.labels[0].name
    ends = [(values.min(), values.max()) for values in data.labels("train", label)]
    return bool(min(low for low, _ in ends) <= 0 < max(high for _, high in ends))

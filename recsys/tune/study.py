"""OUT of a search: what it searches, what is done, and the loop that does the rest.

    OUT/tune.json             the config, the space, the seed, the prepared data; another is refused
        trials/<number>.json  a trial, written when it has ended
        runs/<number>/        its run, as `recsys train` leaves one; a pruned one is unfinished
        best.toml             the config with the best settings found so far

Killed at any moment and started again with the same command, it reads the trials that have ended and resumes the run
that has not. More trials may be asked for later. Trials run one after another in this process: what one trial tries
depends on those before it, and a training uses the cores by itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features import storage
from features.prepared import Prepared
from recsys import distributed
from recsys.config import ConfigError, RunConfig, load_config
from recsys.held_folder import held
from recsys.run import Run
from recsys.run_state import SELECT
from recsys.training.checkpoint import Checkpoints
from recsys.training.checks import check_settings
from recsys.training.trainer import Observer, higher_is_better
from recsys.tune.sampler import Pruned, Sampler, Suggestion
from recsys.tune.space import Setting, Space, as_override
from recsys.tune.trial import Trial

FORMAT = 1


class Study:
    """A config file, the overrides that all trials have, and the space around them, searched in a folder."""

    def __init__(
        self, folder: Path, config: Path, overrides: Sequence[str], space: Space, prepared: Prepared
    ) -> None:  # fmt: skip
        self.folder = folder
        self.config = config
        self.overrides = tuple(overrides)
        self.space = space
        self.prepared = prepared
        if "validation" not in prepared.splits:
            raise ConfigError("a search needs a validation split (data.split.validation)")
        for key, allowed in space.items():
            check_settings(self.config_of({key: allowed.first}))  # refuses an unknown setting before the first trial
        self.base = self.config_of({})
        self.metric = Run(folder, self.base, prepared).metric
        self.maximize = higher_is_better(self.metric)

    def config_of(self, settings: Mapping[str, Setting]) -> RunConfig:
        """The run config of a trial, which is not refitted: it ends with its validation metric.

        Raises ConfigError for one that cannot be.
        """
        return load_config(self.config, [*self.overrides_of(settings), "training.refit=false"])

    def overrides_of(self, settings: Mapping[str, Setting]) -> list[str]:
        """The overrides of all trials and of one, as `recsys train` takes them after the config."""
        return [*self.overrides, *(as_override(key, value) for key, value in settings.items())]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Claim the folder for this search and hold it alone.

        Raises ConfigError when it is a file, belongs to another search or other data, or another process works in it.
        """
        with held(self.folder, "search", "--out"):
            self._claim()
            for folder in (self.folder, self.folder / "trials"):
                storage.remove_leftovers(folder)
            yield

    def _claim(self) -> None:
        path, mine = self.folder / "tune.json", self._description()
        if not path.exists():
            storage.write_json(path, mine)
            return
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}") from None
        differing = [key for key in mine if not isinstance(there, dict) or there.get(key) != mine[key]]
        if differing:
            raise ConfigError(f"{self.folder} belongs to a search with other {differing[0]}; choose another --out")

    def _description(self) -> dict[str, Any]:
        space = {key: allowed.model_dump(mode="json") for key, allowed in self.space.items()}
        described = {"format": FORMAT, "data_hash": self.prepared.content_hash, "space": space}
        return described | {"config": self.base.model_dump(mode="json", exclude={"name"})}

    def trials(self) -> list[Trial]:
        """Those that have ended, in order."""
        found: list[Trial] = []
        while (path := self._path(len(found))).exists():
            found.append(Trial.load(path))
        return found

    def run(self, num_trials: int, observers: Sequence[Observer] = ()) -> Iterator[Trial]:
        """Do what is not done of `num_trials`; yields each trial when it has ended, on disk.

        Raises the trainer's Interrupted after a signal, when the trial in hand has written its checkpoint.
        """
        sampler = Sampler(self.space, self.base.seed, self.maximize)
        done = self.trials()
        while len(done) < num_trials:
            trial = self._try(len(done), sampler.next(done, self.metric), observers)
            trial.save(self._path(trial.number))
            done.append(trial)
            yield trial

    def _try(self, number: int, suggestion: Suggestion, observers: Sequence[Observer]) -> Trial:
        values: dict[str, Any] = {"number": number, "settings": suggestion.settings}
        try:
            config = self.config_of(suggestion.settings)
            run = Run.create(config, self.folder / "runs" / f"{number:04d}", self.prepared, resume=True)
            run.train(observers=(*observers, suggestion))
        except Pruned:
            seen = suggestion.values
            best = max(seen) if self.maximize else min(seen)
            return Trial(status="pruned", value=best, values=seen, seconds=suggestion.seconds, **values)
        except (ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not distributed.is_out_of_memory(error):
                raise
            return Trial(status="failed", reason=" ".join(str(error).split()), **values)
        validation = run.state.validation or {}
        values |= {"value": validation[self.metric], "validation": validation, "seconds": run.state.seconds}
        return Trial(status="finished", values=self._values(run), **values)

    def _values(self, run: Run) -> list[float]:
        """The metric after each evaluation of a finished run, from its checkpoint: a kill may have come after it."""
        saved = Checkpoints(run.folder / "checkpoints" / SELECT).meta("last")
        return [record[self.metric] for record in saved.get("progress", {}).get("history", ())]

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The finished trial with the best metric, the first of equals."""
        sign = 1.0 if self.maximize else -1.0
        ranked = [(sign * trial.value, -trial.number) for trial in trials if trial.value is not None and trial.finished]
        return trials[-max(ranked)[1]] if ranked else None

    def _path(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}.json"

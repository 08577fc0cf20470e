"""OUT of a sweep: which config it belongs to, what is done, and the loop that does the rest.

    OUT/sweep.json            the config that all cells are derived from, and the prepared data; another is refused
        cells/<cell>.json     the outcome of a cell, written when it has ended
        runs/<cell>/          its run, as `recsys train` leaves one: it can be evaluated and exported
        logs/<cell>.log       what it printed
        index.html            the page

Killed at any moment and started again with the same command, it reads the cells that have ended and resumes the run
that has not. Other budgets, methods or seeds of the same config may share the folder.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features import storage
from features.prepared import Prepared
from recsys.config import ConfigError, RunConfig, parse_options
from recsys.held_folder import held
from recsys.models import table_encoder
from recsys.run_state import differing_keys
from recsys.sweep.cell import Task, run_task
from recsys.sweep.outcome import Outcome
from recsys.sweep.plan import Cell, cell_config
from recsys.sweep.process import CellFailed, run_in_process

FORMAT = 1
Shown = Callable[[Cell, str], None]


class Sweep:
    """A folder and the cells that are asked of it."""

    def __init__(self, folder: Path, config: RunConfig, prepared: Prepared, cells: Sequence[Cell]) -> None:
        self.folder = folder
        self.config = config
        self.prepared = prepared
        self.cells = tuple(cells)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Claim the folder for this config and hold it alone.

        Raises ConfigError when it is a file, belongs to another config or other data, or another sweep works in it.
        """
        with held(self.folder, "sweep", "--out"):
            self._claim()
            yield

    def outcomes(self) -> dict[Cell, Outcome]:
        """The cells that have ended, in order. Raises ConfigError for one of other settings, or damaged."""
        return {cell: self._read(cell) for cell in self.cells if self._path(cell).exists()}

    def run(self, tell: Shown) -> Iterator[tuple[Cell, Outcome]]:
        """Do what is not done yet; yields each cell when it has ended, its outcome on disk."""
        for cell in self.cells:
            if not self._path(cell).exists():
                outcome = self._run(cell, tell)
                outcome.save(self._path(cell))
                yield cell, outcome

    def forget(self, statuses: Sequence[str]) -> list[Cell]:
        """Remove the outcomes, runs and logs of cells that ended so, to try them again; returns the cells."""
        again = [cell for cell, outcome in self.outcomes().items() if outcome.status in statuses]
        for cell in again:
            for path in (self.folder / "runs" / cell.name, self._log(cell), self._path(cell)):
                storage.remove_tree(path)
        return again

    def _run(self, cell: Cell, tell: Shown) -> Outcome:
        config = self._config_of(cell)
        trained = cell.trained_as
        task = Task(
            config=config.to_json(),
            sweep_config=self.config.to_json(),
            prepared=str(self.prepared.path.resolve()),
            folder=str(self.folder / "runs" / cell.name),
            trained=str(self.folder / "runs" / trained.name) if trained else "",
        )
        try:
            return run_in_process(run_task, task, self._log(cell), lambda note: tell(cell, note))
        except CellFailed as failure:
            return Outcome(status="failed", config_hash=config.content_hash, reason=str(failure))

    def _read(self, cell: Cell) -> Outcome:
        outcome = Outcome.load(self._path(cell))
        if outcome.config_hash != self._config_of(cell).content_hash:
            raise ConfigError(f"{self._path(cell)} is of other settings of {cell.method!r}; remove it to run it again")
        return outcome

    def _config_of(self, cell: Cell) -> RunConfig:
        encoder = table_encoder(self.config.model, self.prepared.encoder)
        return cell_config(cell, self.config, encoder.schema)

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _log(self, cell: Cell) -> Path:
        return self.folder / "logs" / f"{cell.name}.log"

    def _claim(self) -> None:
        path = self.folder / "sweep.json"
        if path.exists():
            self._check_same(path)
        elif any(child.name != ".lock" for child in self.folder.iterdir() if not child.name.startswith(storage.ASIDE)):
            raise ConfigError(f"--out {self.folder} is not empty and holds no sweep; choose another")
        else:
            values = {"format": FORMAT, "data_hash": self.prepared.content_hash}
            storage.write_json(path, values | {"config": self.config.model_dump(mode="json")})

    def _check_same(self, path: Path) -> None:
        values = _read_json(path)
        if values.get("format") != FORMAT or not isinstance(values.get("config"), dict):
            raise ConfigError(f"{path} is damaged or of another version")
        there = parse_options(RunConfig, values["config"], where=str(path))
        if there.content_hash != self.config.content_hash:
            keys = ", ".join(differing_keys(self.config, there)[:3])
            raise ConfigError(
                f"{self.folder} belongs to a sweep of {there.name!r} with other {keys}; choose another --out"
            )
        if values.get("data_hash") != self.prepared.content_hash:
            raise ConfigError(f"{self.folder} was swept on other prepared data; choose another --out")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    return values if isinstance(values, dict) else {}

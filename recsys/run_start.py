"""What a run starts from when not from fresh weights: `Parent`, a finished run, named by `train --init-from`.

    today   the same model and tables on newer data, whose encoder extends yesterday's (`Encoder.check_extends`)
    starts  from yesterday's final weights, row states and dense optimizer state; rows of new ids start fresh
    keeps   the parent's folder and its lineage, a hash of what it was trained from and of its weights, in run.json

Where a parent kept its best-validation weights, the optimizer state is still that of its last step. Settings of the
optimizers may change (a learning rate), their rules may not. Position, patience and schedules begin anew.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from torch import nn

from features.encoder import Encoder
from features.view import Prepared
from recsys.config import ConfigError, RunConfig
from recsys.models import model_class
from recsys.models.interface import ClosedForm
from recsys.phases import Phase
from recsys.run_state import FINISHED, REFIT, SELECT, RunState, differing_keys, read_config, read_state
from recsys.training.checkpoint import Checkpoints
from recsys.training.growth import Origin, load_grown

SAME = ("model.", "tables.", "optimizer.dense.name", "optimizer.tables.name")
FREE = ("tables.backend", "tables.sharding")


@dataclass(frozen=True)
class Parent:
    """A finished run whose weights others start from."""

    folder: Path
    config: RunConfig
    state: RunState

    @staticmethod
    def open(folder: Path | str) -> "Parent":
        """The finished run of a folder. Raises ConfigError when there is none, or nothing in it was trained."""
        folder = Path(folder).resolve()
        if not (folder / "config.json").exists():
            raise ConfigError(f"{folder} is not a run (it has no config.json), so nothing starts from it")
        config, state = read_config(folder / "config.json"), read_state(folder / "run.json")
        if state.stage != FINISHED:
            raise ConfigError(f"{folder} is an unfinished run; finish it with --resume before another starts from it")
        if issubclass(model_class(config.model.name), ClosedForm):
            raise ConfigError(f"{folder}: model {config.model.name!r} has no training to go on from")
        return Parent(folder, config, state)

    @staticmethod
    def of(state: RunState) -> "Parent":
        """The parent that a run.json names. Raises ConfigError when it is gone, or was trained anew since."""
        parent = Parent.open(state.init_from)
        if parent.lineage != state.lineage:
            raise ConfigError(f"{parent.folder} was trained anew since this run started from it; remove this run")
        return parent

    def recorded_in(self, state: RunState) -> RunState:
        """The state of a run that starts from this one."""
        return replace(state, init_from=str(self.folder), lineage=self.lineage)

    def check_recorded(self, folder: Path, state: RunState) -> None:
        """Raise ConfigError unless the run in a folder, begun already, started from this parent as it is now."""
        if not state.init_from:
            raise ConfigError(f"{folder} did not start from another run; remove it or choose another --name")
        if state.lineage != self.lineage:
            raise ConfigError(
                f"{folder} started from {state.init_from} as it was then, not from {self.folder} as it is now; remove "
                "it or choose another --name"
            )

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints" / (REFIT if self.config.training.refit else SELECT))

    @cached_property
    def lineage(self) -> str:
        """SHA-256 (hex) of its config, its data, its own lineage and its weights with their optimizer state."""
        weights = self._checkpoints.content_hash("last")
        parts = [self.config.content_hash, self.state.data_hash, self.state.lineage, weights]
        return sha256(json.dumps(parts).encode()).hexdigest()

    def check_config(self, config: RunConfig) -> None:
        """Raise ConfigError naming a setting of the model or the tables that differs, or the rule of an optimizer."""
        for key in differing_keys(config, self.config):
            if key.startswith(SAME) and not key.startswith(FREE):
                raise ConfigError(f"{self.folder} has another {key}: what starts from it needs its model and tables")

    def load(self, model: nn.Module, phases: Sequence[Phase], encoder: Encoder) -> None:
        """Overwrite a fresh model over this encoder, and its optimizers, with what the parent ended with.

        Called by all ranks. Raises ConfigError naming the vocabulary and row where the encoder does not extend the
        parent's, or the table that cannot grow.
        """
        try:
            encoder.check_extends(self._encoder)
        except ValueError as error:
            raise ConfigError(
                f"{self.folder} cannot be started from, the data does not extend its own: {error}"
            ) from None
        origin = Origin(
            checkpoints=self._checkpoints,
            tag="last",
            encoder=self._encoder,
            tables=self.config.tables.specs,
            seed=self.config.seed,
        )
        load_grown(model, phases, encoder, origin)

    @cached_property
    def _encoder(self) -> Encoder:
        prepared = Prepared.open(self.state.prepared, verify=False)  # the encoder checks itself
        if prepared.content_hash != self.state.data_hash:
            raise ConfigError(f"{self.state.prepared} changed since {self.folder} was trained; prepare it again")
        return prepared.encoder

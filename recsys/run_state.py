"""What a run keeps of itself on disk besides checkpoints: its config and its state, read with clear errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from recsys.config import ConfigError, RunConfig, parse_options

SELECT, REFIT, FINISHED = "select", "refit", "finished"
LATER = {"init_from", "lineage"}  # which runs of the first version have not


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What run.json holds: the prepared data, the stage, the best number of epochs and the validation metrics there.

    sizes: bytes of the tables in the last stage, over all ranks: weights in training, optimizer state. init_from: the
    folder of the run that it started from, "" for fresh weights; lineage: a hash of what that one was (run_start.py).
    """

    prepared: str
    data_hash: str
    stage: str = SELECT
    best_epoch: int = 0
    validation: Mapping[str, float] | None = None
    seconds: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    init_from: str = ""
    lineage: str = ""


def read_config(path: Path) -> RunConfig:
    """A config.json. Raises ConfigError naming the file when it is missing, damaged or of another version."""
    return parse_options(RunConfig, _read_json(path), where=str(path))


def read_state(path: Path) -> RunState:
    """A run.json. Raises ConfigError as `read_config` does."""
    values = _read_json(path)
    known = {part.name for part in fields(RunState)}
    if values.keys() | LATER != known or values["stage"] not in (SELECT, REFIT, FINISHED):
        raise ConfigError(f"{path} is damaged or of another version")
    return RunState(**values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is damaged: it holds no JSON object")
    return values


def differing_keys(one: RunConfig, other: RunConfig) -> list[str]:
    """The settings in which two configs differ, as "section.key", sorted; the name is none."""
    flat, other_flat = (flattened(config.model_dump(mode="json", exclude={"name"})) for config in (one, other))
    return sorted(key for key in flat.keys() | other_flat.keys() if flat.get(key) != other_flat.get(key))


def flattened(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Nested tables as {"section.key": value}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        flat |= flattened(value, f"{place}{key}.") if inner else {f"{place}{key}": value}
    return flat

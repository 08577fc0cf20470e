"""One trial of a search as it is kept: what it tried, how it ended, and the metric after each evaluation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from features import storage
from recsys.config import ConfigError
from recsys.tune.space import Setting

Status = Literal["finished", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """number: from 0. status: "pruned" is given up early, "failed" could not be trained, for the reason.

    settings: what it tried. value: its best validation metric, None where it failed. values: the metric after each
    evaluation. validation: all metrics of the best one. seconds: of training.
    """

    number: int
    status: Status
    settings: Mapping[str, Setting]
    value: float | None = None
    values: Sequence[float] = ()
    validation: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""

    @property
    def finished(self) -> bool:
        """Whether it trained to its end."""
        return self.status == "finished"

    def save(self, path: Path) -> None:
        """Write it; a crash leaves nothing or all."""
        storage.write_json(path, asdict(self))

    @staticmethod
    def load(path: Path) -> "Trial":
        """The inverse of `save`. Raises ConfigError naming a damaged file."""
        try:
            values: Any = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}") from None
        if not isinstance(values, dict) or values.keys() != {part.name for part in fields(Trial)}:
            raise ConfigError(f"{path} is damaged or of another version")
        return Trial(**values)

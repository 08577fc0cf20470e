"""What is kept of a cell: how it ended, and the numbers that the sweep compares; a small JSON file each."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from features import storage
from recsys.config import ConfigError

Status = Literal["finished", "unreachable", "failed"]


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """Microseconds per id of the served tables, and of collisionless float32 ones beside them in the same process."""

    us_per_id: float
    dense_us_per_id: float

    @property
    def ratio(self) -> float:
        """How many times as long as collisionless float32 rows take."""
        return self.us_per_id / self.dense_us_per_id


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes. served: of the tables' file on disk; tensors: of the values in it, which budgets bound; model: of the
    dense parameters beside; training, optimizer: of the tables' weights and of their optimizer's state in training.
    """

    served: int
    tensors: int
    model: int
    training: int
    optimizer: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """status: "unreachable" where the method cannot be built at this budget and precision, with the reason.

    validation, test: metrics of the served form (validation: of the form in training, where the model was refitted).
    seconds: of training. peak_bytes: of the process, None where it did not train from the beginning. protocol: how test
    was scored. config_hash: of the cell's run.
    """

    status: Status
    config_hash: str
    reason: str = ""
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    sizes: Sizes | None = None
    lookup: Lookup | None = None
    seconds: float = 0.0
    peak_bytes: int | None = None
    protocol: str = ""

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write it; a crash leaves nothing or all."""
        storage.write_json(path, self.values())

    @staticmethod
    def from_values(values: Mapping[str, Any], where: str) -> "Outcome":
        """The inverse of `values`. Raises ConfigError naming the place when they are not of an outcome."""
        try:
            sizes = None if values["sizes"] is None else Sizes(**values["sizes"])
            lookup = None if values["lookup"] is None else Lookup(**values["lookup"])
            known = {part.name: values[part.name] for part in fields(Outcome)}
            return Outcome(**(known | {"sizes": sizes, "lookup": lookup}))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{where} is damaged or of another version ({error!r}); remove it") from None

    @staticmethod
    def load(path: Path) -> "Outcome":
        """What `save` wrote. Raises ConfigError naming a file that is damaged."""
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}; remove it") from None
        return Outcome.from_values(values if isinstance(values, dict) else {}, str(path))

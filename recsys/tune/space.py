"""The space of a search: which settings of a config may take which values.

A TOML file names settings as a config does and gives each a range or a choice:

    optimizer.dense.lr = { low = 1e-4, high = 1e-2, log = true }
    tables.ids.embedding_dim = { low = 8, high = 32, step = 8 }      # whole numbers where both ends are
    model.hidden = { choices = [[64], [256, 128]] }

The same line may stand on the command line. Not here: how values are chosen (`sampler`).
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from features.values import Value
from recsys.config import ConfigError, parse_options, parse_override

Setting = bool | int | float | str | list[Any]
KEYS = {"low", "high", "choices"}  # a table with one of them is no section
FIXED = ("data", "name", "seed", "training.metric")  # what trials must have in common to be compared


class Range(Value):
    """low to high, both included; log: as many trials in each decade; step: only low, low + step, ..."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log takes a low above 0, and no step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step must be above 0 and at most high - low, got {self.step}")
        if self.whole and isinstance(self.step, float):
            raise ValueError(f"step of whole numbers must be one, got {self.step}")
        return self

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant: both ends are written as such."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def first(self) -> Setting:
        """A value of it."""
        return self.low


class Choice(Value):
    """One of several values, which have no order."""

    choices: tuple[Setting, ...]

    @model_validator(mode="after")
    def _is_a_choice(self) -> Self:
        if len({json.dumps(choice) for choice in self.choices}) < max(2, len(self.choices)):
            raise ValueError(f"choices must be two or more, all different, got {list(self.choices)}")
        return self

    @property
    def first(self) -> Setting:
        """A value of it."""
        return self.choices[0]


Space = Mapping[str, Range | Choice]


def parse_space(texts: Sequence[str]) -> Space:
    """The space of TOML files and of single `section.key={...}` texts; of a setting named twice the later one counts.

    Raises ConfigError naming the place, the setting and what is accepted.
    """
    found: dict[str, Range | Choice] = {}
    for text in texts:
        for key, values in _leaves(parse_override(text) if "=" in text else _read(Path(text))):
            where = f"space {key!r}"
            if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
                raise ConfigError(f"{where}: trials must share {', '.join(FIXED)} to be compared")
            if not isinstance(values, Mapping):
                raise ConfigError(
                    f"{where}: {values!r} is neither {{ low = .., high = .. }} nor {{ choices = [..] }}; a fixed value "
                    "is an override"
                )
            found[key] = _allowed(values, where)
    if not found:
        raise ConfigError("the space is empty: give --space FILE, or --space 'section.key={low=.., high=..}'")
    return dict(sorted(found.items()))


def _allowed(values: Mapping[str, Any], where: str) -> Range | Choice:
    return parse_options(Choice, values, where) if "choices" in values else parse_options(Range, values, where)


def as_override(key: str, value: Setting) -> str:
    """`section.key=value` as the command line takes it."""
    return f"{key}={json.dumps(value)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no space file {path}; or give 'section.key={{low=.., high=..}}'") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _leaves(values: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables down to those that hold values: ranges and choices."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not (KEYS & value.keys()):
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value

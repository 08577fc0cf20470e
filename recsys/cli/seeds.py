"""The seeds of `--seeds`, and the runs NAME-seed1, NAME-seed2, ... that one config has with them.

Each is an ordinary run; which of them a NAME stands for is found by `named_runs`.
"""

import re

from recsys.config import ConfigError

SEED = re.compile(r"-seed(\d+)")


def seeds_of(text: str) -> list[int]:
    """The seeds of an option: "3" is 1, 2, 3; "4,7" is 4 and 7; "4," is 4 alone. Raises ConfigError otherwise."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise ConfigError(f"--seeds: got {text!r}, accepted: a number of seeds (5), or different seeds (1,2,3)")
    seeds = [int(part) for part in parts]
    if "," in text:
        return seeds
    if not 1 <= seeds[0] <= 1000:
        raise ConfigError(
            f"--seeds: got {seeds[0]} seeds, accepted: 1 to 1000; one seed of your choice is '{seeds[0]},'"
        )
    return list(range(1, seeds[0] + 1))


def name_of_seed(name: str, seed: int) -> str:
    """The run of a config's name and a seed."""
    return f"{name}-seed{seed}"

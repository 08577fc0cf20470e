"""Where a value lies on an axis of a drawing, and which round values are written there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_TICKS = 8


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values in [low, high] onto [start, stop] of the drawing; logarithms of them where it is a log axis."""

    low: float
    high: float
    log: bool
    start: float
    stop: float

    @staticmethod
    def over(values: Sequence[float], log: bool, start: float, stop: float) -> "Scale":
        """All values with some room on both sides; more where they are all the same."""
        low, high = (math.log10(bound) if log else bound for bound in (min(values), max(values)))
        room = 0.06 * (high - low) or (0.3 if log else max(0.01 * abs(low), 1e-6))
        return Scale(low=low - room, high=high + room, log=log, start=start, stop=stop)

    def at(self, value: float) -> float:
        """Where a value lies."""
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values within, at most MAX_TICKS."""
        powers = self._decades((1,)) if self.log else []
        if len(powers) > MAX_TICKS:
            return powers[:: math.ceil(len(powers) / MAX_TICKS)]
        for steps in ((1, 2, 5), (1, 3), (1,)) if self.log else ():
            if 1 < len(found := self._decades(steps)) <= MAX_TICKS:
                return found
        low, high = (10**bound if self.log else bound for bound in (self.low, self.high))
        return _round_values(low, high)

    def _decades(self, steps: Sequence[int]) -> list[float]:
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in found if self.low <= math.log10(tick) <= self.high]


def _round_values(low: float, high: float) -> list[float]:
    rough = (high - low) / MAX_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]

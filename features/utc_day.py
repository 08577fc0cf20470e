"""A calendar day in UTC, as the times of a log measure it, and its name in paths."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

MARK = "{day}"
SECONDS = 86_400


@dataclass(frozen=True)
class UtcDay:
    """A day. Example: UtcDay(date(2026, 1, 3)).within("logs/{day}.parquet") == "logs/2026-01-03.parquet"."""

    date: date

    def bounds(self, time_unit: str) -> tuple[int, int]:
        """Its first moment and the next day's, since 1970: in microseconds, or in seconds where times are numbers.

        time_unit: as `Log` says it.
        """
        ticks = 1_000_000 if time_unit == "microseconds" else 1
        start = int(datetime(self.date.year, self.date.month, self.date.day, tzinfo=UTC).timestamp())
        return start * ticks, (start + SECONDS) * ticks

    def within(self, path: str) -> str:
        """A path with this day in the place of `MARK`."""
        return path.replace(MARK, str(self))

    def __str__(self) -> str:
        return self.date.isoformat()


def days_between(first: date, last: date) -> list[UtcDay]:
    """All days from first to last, both included. Raises ValueError when last is before first."""
    if last < first:
        raise ValueError(f"the last day, {last}, is before the first, {first}")
    return [UtcDay(first + timedelta(days=number)) for number in range((last - first).days + 1)]

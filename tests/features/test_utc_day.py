"""Days as times measure them, and as paths name them."""

from datetime import date

import pytest

from features.utc_day import UtcDay, days_between

DAY = UtcDay(date(2026, 1, 3))


def test_bounds_are_midnights_in_the_unit_of_the_log() -> None:
    start, end = DAY.bounds("as given")
    assert (start, end - start) == (1_767_225_600 + 2 * 86_400, 86_400)
    assert DAY.bounds("microseconds") == (start * 1_000_000, end * 1_000_000)


def test_paths_name_the_day() -> None:
    assert DAY.within("logs/{day}/clicks-{day}.csv") == "logs/2026-01-03/clicks-2026-01-03.csv"


def test_days_between_include_both_ends() -> None:
    days = days_between(date(2026, 2, 27), date(2026, 3, 1))
    assert [str(day) for day in days] == ["2026-02-27", "2026-02-28", "2026-03-01"]
    with pytest.raises(ValueError, match="2026-02-27, is before the first, 2026-03-01"):
        days_between(date(2026, 3, 1), date(2026, 2, 27))

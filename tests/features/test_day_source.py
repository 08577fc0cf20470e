"""Which rows of a log are a day's, whatever form its times have, and what they are known by."""

from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.data_config import DataConfig
from features.database import Database
from features.day_source import DaySource
from features.source_files import MissingEventsError
from features.utc_day import UtcDay

DAY = UtcDay(date(2026, 1, 2))
START = 1_767_225_600


def frame() -> pd.DataFrame:
    """Around the midnights before and after DAY."""
    return pd.DataFrame({"time": START + 86_400 * np.array([0, 1, 1, 1, 2]) + [5, -1, 0, 86_399, 0], "item": range(5)})


def written(folder: Path, form: str) -> Path:
    rows = frame()
    if form == "dates.csv":
        rows["time"] = pd.to_datetime(rows["time"], unit="s").dt.strftime("%Y-%m-%d %H:%M:%S")
    if form == "dates.parquet":
        rows["time"] = pd.to_datetime(rows["time"], unit="s")
    path = folder / form
    rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path)
    return path


def source(folder: Path, path: str) -> DaySource:
    kind = "csv" if path.endswith("csv") else "parquet"
    values = {"name": "log", "source": kind, "path": path, "schema": "s.toml", "split": {"kind": "day"}}
    return DaySource(DataConfig.model_validate(values), "time", DAY, folder)


@pytest.mark.parametrize("form", ["numbers.csv", "dates.csv", "numbers.parquet", "dates.parquet"])
def test_day_of_a_log_is_from_midnight_to_midnight(tmp_path: Path, form: str) -> None:
    written(tmp_path, form)
    with Database.open(tmp_path) as database:
        events = source(tmp_path, form).read(database).events
        assert [int(item) for item in database.fetch(events.rows)["item"].to_pylist()] == [2, 3]


def test_rows_are_known_by_their_values_and_places(tmp_path: Path) -> None:
    def known(rows: pd.DataFrame) -> dict[str, str]:
        rows.to_parquet(tmp_path / "log.parquet", index=False)
        work = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
        work.mkdir()
        with Database.open(work) as database:
            days = source(tmp_path, "log.parquet")
            return days.row_fingerprints(database, days.read(database))

    whole = known(frame())
    assert known(pd.concat([frame(), frame()[-1:]])) == whole
    assert known(frame().replace({"item": {2: 7}})) != whole
    assert known(frame().replace({"item": {4: 7}})) == whole
    assert known(frame()[1:]) != whole
    timeless = frame()[-1:].astype({"time": object}).assign(time=None)
    assert known(pd.concat([frame().astype({"time": object}), timeless])) == whole


def test_fingerprints_of_own_files_need_no_reading(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "2026-01-02.csv", index=False)
    assert source(tmp_path, "{day}.csv").fingerprints() is not None
    assert source(tmp_path, "2026-01-02.csv").fingerprints() is None
    (tmp_path / "2026-01-02.csv").unlink()
    with pytest.raises(MissingEventsError):
        source(tmp_path, "{day}.csv")


def test_log_without_its_times_is_refused(tmp_path: Path) -> None:
    frame().drop(columns="time").to_csv(tmp_path / "log.csv", index=False)
    with Database.open(tmp_path) as database, pytest.raises(ValueError, match="'time' for timestamp, by which days"):
        source(tmp_path, "log.csv").read(database)

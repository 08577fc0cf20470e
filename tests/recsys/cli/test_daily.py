"""`recsys daily` on one's own files, a CSV a day, at URIs: its options and errors. What the job does: test_job.py."""

import json
from pathlib import Path

import pytest
from typer.testing import Result

from recsys.bundle import BundleStore
from recsys.distributed import TORCHRUN_VARIABLES
from recsys.held_folder import held
from recsys.run import Run
from tests.features.test_days import SHOP, log, write
from tests.recsys.cli.conftest import call
from tests.recsys.small_project import CTR

DATA = '[data]\nname = "shop"\nsource = "csv"\npath = "{day}.csv"\nschema = "shop.toml"\nsplit = { kind = "day" }\n\n'
MODEL = CTR.partition("[model]")[2].replace('metric = "auc"\npatience = 1\n', "").replace("4000", "20")
SPAN = ("--from", "2026-01-01", "--to", "2026-01-03")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.toml").write_text(SHOP)
    (tmp_path / "job.toml").write_text(f"{DATA}[model]{MODEL}")
    write(tmp_path, log(days=4, rows=150))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def says(result: Result, complaint: str) -> bool:
    return result.exit_code == 2 and complaint in " ".join(result.stderr.split()) and "Traceback" not in result.stderr


def test_daily_reads_and_publishes_at_uris(shop: Path) -> None:
    place, store = f"data.path=file://{shop}/{{day}}.csv", f"file://{shop}/store"
    result = call("daily", "job.toml", place, "--name", "shop", *SPAN, "--store", store, "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["trained"] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    promoted = printed["promoted"]
    assert promoted == json.loads((shop / "runs" / "shop" / "promoted.json").read_text())
    assert BundleStore(store).open("stable").id == promoted["bundle"]
    assert Run.open(shop / "runs" / "shop" / promoted["run"]).finished


def test_daily_names_a_late_event_and_goes_on_when_it_is_mended(shop: Path) -> None:
    whole = (shop / "2026-01-02.csv").read_text()
    late = (shop / "2026-01-01.csv").read_text().splitlines()[1]
    (shop / "2026-01-02.csv").write_text(f"{whole}{late}\n")
    assert says(call("daily", "job.toml", *SPAN), "2026-01-02.csv row 151: time")
    (shop / "2026-01-02.csv").write_text(whole)
    result = call("daily", "job.toml", *SPAN)
    assert result.exit_code == 0
    assert "3 days trained, 2026-01-01 to 2026-01-03" in result.stderr


def test_daily_refuses_in_one_line(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert says(call("daily", "job.toml", "--from", "2026-01-03", "--to", "2026-01-01"), "is before the first")
    assert says(call("daily", "job.toml", "data.path=logz/{day}.csv", *SPAN), "no day of 2026-01-01..2026-01-03 has")
    with held(shop / "runs" / "job", "process", "--name"):
        assert says(call("daily", "job.toml", *SPAN), "another process is at work in runs/job")
    for name in TORCHRUN_VARIABLES:
        monkeypatch.setenv(name, "1")
    assert says(call("daily", "job.toml", *SPAN), "runs in one process")

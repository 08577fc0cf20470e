"""The report of a job: a line for each day, and a page that loads nothing."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from recsys.config import RunConfig
from recsys.daily.series import write_series
from recsys.daily.trial import Trial
from recsys.run_state import RunState
from tests.recsys.daily.test_trial import START

CONFIG = RunConfig.model_validate(
    {
        "name": "job",
        "data": {"name": "d", "source": "world", "path": "small", "schema": "s.toml", "split": {"kind": "day"}},
        "model": {"name": "dcn"},
    }
)
METRICS = {"auc": 0.7, "logloss": 0.4, "calibration": 1.1, "ceiling_auc": 0.8, "ceiling_logloss": 0.3}
TRIALS = [
    START,
    Trial(day="2026-01-03", data_hash="b", counts={"train": 5, "new_ids": 3}, model="2026-01-02", metrics=METRICS,
          promoted=True, why="the first model"),
    Trial(day="2026-01-04", data_hash="c", counts={"train": 7, "new_ids": 0}, model="2026-01-03", champion="2026-01-02",
          metrics=METRICS | {"auc": 0.5}, champion_metrics=METRICS, difference=-0.2, low=-0.3, high=-0.1,
          why="worse than 2026-01-02 <&>"),
]  # fmt: skip


def test_series_has_a_line_for_each_day(tmp_path: Path) -> None:
    (tmp_path / "2026-01-03").mkdir()
    state = RunState(prepared="p", data_hash="b", seconds=1.25)
    (tmp_path / "2026-01-03" / "run.json").write_text(json.dumps(vars(state)))
    write_series(tmp_path, CONFIG, TRIALS)
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(line["day"], line["examples"], line["model"]) for line in lines] == [
        ("2026-01-02", 400, ""), ("2026-01-03", 5, "2026-01-02"), ("2026-01-04", 7, "2026-01-03"),
    ]  # fmt: skip
    assert [line["seconds"] for line in lines] == [None, 1.2, None]
    assert lines[1]["ceiling_auc"] == 0.8
    assert (lines[2]["difference"], lines[2]["champion_auc"], lines[2]["promoted"]) == (-0.2, 0.7, False)


def test_page_says_what_was_promoted_and_what_not(tmp_path: Path) -> None:
    for number in range(1, len(TRIALS) + 1):
        write_series(tmp_path, CONFIG, TRIALS[:number])
        page = (tmp_path / "index.html").read_text()
        assert ("<svg" in page) == (number > 1)
    assert "Promoted: 2026-01-02, tested on 2026-01-03." in page
    assert "worse than 2026-01-02 &lt;&amp;&gt;" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    for part in page.split("<svg xmlns")[1:]:
        ET.fromstring("<svg xmlns" + part.split("</svg>")[0] + "</svg>")


def test_no_trial_is_no_report(tmp_path: Path) -> None:
    write_series(tmp_path, CONFIG, [])
    assert not list(tmp_path.iterdir())

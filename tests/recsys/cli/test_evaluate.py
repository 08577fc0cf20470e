import json
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import cast

import pytest

from features.spec import parse_schema
from recsys.cli.evaluate import _check_features
from recsys.config import ConfigError
from recsys.run import Run
from tests.recsys.cli.conftest import call

PAST = {
    "name": "past", "user": "user", "item": "item", "timestamp": "time",
    "features": {"user": {"table": "ids"}, "item": {"table": "ids"}, "action": {"table": "ids", "history_only": True}},
    "sequences": {"past": {"of": {"past_action": "action"}, "max_length": 5}},
}  # fmt: skip


def test_evaluate_of_a_run_is_its_report_in_one_line(project: Path) -> None:
    ended = call("evaluate", "runs/ctr-seed1", "--split", "validation", "--json")
    found = json.loads(ended.stdout)
    assert found["auc"] == Run.open("runs/ctr-seed1").evaluate("validation").metrics["auc"]
    assert "segments" not in found
    shown = call("evaluate", "ctr-seed1").stdout
    assert "ceiling" in shown
    assert f"{Run.open('runs/ctr-seed1').evaluate().metrics['pr_auc']:.4f}" in shown


def test_evaluate_of_a_name_is_of_all_its_seeds(project: Path) -> None:
    found = json.loads(call("evaluate", "wide", "--json").stdout)
    assert [run["run"] for run in found["runs"]] == [f"runs/wide-seed{seed}" for seed in (1, 2, 5)]
    assert found["mean"]["auc"] == fmean(run["auc"] for run in found["runs"])
    shown = call("evaluate", "wide").stdout
    assert all(name in shown for name in ("3 seeds on test", "wide-seed5", "mean", "std"))


def test_calibration_by_segment_covers_all_rows(project: Path) -> None:
    found = json.loads(call("evaluate", "ctr-seed1", "--by", "score", "--by", "device", "--json").stdout)
    for parts in found["segments"].values():
        assert sum(part["rows"] for part in parts) == found["counts"]["rows"]
        assert all(part["error"]["low"] <= part["error"]["value"] <= part["error"]["high"] for part in parts)
    assert len(found["segments"]["score"]) == 10
    assert {part["name"] for part in found["segments"]["device"]} == {"phone", "desktop", "tablet"}
    assert "calibration by device" in call("evaluate", "ctr-seed1", "--by", "device").stdout


def test_what_only_past_events_have_makes_no_segments() -> None:
    schema = parse_schema(PAST, where="here")
    run = cast(Run, SimpleNamespace(folder="run", is_ranking=True, prepared=SimpleNamespace(schema=schema)))
    with pytest.raises(ConfigError, match=r"--by: got 'action', accepted: score, user, item$"):
        _check_features(run, ["action"], ["action"])


def test_segments_that_cannot_be_made_are_refused(project: Path) -> None:
    for arguments, says in (
        (("ctr-seed1", "--by", "history"), "--by: got 'history', accepted: score, user"),
        (("ctr-seed1", "--by", "colour"), "--by: got 'colour', accepted: score"),
        (("popularity", "--by", "score"), "--by: calibration is of click models"),
    ):
        ended = call("evaluate", *arguments)
        assert ended.exit_code == 2
        assert says in ended.stderr

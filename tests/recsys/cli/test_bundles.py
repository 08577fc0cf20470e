import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys.cli import app
from tests.recsys.forked import Forker
from tests.recsys.small_project import write_project


def test_bundles_share_components_and_move_labels(tmp_path: Path) -> None:
    with Forker(write_project(tmp_path)) as forker:
        for name in ("ctr", "popularity"):
            assert forker.run("train", f"{name}.toml").code == 0
        for label, runs in (("stable", ["popularity", "ctr"]), ("next", ["ctr"])):
            names = [f"runs/{name}" for name in runs]
            assert forker.run("export", *names, "--out", "store", "--label", label).code == 0
        count = len(list((tmp_path / "store" / "components").iterdir()))
        rows = json.loads(forker.run("bundle", "list", "store", "--json").out)["bundles"]
        twice = forker.run("export", "runs/ctr", "runs/ctr", "--out", "store")
        unfinished = forker.run("export", "runs/nothing", "--out", "store")
    assert sorted(row["labels"] for row in rows) == ["next", "stable"]
    assert len(list((tmp_path / "store" / "components").iterdir())) == count
    assert "one retrieval run and one ranking run" in twice.err
    assert (twice.code, unfinished.code) == (2, 2)


@pytest.mark.parametrize("run", ["ctr", "popularity"])
def test_bundles_hold_one_part_or_two(tmp_path: Path, run: str) -> None:
    with Forker(write_project(tmp_path)) as forker:
        assert forker.run("train", f"{run}.toml").code == 0
        assert forker.run("export", f"runs/{run}", "--out", "store").code == 0
        rows = json.loads(forker.run("bundle", "list", "store", "--json").out)["bundles"]
    assert ("ranker" in rows[0]["parts"]) == (run == "ctr")


def test_bundles_of_an_empty_store_are_none(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = CliRunner().invoke(app, ["bundle", "list", str(empty)])
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", f"{empty} holds no bundles\n")
    assert CliRunner().invoke(app, ["bundle", "list", str(empty), "--json"]).stdout == '{"bundles": []}\n'
    absent = CliRunner().invoke(app, ["bundle", "list", str(tmp_path / "absent")])
    assert (absent.exit_code, absent.stderr.startswith("error: there is no store")) == (2, True)

"""`recsys compress sweep`: end to end, killed and stopped anywhere, and what is refused in one line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from recsys.cli.compress import CONVERT, CompressGroup
from tests.recsys.forked import ROOT, Ended, Forker
from tests.recsys.small_project import write_project

SWEEP = ("compress", "sweep", "ctr.toml", "training.max_epochs=1", "--methods", "hash", "--precisions", "float32")
ONE = ("--budgets", "20%,3B", "--seeds", "1")
CELLS = 6


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(write_project(tmp_path_factory.mktemp("project"))) as started:
        yield started


@pytest.fixture(scope="module")
def whole(forker: Forker) -> dict[str, Any]:
    """A sweep that nothing stopped."""
    ended = forker.run(*SWEEP, *ONE, "--out", "whole", "--json")
    assert ended.code == 0, ended.err
    assert "cells, 0 are done" in ended.err
    assert f"[{CELLS}/{CELLS}] hash-3B-float32-seed1: unreachable: table 'ids': budget 3B is too small" in ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found | {"points": ended.points}


def found_in(folder: Path) -> dict[str, Any]:
    """What a sweep found, without what it recommends, and what takes another time whenever it is measured."""
    told: dict[str, Any] = json.loads((folder / "results.json").read_text())
    for row in told["rows"]:
        for measured in ("lookup_us_per_id", "seconds", "peak_bytes"):
            row.pop(measured)
    return {key: told[key] for key in ("rows", "unfinished", "missing", "dense_bytes")}


def refused(ended: Ended, says: str) -> None:
    assert ended.code == 2, ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert says in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


# --- what it does ---


def test_sweep_says_everything_in_one_line_and_on_a_page(forker: Forker, whole: dict[str, Any]) -> None:
    assert [row["method"] for row in whole["rows"]] == ["dense"] * 4 + ["hash"]
    assert [left["status"] for left in whole["unfinished"]] == ["unreachable"]
    assert [advice["for"] for advice in whole["recommends"]] == ["20%", "3B"]
    page = (forker.folder / whole["page"]).read_text()
    assert page.count("<svg xmlns") in (3, 6)  # with close-ups or without
    assert "recsys compress sweep ctr.toml" in page


def test_sweep_again_reads_what_is_there(forker: Forker, whole: dict[str, Any]) -> None:
    again = forker.run(*SWEEP, *ONE, "--out", "whole", "--max-bytes", "5kB", "--max-lookup", "1000")
    assert again.code == 0, again.err
    assert f"{CELLS} cells, {CELLS} are done" in again.err
    assert "[1/" not in again.err
    assert "served at most 5kB, lookup at most 1000 µs/id: " in again.err
    assert "collisionless" in again.out


def test_sweep_killed_goes_on_with_the_same_command(forker: Forker, whole: dict[str, Any]) -> None:
    written = whole["points"].index("rename:dense-int8-seed1.json") - whole["points"].index(
        "create:sweep.json"
    )  # the data are there
    killed = forker.run(*SWEEP, *ONE, "--out", "killed", fault=f"{written + 1}:kill")
    assert killed.code == -signal.SIGKILL
    assert len(list((forker.folder / "killed" / "cells").glob("[!.]*"))) == 2
    resumed = forker.run(*SWEEP, *ONE, "--out", "killed")
    assert resumed.code == 0, resumed.err
    assert f"{CELLS} cells, 2 are done" in resumed.err
    assert found_in(forker.folder / "killed") == found_in(forker.folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4, 7, 8, 9])
def test_sweep_killed_at_a_moment_goes_on(forker: Forker, whole: dict[str, Any], seconds: int) -> None:
    forker.run(*SWEEP, *ONE, "--out", f"killed{seconds}", kill_after_s=seconds)
    resumed = forker.run(*SWEEP, *ONE, "--out", f"killed{seconds}")
    assert resumed.code == 0, resumed.err
    assert found_in(forker.folder / f"killed{seconds}") == found_in(forker.folder / "whole")


@pytest.mark.slow
def test_sweep_ended_by_sigterm_says_so_and_goes_on(forker: Forker, whole: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "recsys.cli", *SWEEP, *ONE, "--out", "stopped"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=forker.folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[2/"):
                break
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 75
    assert said.endswith("stopped; the same command goes on from here\n")
    assert forker.run(*SWEEP, *ONE, "--out", "stopped").code == 0
    assert found_in(forker.folder / "stopped") == found_in(forker.folder / "whole")


# --- what it refuses ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a config to sweep, or take --quick, which sweeps the demo world"),
        (["nowhere.toml"], "there is no config file nowhere.toml"),
        (["ctr.toml", "--methods", "hsah"], "there is no method 'hsah'; did you mean 'hash'?"),
        (["ctr.toml", "--budgets", "ten"], "--budgets: budget 'ten' must be a positive number"),
        (["ctr.toml", "--budgets", ""], "--budgets"),
        (["ctr.toml", "--precisions", ""], "--precisions"),
        (["ctr.toml", "--precisions", "int2"], "--precisions: 'int2' is none of float32, float16, int8, int4"),
        (["ctr.toml", "--seeds", "0"], "--seeds is 0, at least 1 is needed"),
        (["ctr.toml", "--max-bytes", "5"], "--max-bytes: budget '5' must be a positive number"),
        (["ctr.toml", "training.max_epoch=2"], "did you mean 'max_epochs'"),
        (["ctr.toml", "--out", "ctr.toml"], "--out ctr.toml is a file, a folder is needed"),
        (["popularity.toml"], "popularity has no [tables.NAME] section: there is nothing to compress"),
        (
            ["ctr.toml", "data.split.validation=0", "training.metric=", "training.patience=3"],
            "has no split 'validation'",
        ),
    ],
)
def test_sweep_refuses_in_one_line(forker: Forker, arguments: list[str], says: str) -> None:
    refused(forker.run("compress", "sweep", *arguments), says)


def test_sweep_refuses_the_folder_of_another_config(forker: Forker, whole: dict[str, Any]) -> None:
    ended = forker.run(*SWEEP, "training.batch_size=77", *ONE, "--out", "whole")
    refused(ended, "whole belongs to a sweep of 'ctr' with other training.batch_size; choose another --out")


def test_group_takes_a_first_word_that_is_no_command_for_a_run() -> None:
    app = typer.Typer(cls=CompressGroup)
    app.command("sweep")(lambda config: typer.echo(f"sweep {config}"))

    @app.command(CONVERT)
    def convert(run: str, to: str = "") -> None:
        typer.echo(f"convert {run} to {to}")

    said = [CliRunner().invoke(app, words).output for words in (["sweep", "a"], ["runs/demo", "--to", "int4"])]
    assert said == ["sweep a\n", "convert runs/demo to int4\n"]

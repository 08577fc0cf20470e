"""What `--help` says of every command: what it is for, and each option with its text as it was written."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from recsys.cli import app

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = {
    "": (
        "prepare",
        "train",
        "plan",
        "evaluate",
        "export",
        "serve",
        "retrieve",
        "score",
        "demo",
        "schema",
        "bundle",
        "doctor",
        "laws",
        "tables",
    ),
    "demo": ("--out", "--configs", "--json"),
    "schema infer": ("--out", "A CSV, TSV or Parquet file"),
    "prepare": ("section.key=value", "--data", "RECSYS_DATA", "--prepared", "--json"),
    "train": (
        "section.key=value",
        "--resume",
        "--name",
        "--seeds",
        "--profile",
        "--data",
        "--runs",
        "exit code 75",
        "--json",
    ),
    "tune": ("--space", "'section.key={low=.., high=..}'", "--trials", "default: 30", "--out", "--json"),
    "daily": ("--from", "--to", "--out", "--store", "--keep", "--json"),
    "plan": ("--world-size", "--hbm", "--ranks-per-host", "FEATURE=N", "default: 25GB/s", "no store", "--json"),
    "evaluate": ("--split", "default: test", "--by", "'score' for its deciles", "--json"),
    "compare": ("--split", "--metric", "--draws", "--html", "evaluated first", "--json"),
    "calibrate": ("--method", "isotonic, platt, beta", "--json"),
    "diagnose": ("--by", "--rows", "--steps", "--categories", "--html", "RUN/diagnosis.html", "--json"),
    "export": ("--out", "--label", "default: stable", "--json"),
    "bundle list": ("--json",),
    "bundle verify": ("exit code 1", "--json"),
    "serve": ("--port", "--host", "--bundle", "--allow"),
    "retrieve": ("--k", "--user", "--history", "--feature", "--exclude", '"kind": "equal"', "--keep-seen", "--json"),
    "score": ("--items", "--column", "a JSON list with a value for each row", "--json"),
    "laws": ("--set", "package.module:Name", "exit code 1", "current directory", "--json"),
    "tables report": ("collisions", "--json"),
    "tables suggest": ("SCHEMA|CONFIG", "--budget", "--ids", "FEATURE=N", "--width", "--data", "--json"),
    "compress sweep": ("--budgets", "--methods", "unified/2", "--precisions", "--seeds", "--quick", "--out", "--json"),
    "compress convert": ("--to", "--budget", "--set", "--name", "validation split", "--json"),
    "doctor": ("--quick", "Under a minute", "exit code 1", "--json"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_takes(command: str) -> None:
    ended = CliRunner(env={"COLUMNS": "400"}).invoke(app, [*command.split(), "--help"])
    assert ended.exit_code == 0
    for text in COMMANDS[command]:
        assert text in " ".join(ended.stdout.split())


def test_help_is_tested_for_every_command() -> None:
    names: set[str] = set()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        names |= {f"{name} {part}" for part in inner} if inner else {name}
    assert names == {name for name in COMMANDS if name}


def test_module_is_the_command() -> None:
    command = [sys.executable, "-m", "recsys.cli", "train", "nothing.toml"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "error: there is no config file nothing.toml\n")

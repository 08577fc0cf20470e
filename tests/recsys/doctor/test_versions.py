"""Versions beside those that were tested, and combinations that break, found without importing anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.doctor import versions
from recsys.doctor.versions import WANTED, conflicts, installed_versions, version_table

ROOT = Path(__file__).resolve().parents[3]
SOUND = {package: wanted for package, wanted in WANTED.items() if package != "fbgemm-gpu"} | {"torch": "2.13.0+cpu"}


def pinned(path: str) -> dict[str, str]:
    found = re.findall(r"([\w-]+)==([\d.]+)", (ROOT / path).read_text())
    return {name.replace("_", "-"): version for name, version in found}


def test_versions_wanted_are_those_that_are_installed_together() -> None:
    given = pinned(".ci/constraints.txt") | pinned("Makefile")
    known = WANTED.keys() & given.keys()
    assert len(known) >= 18
    assert {name: WANTED[name] for name in known} == {name: given[name] for name in known}


def test_versions_tested_together_have_no_conflict() -> None:
    assert conflicts(SOUND) == []
    assert {line.verdict for line in version_table(SOUND)} == {versions.TESTED}
    cuda = SOUND | {"torch": "2.13.0", "fbgemm-gpu": "1.8.0"}
    del cuda["fbgemm-gpu-cpu"]
    assert conflicts(cuda) == []


@pytest.mark.parametrize(
    ("changed", "removed", "packages", "breaks"),
    [
        ({"sqlglot": "30.0.1"}, (), ("sqlglot", "ibis-framework"), "breaks the SQL compiler of ibis 12"),
        ({}, ("fbgemm-gpu-cpu",), ("torchrec",), "without fbgemm-gpu does not import"),
        ({"fbgemm-gpu": "1.8.0"}, (), ("torch", "fbgemm-gpu"), "undefined symbol"),
        ({"fbgemm-gpu": "1.8.0", "torch": "2.13.0"}, (), ("fbgemm-gpu-cpu", "fbgemm-gpu"), "share a folder"),
        ({"torch": "2.12.1"}, (), ("torch", "fbgemm-gpu-cpu", "fbgemm-gpu"), "compiled against torch"),
        ({"torchrec": "1.7.0"}, (), ("torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu"), "released together"),
        ({"torchmetrics": "1.8.2"}, (), ("torchrec", "torchmetrics"), "internals of torchmetrics"),
        ({"numpy": "1.26.4"}, (), ("numpy",), "against numpy 2"),
        ({"pydantic": "1.10.26"}, (), ("pydantic",), "pydantic 2"),
        ({"protobuf": "6.33.0"}, (), ("protobuf",), "older than the 7.35.1"),
        ({"grpcio": "1.76.0"}, (), ("grpcio",), "older than the 1.85.1"),
        ({"python": "3.10.14"}, (), ("python",), "Python 3.11"),
    ],
)
def test_versions_known_bad_combinations_are_named(
    changed: dict[str, str], removed: tuple[str, ...], packages: tuple[str, ...], breaks: str
) -> None:
    installed = {name: version for name, version in (SOUND | changed).items() if name not in removed}
    found = [conflict for conflict in conflicts(installed) if breaks in conflict.breaks]
    assert [conflict.packages for conflict in found] == [packages]
    assert all(conflict.remedy for conflict in found)
    bad = {line.package for line in version_table(installed) if line.verdict == versions.BROKEN}
    assert bad >= set(packages) & installed.keys()


def test_versions_that_are_absent_or_other_are_no_conflict() -> None:
    installed = SOUND | {"duckdb": "1.6.0"}
    for package in ("faiss-cpu", "torch", "torchrec"):
        del installed[package]
    verdicts = {line.package: line.verdict for line in version_table(installed)}
    assert (verdicts["faiss-cpu"], verdicts["torchrec"]) == (versions.ABSENT, versions.ABSENT)
    assert (verdicts["torch"], verdicts["duckdb"]) == (versions.MISSING, versions.OTHER)


def test_versions_here_are_found() -> None:
    found = installed_versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"].startswith("2.")


def test_versions_are_told_by_a_script_that_imports_nothing_installed() -> None:
    """-S hides every installed package."""
    script = ROOT / "recsys/doctor/versions.py"
    ended = subprocess.run([sys.executable, "-S", "-I", str(script)], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.search(r"torch +- +wanted 2\.13\.0 +MISSING", ended.stdout)
    assert ended.stderr == ""

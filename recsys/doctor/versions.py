"""Installed versions beside those that were tested together, and combinations that are known to break.

Nothing is imported to find out: a package that would crash on import is named all the same. So this module needs the
standard library alone; where `recsys` itself does not start, `python recsys/doctor/versions.py` still tells why.
"""

import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

WANTED: Mapping[str, str] = {
    "python": "3.11",
    "torch": "2.13.0",
    "torchrec": "1.8.0",
    "fbgemm-gpu-cpu": "1.8.0",
    "fbgemm-gpu": "1.8.0",
    "tensordict": "0.15.3",
    "torchmetrics": "1.0.3",
    "pyre-extensions": "0.0.32",
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "pandas": "3.1.1",
    "pyarrow": "26.0.1",
    "duckdb": "1.5.6",
    "ibis-framework": "12.0.0",
    "sqlglot": "28.10.1",
    "pydantic": "2.14.3",
    "safetensors": "0.8.0",
    "typer": "0.29.2",
    "rich": "15.0.0",
    "grpcio": "1.85.1",
    "protobuf": "7.36.2",
    "faiss-cpu": "1.15.1",
}
ALWAYS = frozenset(
    ("python", "torch", "numpy", "scipy", "pandas", "pyarrow", "duckdb", "ibis-framework", "sqlglot", "pydantic")
) | {"safetensors", "typer", "rich"}
FBGEMM = ("fbgemm-gpu-cpu", "fbgemm-gpu")
TESTED, OTHER, ABSENT, MISSING, BROKEN = "as tested", "not the tested one", "not installed", "MISSING", "KNOWN BAD"

Installed = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """A combination that breaks: its packages, what happens, what to do."""

    packages: tuple[str, ...]
    breaks: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """One line of the table; installed is "" where the package is not there."""

    package: str
    installed: str
    wanted: str
    verdict: str


def installed_versions() -> dict[str, str]:
    """Package -> installed version, for the packages of WANTED that are there."""
    found = {"python": platform.python_version()}
    for package in WANTED.keys() - found:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def version_table(installed: Installed) -> list[Version]:
    """A line per package of WANTED, in its order; of the two builds of fbgemm those that are there, or one."""
    broken = {package for conflict in conflicts(installed) for package in conflict.packages}
    absent = {"fbgemm-gpu"} if not installed.keys() >= {"fbgemm-gpu"} else set()
    absent |= {"fbgemm-gpu-cpu"} if "fbgemm-gpu" in installed and "fbgemm-gpu-cpu" not in installed else set()
    return [
        Version(
            package=package,
            installed=installed.get(package, ""),
            wanted=wanted,
            verdict=BROKEN if package in broken else _verdict(package, installed.get(package), wanted),
        )
        for package, wanted in WANTED.items()
        if package not in absent
    ]


def _verdict(package: str, installed: str | None, wanted: str) -> str:
    if installed is None:
        return MISSING if package in ALWAYS else ABSENT
    parts = wanted.count(".") + 1
    return TESTED if _release(installed)[:parts] == _release(wanted) else OTHER


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[+a-z]", version)[0]))


# --- combinations that are known to break ---


def conflicts(installed: Installed) -> list[Conflict]:
    """The known-bad combinations that are installed."""
    return [conflict for conflict, holds in RULES if holds(installed)]


def _has(installed: Installed, *packages: str) -> bool:
    return all(package in installed for package in packages)


def _below(installed: Installed, package: str, *release: int) -> bool:
    return package in installed and _release(installed[package]) < release


def _fbgemm_without_torch(installed: Installed) -> bool:
    """Fbgemm 1.m is built for torch 2.(m + 5): 1.8 for 2.13, 1.7 for 2.12."""
    builds = [_release(installed[package])[:2] for package in FBGEMM if package in installed]
    if "torch" not in installed or not builds:
        return False
    major, minor = _release(installed["torch"])[:2]
    return any((build[0] + 1, build[1] + 5) != (major, minor) for build in builds if build[0] == 1)


def _torchrec_without_fbgemm(installed: Installed) -> bool:
    return _has(installed, "torchrec") and not any(package in installed for package in FBGEMM)


def _torchrec_beside_another_fbgemm(installed: Installed) -> bool:
    builds = [_release(installed[package])[:2] for package in FBGEMM if package in installed]
    return _has(installed, "torchrec") and any(build != _release(installed["torchrec"])[:2] for build in builds)


RULES: tuple[tuple[Conflict, Callable[[Installed], bool]], ...] = (
    (
        Conflict(
            packages=("python",),
            breaks="the code uses syntax and standard library of Python 3.11",
            remedy="make an environment of Python 3.11",
        ),
        lambda installed: _below(installed, "python", 3, 11),
    ),
    (
        Conflict(
            packages=("sqlglot", "ibis-framework"),
            breaks="sqlglot 30 breaks the SQL compiler of ibis 12, which allows it: preparing data fails",
            remedy="pip install 'sqlglot>=28,<29'",
        ),
        lambda installed: _has(installed, "ibis-framework", "sqlglot") and not _below(installed, "sqlglot", 30),
    ),
    (
        Conflict(
            packages=("torchrec",),
            breaks="torchrec without fbgemm-gpu does not import: no fused and no sharded tables",
            remedy="pip install --no-deps fbgemm-gpu-cpu==1.8.0 (without a GPU), or fbgemm-gpu==1.8.0",
        ),
        _torchrec_without_fbgemm,
    ),
    (
        Conflict(
            packages=FBGEMM,
            breaks="the CPU and the CUDA build of fbgemm share a folder: the later one has overwritten the other",
            remedy="pip uninstall fbgemm-gpu fbgemm-gpu-cpu, then install the one for this machine with --no-deps",
        ),
        lambda installed: _has(installed, *FBGEMM),
    ),
    (
        Conflict(
            packages=("torch", "fbgemm-gpu"),
            breaks="the CUDA build of fbgemm needs symbols that a CPU build of torch does not have: undefined symbol",
            remedy="pip uninstall fbgemm-gpu; pip install --no-deps fbgemm-gpu-cpu==1.8.0",
        ),
        lambda installed: _has(installed, "fbgemm-gpu") and "+cpu" in installed.get("torch", ""),
    ),
    (
        Conflict(
            packages=("torch", *FBGEMM),
            breaks="fbgemm 1.m is compiled against torch 2.(m + 5): with another one it ends in an undefined symbol",
            remedy="install torch==2.13.0 with fbgemm 1.8.0",
        ),
        _fbgemm_without_torch,
    ),
    (
        Conflict(
            packages=("torchrec", *FBGEMM),
            breaks="torchrec and fbgemm are released together, other pairs lack operators of one another",
            remedy="install both in version 1.8.0, with --no-deps",
        ),
        _torchrec_beside_another_fbgemm,
    ),
    (
        Conflict(
            packages=("torchrec", "torchmetrics"),
            breaks="torchrec imports internals of torchmetrics 1.0.3",
            remedy="pip install torchmetrics==1.0.3",
        ),
        lambda installed: _has(installed, "torchrec") and installed.get("torchmetrics", "1.0.3") != "1.0.3",
    ),
    (
        Conflict(
            packages=("numpy",),
            breaks="torch, pandas 3 and pyarrow are compiled against numpy 2",
            remedy="pip install 'numpy>=2'",
        ),
        lambda installed: _below(installed, "numpy", 2),
    ),
    (
        Conflict(
            packages=("pydantic",),
            breaks="the configs and schemas are models of pydantic 2",
            remedy="pip install 'pydantic>=2.14,<3'",
        ),
        lambda installed: _below(installed, "pydantic", 2),
    ),
    (
        Conflict(
            packages=("protobuf",),
            breaks="the generated service code refuses a protobuf older than the 7.35.1 it was made with",
            remedy="pip install 'protobuf>=7.35.1,<8'",
        ),
        lambda installed: _below(installed, "protobuf", 7, 35, 1),
    ),
    (
        Conflict(
            packages=("grpcio",),
            breaks="the generated service code refuses a grpcio older than the 1.85.1 it was made with",
            remedy="pip install 'grpcio>=1.85.1,<1.86'",
        ),
        lambda installed: _below(installed, "grpcio", 1, 85, 1),
    ),
)


def main() -> int:
    """Print the table and the conflicts; 1 where there is a conflict or something is missing."""
    installed = installed_versions()
    lines = version_table(installed)
    for line in lines:
        print(f"{line.package:16} {line.installed or '-':16} wanted {line.wanted:10} {line.verdict}")
    for conflict in conflicts(installed):
        print(f"{' + '.join(conflict.packages)}: {conflict.breaks}. Do: {conflict.remedy}")
    return int(any(line.verdict in (MISSING, BROKEN) for line in lines))


if __name__ == "__main__":
    sys.exit(main())

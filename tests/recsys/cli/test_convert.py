"""`recsys compress RUN --to ...`: the converted run is a run like any other, whole or not there."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.run import Run
from tests.recsys.forked import Ended, Forker
from tests.recsys.small_project import write_project


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    text = (folder / "ctr.toml").read_text()
    dense = text.replace('"unified"\nnum_embeddings = 300\nchunk_dim = 4\nchunks = 2', '"dense"\nembedding_dim = 8')
    (folder / "flat.toml").write_text(dense)
    staged = dense.replace('"dense"\nembedding_dim = 8', '"dedup"\nembedding_dim = 8\nbudget = "60%"')
    (folder / "staged.toml").write_text(staged.replace("max_epochs = 2", "max_epochs = 1"))
    with Forker(folder) as started:
        for name in ("flat", "ctr", "staged", "retriever", "popularity"):
            ended = started.run("train", f"{name}.toml")
            assert ended.code == 0, ended.err
        yield started


def said(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


@pytest.mark.parametrize(
    ("name", "metric"), [("flat", "auc"), ("ctr", "auc"), ("staged", "auc"), ("retriever", "recall")]
)
def test_conversion_to_int4_is_a_run_like_any_other(forker: Forker, name: str, metric: str) -> None:
    found = said(forker.run("compress", f"runs/{name}", "--to", "int4", "--name", f"{name}_small", "--json"))
    small = f"runs/{name}_small"
    assert found["table_bytes"] < found["table_bytes_before"]
    assert found["metric"].startswith(metric)
    difference, low, high = found["difference"]
    assert found["after"] - found["before"] == pytest.approx(difference)
    assert low <= difference <= high
    assert said(forker.run("evaluate", small, "--json"))["counts"]["table_bytes"] == found["table_bytes"]
    assert forker.run("export", small, "--out", f"store_{name}").code == 0
    assert json.loads((forker.folder / small / "converted.json").read_text()) == found


def test_conversion_of_what_was_refitted_is_measured_on_what_it_has_not_seen(forker: Forker) -> None:
    found = said(forker.run("compress", "runs/retriever", "--to", "float16", "--json"))
    state = json.loads((forker.folder / "runs" / "retriever" / "run.json").read_text())
    assert found["before"] == pytest.approx(state["validation"]["recall@20"], abs=0.02)


def test_conversion_to_float32_loses_nothing(forker: Forker) -> None:
    found = said(forker.run("compress", "runs/flat", "--to", "float32", "--json"))
    assert found["difference"] == [0.0, 0.0, 0.0]
    assert found["table_bytes"] == found["table_bytes_before"]


def test_conversion_twice_is_the_second_alone(forker: Forker) -> None:
    for source, to, name in (("flat", "int8", "eight"), ("eight", "float32", "back")):
        said(forker.run("compress", f"runs/{source}", "--to", to, "--name", name, "--json"))
    twice, once = (said(forker.run("evaluate", f"runs/{name}", "--json")) for name in ("back", "flat"))
    assert twice["auc"] == once["auc"]


def test_conversion_to_a_method_says_what_its_rows_miss(forker: Forker) -> None:
    arguments = ("--to", "unified", "--budget", "30%", "--set", "chunks=2", "--set", 'precision="int8"')
    found = said(forker.run("compress", "runs/flat", *arguments, "--name", "shared", "--json"))
    config = json.loads((forker.folder / "runs" / "shared" / "config.json").read_text())
    options = config["tables"]["specs"]["ids"]["options"]
    assert options == {"budget": "30%", "chunk_dim": 4, "chunks": 2, "precision": "int8"}
    assert all(0 < missed < 2 for missed in found["missed"].values())
    assert found["table_bytes"] < 0.35 * found["table_bytes_before"]
    assert said(forker.run("evaluate", "runs/shared", "--json"))["counts"]["table_bytes"] == found["table_bytes"]
    assert forker.run("tables", "report", "runs/shared", "--json").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("runs/flat", "--to", "int3"),
            "--to is a precision (float32, float16, int8, int4) or a table method: there is no table method 'int3'",
        ),
        (("runs/flat", "--to", "int8", "--name", "../outside"), "--name '../outside' is not the name of one folder"),
        (("runs/flat", "--to", "int8", "--name", ""), "--name '' is not the name of one folder"),
        (("runs/flat", "--to", "dedup"), "table 'ids' trains in stages of its own"),
        (
            ("runs/flat", "--to", "int8", "--budget", "10%"),
            "--to int8 keeps the rows as they are; 'budget' is for a method",
        ),
        (("runs/flat", "--to", "unified", "--budget", "10%", "--set", "chunks=3"), "cannot be cut into 3 chunks"),
        (("runs/flat", "--to", "hash", "--budget", "3B"), "budget 3B is too small, the minimum is"),
        (("runs/flat", "--to", "hash"), "budget"),
        (("runs/flat", "--to", "int8", "--name", "ctr"), "is there already"),
        (("runs/popularity", "--to", "int8"), "model 'popularity' has no tables to convert"),
        (("runs/none", "--to", "int8"), "is not a run"),
        (("runs/flat", "--to", "hash", "--set", "budget"), "not of the form"),
    ],
)
def test_conversion_that_cannot_be_is_refused_in_one_line(
    forker: Forker, arguments: tuple[str, ...], says: str
) -> None:
    before = sorted(path.name for path in (forker.folder / "runs").iterdir())
    ended = forker.run("compress", *arguments)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert says in ended.err
    assert sorted(path.name for path in (forker.folder / "runs").iterdir()) == before


def test_conversion_killed_anywhere_leaves_the_whole_run_or_none(forker: Forker) -> None:
    arguments = ("compress", "runs/flat", "--to", "int4", "--name", "killed")
    points = forker.run(*arguments).points
    writing = [number for number, point in enumerate(points, 1) if "report" not in point and "arrays" not in point]
    target = forker.folder / "runs" / "killed"
    for number in writing[:: max(1, len(writing) // 3)]:
        if target.exists():
            forker.run("tests.recsys.cli.test_convert:remove", target)
        ended = forker.run(*arguments, fault=f"{number}:kill")
        assert ended.code == -signal.SIGKILL
        if target.exists():
            assert said(forker.run("evaluate", target, "--json"))["auc"] > 0
        else:
            assert forker.run(*arguments).code == 0


def remove(folder: str) -> None:
    from features import storage

    storage.remove_tree(Path(folder))


def test_conversion_keeps_the_trained_run(forker: Forker) -> None:
    before = {path: path.stat().st_mtime_ns for path in (forker.folder / "runs" / "flat").rglob("*")}
    said(forker.run("compress", "runs/flat", "--to", "int8", "--json"))
    assert {path: path.stat().st_mtime_ns for path in (forker.folder / "runs" / "flat").rglob("*")} == before


def test_converted_run_is_opened_by_the_library(forker: Forker, monkeypatch: pytest.MonkeyPatch) -> None:
    said(forker.run("compress", "runs/flat", "--to", "int8", "--name", "opened", "--json"))
    monkeypatch.chdir(forker.folder)
    run = Run.open(forker.folder / "runs" / "opened")
    assert run.finished
    assert run.config.name == "opened"

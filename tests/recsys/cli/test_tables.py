"""`recsys tables report` and `suggest`: what they print of a run, a config and a schema, and what they refuse."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.config import load_config
from tests.recsys.forked import Ended, Forker
from tests.recsys.small_project import write_project

SCHEMA = """
name = "clicks"
[features.user]
table = "ids"
[features.word]
table = "ids"
hashed = true
"""


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    (folder / "clicks.toml").write_text(SCHEMA)
    two = SCHEMA.replace('table = "ids"', 'table = "words"').replace('table = "words"', 'table = "ids"', 1)
    (folder / "two.toml").write_text(two)
    with Forker(folder) as started:
        assert started.run("train", "ctr.toml").code == 0
        assert started.run("train", "popularity.toml").code == 0
        yield started


def said(ended: Ended) -> Any:
    assert ended.code == 0, ended.err
    assert ended.out.count("\n") == 1
    return json.loads(ended.out)


def test_report_counts_three_kinds_of_bytes(forker: Forker) -> None:
    found = said(forker.run("tables", "report", "runs/ctr", "--json"))
    (store,) = found["stores"]
    assert (store["store"], store["num_embeddings"], store["embedding_dim"], store["precision"]) == (
        "ids", 300, 4, "float32",
    )  # fmt: skip
    assert store["served_bytes"] == 300 * 4 * 4
    assert found["stores_in_training"] == {"ids": {"weights": 300 * 4 * 4, "optimizer": 300 * 4}}
    assert found["served_bytes_on_disk"] == said(forker.run("evaluate", "runs/ctr", "--json"))["counts"]["table_bytes"]
    assert found["bytes_in_training"]["training"] >= 300 * 4 * 4
    assert {reader["reader"] for reader in found["readers"]} >= {"user", "item"}


def test_report_shows_collisions_rows_and_norms(forker: Forker) -> None:
    ended = forker.run("tables", "report", "runs/ctr")
    assert ended.code == 0
    for words in ("optimizer state", "in all rows", "with other readers", "hottest rows", "mean norm"):
        assert words in ended.out, ended.out
    assert "rows x ids that read them" in ended.err


def test_suggestion_for_a_config_uses_its_counts_and_width(forker: Forker) -> None:
    (found,) = said(forker.run("tables", "suggest", "ctr.toml", "--budget", "4kB", "--json"))["suggestions"]
    assert found["chosen"]["bytes"] <= 4000
    assert not any("assumed" in reason for reason in found["why"])
    assert found["chosen"]["chunks"] * found["chosen"]["chunk_dim"] >= 8


def test_suggested_section_trains_as_it_is_pasted(forker: Forker) -> None:
    ended = forker.run("tables", "suggest", "ctr.toml", "--budget", "4kB")
    text = (forker.folder / "ctr.toml").read_text()
    before, _, after = text.partition("[tables.ids]")
    section = "[tables.ids]" + ended.out.partition("[tables.ids]")[2]
    (forker.folder / "pasted.toml").write_text(before + section + "\n[optimizer" + after.partition("[optimizer")[2])
    assert forker.run("train", "pasted.toml").code == 0
    report = said(forker.run("tables", "report", "runs/pasted", "--json"))
    assert sum(store["served_bytes"] for store in report["stores"]) <= 4000


def test_suggestion_for_a_schema_says_what_it_assumes(forker: Forker) -> None:
    arguments = ("tables", "suggest", "clicks.toml", "--budget", "1MB", "--ids", "user=100000", "--ids", "word=5000000")
    (found,) = said(forker.run(*arguments, "--json"))["suggestions"]
    assert any("user, word are assumed (Zipf)" in reason for reason in found["why"])
    section = tomllib.loads(found["section"])["tables"]["ids"]
    assert (section["method"], section["precision"]) == ("unified", "int4")


def test_suggestion_for_two_tables_shares_the_budget(forker: Forker) -> None:
    arguments = ("--budget", "1MB", "--ids", "user=100000", "--ids", "word=100000", "--json")
    found = said(forker.run("tables", "suggest", "two.toml", *arguments))["suggestions"]
    assert [one["table"] for one in found] == ["ids", "words"]
    assert sum(one["chosen"]["bytes"] for one in found) <= 10**6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report", "runs/none"), "is not a run"),
        (("report", "runs/popularity"), "model 'popularity' has no tables"),
        (("suggest", "clicks.toml", "--budget", "1MB"), "give --ids user=N --ids word=N, or a config"),
        (("suggest", "clicks.toml", "--budget", "1MB", "--ids", "usr=3"), "there is no such id feature"),
        (("suggest", "clicks.toml", "--budget", "1MB", "--ids", "user"), "not of the form FEATURE=N"),
        (("suggest", "ctr.toml", "--budget", "1MB", "--ids", "user=3"), "--ids user has no effect: the data has"),
        (("suggest", "ctr.toml", "--budget", "1 potato"), "budget '1 potato' must be a positive number"),
        (("suggest", "ctr.toml", "--budget", "3B"), "3B is too small, the minimum is"),
        (("suggest", "none.toml", "--budget", "1MB"), "none.toml"),
    ],
)
def test_tables_commands_refuse_in_one_line(forker: Forker, arguments: tuple[str, ...], says: str) -> None:
    ended = forker.run("tables", *arguments)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert says in ended.err


def test_tables_tests_know_the_width_of_their_config(tmp_path: Path) -> None:
    options = load_config(write_project(tmp_path) / "ctr.toml").tables.specs["ids"].options
    assert options["chunk_dim"] * options["chunks"] == 8

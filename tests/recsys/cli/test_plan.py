"""`recsys plan` on a laptop: what it prints of a cluster that is not there, and which options it refuses, and how."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recsys.cli.plan import parse_bytes, parse_counts, parse_rate, rank_text, seconds_text
from tests.recsys.forked import Ended, Forker
from tests.recsys.small_project import write_project

MIXED = 'tables.sharding={"ids.user"="row_wise", "ids.item"="table_row_wise"}'


class Laptop:
    """A project, whose data is prepared by the first command, and an interpreter in it."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        self.folder, self.forker = write_project(folder), forker

    def plan(self, *arguments: str) -> Ended:
        return self.forker.run("plan", "retriever.toml", *arguments, "optimizer.tables.name=rowwise_adagrad")

    def planned(self, *arguments: str) -> dict[str, Any]:
        ended = self.plan("--json", *arguments)
        assert ended.code == 0, ended.err
        assert ended.out.count("\n") == 1
        found: dict[str, Any] = json.loads(ended.out)
        return found


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("laptop")
    with Forker(folder) as forker:
        yield Laptop(folder, forker)


# --- what it prints ---


def test_plan_prints_stores_reasons_ranks_time_and_changes(laptop: Laptop) -> None:
    many = ("--cardinality", "user=100000")
    ended = laptop.plan("--world-size", "64", "--hbm", "80GiB", "--ranks-per-host", "8", *many)
    assert ended.code == 0, ended.err
    for text in (
        "over 64 ranks, 8 per host", "ids.user", "row_wise", "all", "per rank", "optimizer state",
        "is more than a rank's", "it fits:", "of 68.0 GiB (80.0 GiB less 15%)", "a step of 800 rows",
        "lookup", "all-to-all", "update", "2 TB/s own memory", "300 GB/s within a host", "what would change it:",
    ):  # fmt: skip
        assert text in ended.out, text


def test_plan_of_a_terabyte_allocates_nothing(laptop: Laptop) -> None:
    found = laptop.planned("--world-size", "64", "--cardinality", "user=2^32", "tables.ids.embedding_dim=64")
    user = next(store for store in found["stores"] if store["store"] == "ids.user")
    assert sum(user["weight_bytes"]) == 2**40
    assert (user["kind"], found["fits"]) == ("row_wise", True)


def test_plan_moves_what_is_larger_than_a_gpu_to_its_host(laptop: Laptop) -> None:
    found = laptop.planned("--world-size", "8", "--hbm", "1GiB", "--cardinality", "user=1e9")
    assert [store["store"] for store in found["stores"] if store["host_memory"]] == ["ids.user"]
    assert any("nothing would lie in host memory" in line for line in found["changes"])
    assert "host, cached" in laptop.plan("--hbm", "1KiB").out


def test_plan_takes_the_sharding_of_the_config(laptop: Laptop) -> None:
    found = laptop.planned("tables.backend=sharded", MIXED, "--world-size", "4", "--ranks-per-host", "2")
    kinds = {store["store"]: store["kind"] for store in found["stores"]}
    assert (kinds["ids.user"], kinds["ids.item"]) == ("row_wise", "table_row_wise")


def test_plan_counts_reads_by_the_data_or_as_told(laptop: Laptop) -> None:
    """Histories are as long as they are on average, and a step's vectors grow with them and with the batch."""
    short, measured, long, wide = (
        max(rank["buffers"] for rank in laptop.planned(*options)["ranks"])
        for options in (["--length", "history=0.1"], [], ["--length", "history=50"], ["--batch-size", "8000"])
    )
    assert short < measured < long
    assert wide == pytest.approx(10 * measured, rel=1e-3)


# --- what it refuses ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--world-size", "0"], "world_size must be at least 1, got 0"),
        (["--world-size", "12"], "world_size 12 is no multiple of ranks_per_host 8"),
        (["--hbm", "80"], "--hbm '80' must be a number with one of B, kB"),
        (["--hbm", "0GiB"], "hbm must be above 0"),
        (["--inter-bandwidth", "25GB"], "as in '300GB/s'"),
        (["--reserve", "1.5"], "reserve must be in"),
        (["--batch-size", "0"], "training.batch_size"),
        (["--cardinality", "usr=5"], "did you mean 'user'"),
        (["--cardinality", "user"], "must be FEATURE=N"),
        (["--cardinality", "user=1.5"], "a number of ids is whole"),
        (["--cardinality", "item=5", "--cardinality", "history=6"], "shares ids with a feature that is given another"),
        (["--cardinality", "price=5"], "kind 'dense' that has no ids"),
        (["--length", "user=5"], "is not a list"),
        (["tables.backend=sharded", "tables.sharding=rows"], "'rows', accepted are 'auto'"),
        (["tables.backend=sharded", "tables.sharding=data_parallel"], "lists up wrongly"),
        (["tables.backend=sharded", "tables.sharding=column_wise"], "5.7 times off"),
        (["tables.backend=sharded", 'tables.sharding={"ids.usr"="row_wise"}'], "names store 'ids.usr'"),
        (["tables.ids.embedding=3"], "unknown key 'embedding', did you mean 'embedding_dim'"),
    ],
)
def test_plan_refuses_in_one_line(laptop: Laptop, arguments: list[str], says: str) -> None:
    ended = laptop.plan(*arguments)
    lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert (ended.code, len(lines), ended.out) == (2, 1, ""), ended
    assert says in lines[0]


def test_plan_refuses_a_model_without_tables_and_adam(laptop: Laptop) -> None:
    assert "has no tables to plan" in laptop.forker.run("plan", "popularity.toml").err
    assert "has no Adam" in laptop.forker.run("plan", "retriever.toml").err


def test_plan_refuses_a_method_of_one_rank_at_several(laptop: Laptop) -> None:
    pruned = ("tables.ids.method=deeplight", "tables.ids.budget=50%")
    assert "does not train over several ranks: the threshold" in laptop.plan(*pruned).err
    assert laptop.plan(*pruned, "--world-size", "1").code == 0


# --- words and numbers ---


@pytest.mark.parametrize(("text", "count"), [("1B", 1), ("80GiB", 80 * 2**30), ("1.5 kB", 1500), ("2TiB", 2**41)])
def test_bytes_have_units(text: str, count: float) -> None:
    assert parse_bytes("--hbm", text) == count
    assert parse_rate("--hbm-bandwidth", f"{text}/s") == count


@pytest.mark.parametrize(("text", "count"), [("10^9", 1e9), ("5e6", 5e6), ("1_000", 1000), ("2.5e6", 2.5e6), ("7", 7)])
def test_counts_are_written_as_people_do(text: str, count: float) -> None:
    assert parse_counts("--cardinality", [f"user={text}"]) == {"user": count}


@pytest.mark.parametrize(
    "text", ["user=", "=5", "user=-5", "user=0", "user=five", "user=10^99", "user=5=6", "user=1e99"]
)
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--cardinality"):
        parse_counts("--cardinality", [text])
    with pytest.raises(ValueError, match="names 'user' twice"):
        parse_counts("--cardinality", ["user=1", "user=1"])


def test_ranks_and_seconds_are_written_short() -> None:
    assert rank_text(range(8), 8) == "all"
    assert rank_text([3], 8) == "3"
    assert rank_text(range(4, 8), 8) == "4-7"
    assert rank_text([0, 2, 5, 6, 7], 8) == "0, 2, 5 and 2 more"
    assert [seconds_text(seconds) for seconds in (2.0, 0.00123, 1.5e-6, 0.0)] == ["2 s", "1.23 ms", "1.5 us", "0 us"]

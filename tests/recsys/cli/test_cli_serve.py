"""`recsys retrieve` and `recsys score` against a server of this process, and `recsys serve` where it refuses."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from recsys.bundle import BundleStore
from recsys.cli import app
from serving.pipeline import Pipeline
from serving.server import Settings, running
from tests.recsys.forked import Forker
from tests.recsys.small_project import write_project

CONTEXT = ("--column", "device=phone", "--column", "hour=3")


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """In a project with a bundle of two parts in `store`."""
    with Forker(write_project(tmp_path_factory.mktemp("project"))) as started:
        for name in ("ctr", "retriever"):
            assert started.run("train", f"{name}.toml").code == 0
        assert started.run("export", "runs/ctr", "runs/retriever", "--out", "store").code == 0
        yield started


@pytest.fixture(scope="module")
def address(forker: Forker) -> Iterator[str]:
    pipeline = Pipeline.load(BundleStore(forker.folder / "store").open())
    with running(lambda: pipeline, Settings(port=0, default_deadline_s=10.0)) as found:
        yield found


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def answer(*arguments: str) -> dict[str, object]:
    """The one line of JSON on stdout of a command that succeeds and says nothing else."""
    ended = call(*arguments, "--json")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout.count("\n") == 1
    found: dict[str, object] = json.loads(ended.stdout)
    return found


def items_of(found: dict[str, object]) -> list[int]:
    assert isinstance(found["candidates"], list)
    return [row["item"] for row in found["candidates"]]


def test_retrieve_answers_a_known_user_and_a_new_one_with_a_history(address: str) -> None:
    known = answer("retrieve", "--address", address, "--user", "u00001", "--k", "3")
    assert (known["user_known"], known["fallback"], len(items_of(known))) == (True, None, 3)
    first, second, *_ = items_of(known)
    new = answer("retrieve", "--address", address, "--history", f"{first},{second}")
    assert (new["user_known"], new["fallback"]) == (False, None)
    assert not {first, second} & set(items_of(new))
    timed = ("--history", f"{second},{first},{first}", "--history-times", "20,10,30", "--time", "30")
    assert items_of(answer("retrieve", "--address", address, *timed)) == items_of(new)
    without = answer("retrieve", "--address", address, "--user", "u00001", "--k", "3", "--exclude", str(first))
    assert first not in items_of(without)


def test_retrieve_answers_an_unknown_user_with_the_fallback(address: str) -> None:
    unknown = answer("retrieve", "--address", address, "--user", "nobody", "--k", "2")
    assert (unknown["user_known"], unknown["fallback"], len(items_of(unknown))) == (False, "unknown_user", 2)
    said = call("retrieve", "--address", address, "--user", "nobody", "--k", "2")
    assert said.exit_code == 0
    assert said.stderr.startswith("fallback: the bundle does not know the user")


def test_retrieve_filters_on_an_attribute(address: str) -> None:
    shown = answer("retrieve", "--address", address, "--user", "u00001", "--k", "200", "--keep-seen")
    equal = '{"kind": "range", "attribute": "item", "high": 10050}'
    kept = answer("retrieve", "--address", address, "--user", "u00001", "--k", "200", "--keep-seen", "--filter", equal)
    assert items_of(kept) == [item for item in items_of(shown) if item <= 10050]


def test_score_gives_a_probability_for_each_item(address: str) -> None:
    found = answer("score", "--address", address, "--user", "u00001", "--items", "10001,10002", *CONTEXT)
    assert isinstance(found["scores"], list)
    assert [row["row"] for row in found["scores"]] == ["10001", "10002"]
    assert all(0 < row["click"] < 1 for row in found["scores"])
    assert "10001" in call("score", "--address", address, "--items", "10001", *CONTEXT).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("retrieve", "--k", "0"), "--k: got 0, accepted: 1 or more"),
        (("retrieve", "--k", "-1"), "--k: got -1"),
        (("retrieve", "--k", "1000000"), "INVALID_ARGUMENT: k: got 1000000, accepted: 1 to"),
        (("retrieve", "--history", "1,x"), "--history: ids of this bundle are whole numbers, got 'x'"),
        (("retrieve", "--history-times", "x"), "--history-times: times are whole numbers, got 'x'"),
        (("retrieve", "--history-times", "5"), "history_times: are given without a history"),
        (("retrieve", "--history", "1", "--history-feature", "stars=[3]"), "history_features: unknown name 'stars'"),
        (("retrieve", "--exclude", "q"), "--exclude: ids of this bundle are whole numbers"),
        (("retrieve", "--feature", "gender"), "--feature 'gender' is not of the form name=value"),
        (("retrieve", "--feature", "colour=red"), "unknown name 'colour'"),
        (("retrieve", "--filter", "{"), "filter is not JSON"),
        (("retrieve", "--filter", '{"kind": "like"}'), "unknown kind 'like'; kinds are and, or, not, equal"),
        (("retrieve", "--timeout", "0"), "timeout_s must be above 0"),
        (("score", "--items", "10001"), "columns[device]: got none"),
        (("score", "--items", "one", *CONTEXT), "--items: ids of this bundle are whole numbers"),
        (("score", *CONTEXT, "--column", "colour=red", "--items", "10001"), "unknown name 'colour'"),
        (("score", "--items", "10001", "--column", "device=phone", "--column", "hour=late"), "columns[hour]"),
    ],
    ids=lambda value: "_".join(value[:3]) if isinstance(value, tuple) else "",
)
def test_a_question_that_cannot_be_answered_is_one_line(address: str, arguments: tuple[str, ...], says: str) -> None:
    ended = call(*arguments, "--address", address)
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith("error: ")
    assert says in ended.stderr


def test_serve_refuses_what_it_cannot_serve(forker: Forker, address: str) -> None:
    port = address.rpartition(":")[2]
    for arguments, says in (
        (("--port", port), f"Address already in use: 127.0.0.1:{port}"),
        (("--port", "70000"), "port must be 0..65535, got 70000"),
        (("--bundle", "next"), "'next' is neither a label nor the beginning of a bundle id"),
    ):
        ended = forker.run("serve", "store", *arguments)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert says in ended.err

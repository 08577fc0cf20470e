"""What a user does wrong: exit code 2 and one clear line on stderr that names the thing; what was there stays whole.

What is tested elsewhere: a damaged request (tests/serving), a kill at every point (test_kill_and_resume.py).
"""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recsys.forked import Ended, Forker
from tests.recsys.small_project import CTR, write_project

CSV = '[data]\nname = "log"\nsource = "csv"\npath = "log.csv"\nschema = "log-schema.toml"\nsplit = { kind = "last" }\n'
CSV_SCHEMA = """
name = "log"
user = "user"
item = "item"
timestamp = "time"
[features.user]
table = "ids"
[features.item]
table = "ids"
[labels.click]
"""
LOG = "user,item,time,click\n" + "".join(f"u{n % 7},i{n % 5},{n},{n % 2}\n" for n in range(70))


class Shop:
    """A project folder, and commands run in it."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        self.folder = folder
        self.forker = forker
        write_project(folder)
        (folder / "log.csv").write_text(LOG)
        (folder / "log-schema.toml").write_text(CSV_SCHEMA)
        (folder / "log.toml").write_text(CTR.partition("[data]")[0] + CSV + "[model]" + CTR.partition("[model]")[2])

    def run(self, *arguments: str, fault: str | None = None) -> Ended:
        return self.forker.run(*arguments) if fault is None else self.forker.run(*arguments, fault=fault)

    def refused(self, *arguments: str, says: str, fault: str | None = None) -> str:
        """The one line that a refused command says, which must hold `says`."""
        ended = self.run(*arguments, fault=fault)
        lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        assert len(lines) == 1, ended.err
        assert says in lines[0], lines[0]
        return lines[0]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with Forker(folder) as forker:
        yield Shop(folder, forker)


@pytest.fixture(scope="module")
def trained(shop: Shop) -> Shop:
    for name in ("ctr", "popularity"):
        assert shop.run("train", f"{name}.toml").code == 0
    assert shop.run("export", "runs/popularity", "runs/ctr", "--out", "store").code == 0
    return shop


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.batch_sise=3", "did you mean 'batch_size'"),
        ("traning.batch_size=3", "did you mean 'training'"),
        ("model.hiden=[3]", "did you mean 'hidden'"),
        ("model.name=dcm", "there is no model 'dcm'"),
        ("tables.ids.method=hashed", "there is no table method 'hashed'"),
        ("tables.ids.chunk_dm=3", "did you mean 'chunk_dim'"),
        ("optimizer.tables.name=adam", "no Adam"),
        ("training.metric=recall@20", "recall@20"),
        ("training.device=cuda", "cuda"),
        ("data.source=csw", "did you mean 'csv'"),
        ("data.schema=nothing.toml", "nothing.toml"),
        ("data.path=smal", "there is no world 'smal'"),
        ("tables.sharding=row_wise", "sharding"),
        ("training.batch_size", "section.key=value"),
    ],
)
def test_cli_names_the_wrong_setting(shop: Shop, override: str, says: str) -> None:
    shop.refused("train", "ctr.toml", override, "--name", "wrong", says=says)
    assert not (shop.folder / "runs" / "wrong").exists()


def test_cli_names_the_config_that_is_not_there(shop: Shop) -> None:
    shop.refused("train", "nothing.toml", says="nothing.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "log.csv"),
        ("user,item,time,click\n", "log.csv"),
        (LOG.replace("item", "itm", 1), "'itm'"),
        (LOG + "u1,i1,later,1\n", "time"),
        (LOG + "u1,i1,99,maybe\n", "click"),
    ],
)
def test_cli_names_what_is_wrong_with_a_log(shop: Shop, text: str, says: str) -> None:
    path = shop.folder / "bad.csv"
    path.write_text(text)
    shop.refused("prepare", "log.toml", "data.path=bad.csv", "--data", ".", says=says.replace("log.csv", "bad.csv"))


def test_cli_names_a_corrupt_parquet_file(shop: Shop) -> None:
    (shop.folder / "bad.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    changes = ("data.source=parquet", "data.path=bad.parquet")
    shop.refused("prepare", "log.toml", *changes, "--data", ".", says="bad.parquet")


def test_cli_names_a_dataset_that_is_not_there(shop: Shop) -> None:
    shop.refused("prepare", "log.toml", "data.path=elsewhere.csv", "--data", ".", says="elsewhere.csv")


def test_cli_refuses_another_config_under_the_same_name(trained: Shop) -> None:
    trained.refused("train", "ctr.toml", "training.batch_size=999", says="training.batch_size")


def test_cli_says_that_a_finished_run_is_finished(trained: Shop) -> None:
    ended = trained.run("train", "ctr.toml", "--json")
    assert (ended.code, json.loads(ended.out)["stage"]) == (0, "finished")
    assert "finished" in ended.err


def test_cli_refuses_a_run_that_is_not_there(shop: Shop) -> None:
    shop.refused("evaluate", "runs/nothing", says="runs/nothing is not a run")


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_cli_survives_a_disk_that_fills(shop: Shop, command: str) -> None:
    more = ("--name", "full") if command == "train" else ()
    changes = (f"data.name=full_{command}",)
    shop.refused(command, "ctr.toml", *changes, *more, says="no space left on device", fault="3:enospc")
    assert shop.run(command, "ctr.toml", *changes, *more, *(("--resume",) if more else ())).code == 0


def test_cli_export_on_a_full_disk_keeps_the_store(trained: Shop) -> None:
    before = (trained.folder / "store" / "labels.json").read_bytes()
    command = ("export", "runs/ctr", "--out", "store")
    trained.refused(*command, says="no space left on device", fault="2:enospc")
    assert (trained.folder / "store" / "labels.json").read_bytes() == before
    assert trained.run("bundle", "verify", "store").code == 0


def test_cli_refuses_a_flipped_byte_and_an_altered_manifest(trained: Shop) -> None:
    for pattern in ("components/*/weights.safetensors", "bundles/*.json"):
        path = next(iter(sorted((trained.folder / "store").glob(pattern))))
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        verified = trained.run("bundle", "verify", "store", "--json")
        assert verified.code == 1
        assert path.parent.name in verified.out or path.name in verified.out
        trained.refused("serve", "store", "--port", "0", says=path.name)
        path.write_bytes(whole)
    assert trained.run("bundle", "verify", "store").code == 0


def test_cli_refuses_a_store_that_is_not_there(shop: Shop) -> None:
    shop.refused("serve", "nothing", says="nothing")
    shop.refused("bundle", "verify", "nothing", says="nothing")


def test_cli_refuses_a_port_in_use(trained: Shop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        trained.refused("serve", "store", "--port", port, says=port)


def test_cli_says_that_no_server_answers(shop: Shop) -> None:
    shop.refused("retrieve", "--address", "127.0.0.1:1", "--timeout", "1", says="UNAVAILABLE")


@pytest.mark.parametrize(
    "command",
    [
        ("prepare", "ctr.toml", "--json"),
        ("evaluate", "runs/ctr", "--json"),
        ("evaluate", "runs/popularity", "--json"),
        ("export", "runs/ctr", "--out", "store", "--json"),
        ("bundle", "list", "store", "--json"),
        ("bundle", "verify", "store", "--json"),
    ],
    ids=lambda command: "-".join(command[:2]).replace("/", "-"),
)
def test_cli_json_is_one_line(trained: Shop, command: tuple[str, ...]) -> None:
    ended = trained.run(*command)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 1
    assert isinstance(json.loads(ended.out), dict)


def test_cli_evaluate_names_its_metrics(trained: Shop) -> None:
    ranking = json.loads(trained.run("evaluate", "runs/ctr", "--json").out)
    retrieval = json.loads(trained.run("evaluate", "runs/popularity", "--json").out)
    assert {"auc", "logloss", "ceiling_auc"} <= set(ranking)
    assert {"recall@20", "ndcg@20"} <= set(retrieval)

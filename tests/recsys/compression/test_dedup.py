"""Dedup: rows are whole, then merged, then trained as one; served are the blocks that are left."""

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from features.batch import Batch
from recsys import distributed
from recsys.compression.adaptive import AdaptTable
from recsys.compression.dedup import DedupTable, MergedRows
from recsys.compression.mixed_dim import MixedDimTable
from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.dense import RowPerId
from recsys.embedding.layout import unique_stores
from recsys.embedding.optimizers import RowWiseAdagrad
from recsys.embedding.stores import initial_weights
from recsys.embedding.table import EmbeddingTable, Search, TableSpec
from recsys.laws.small_schema import encoder, vectors_of
from recsys.phases import Phase, Until
from recsys.training.checkpoint import Checkpoints
from tests.recsys.compression.served import BUDGETS, VOCABULARIES, readers_of, served_bytes
from tests.recsys.compression.staged import Staged
from tests.recsys.forked import Forker
from tests.recsys.small_project import CTR, write_project
from tests.recsys.two_ranks import run_on_two_ranks

SPEC = DedupTable(embedding_dim=6, budget="50%")


def phase(name: str = "ctr", on_end: Callable[[], None] | None = None) -> Phase:
    return Phase(
        name=name, batches=lambda epoch, start: iter(()), num_batches=0, loss=lambda batch, step: torch.zeros(1),
        optimizers=(), until=Until(max_epochs=9, patience=2), on_end=on_end,
    )  # fmt: skip


def search_of(tables: dict[str, EmbeddingTable], weights: dict[str, Tensor]) -> Search:
    return Search(
        tables=tables, weights=lambda: weights, evaluate=None, metric="auc", higher_is_better=True,
        restart=lambda: None, seed=0,
    )  # fmt: skip


def merged(spec: DedupTable, sizes: dict[str, int]) -> tuple[dict[str, EmbeddingTable], dict[str, Tensor]]:
    """The tables of those vocabularies with initial weights, after merging."""
    tables = spec.build("ids", readers_of(sizes))
    weights = initial_weights(unique_stores(tables.values()), seed=0)
    end = spec.schedule([phase()], search_of(tables, weights))[0].on_end
    assert end is not None
    end()
    return tables, weights


def remaps(collection: EmbeddingCollection) -> dict[str, Tensor]:
    return {name: table.remap for name, table in collection.tables.items() if isinstance(table, MergedRows)}


# --- the table ---


def test_at_first_every_id_has_its_row() -> None:
    table = SPEC.build("ids", readers_of({"item": 61}))["item"]
    weights = initial_weights(table.stores, seed=0)
    assert torch.equal(table(torch.arange(61), weights), weights["ids.item"])


@pytest.mark.parametrize("block_rows", [1, 2, 7])
def test_rows_are_those_of_a_loop_over_blocks(block_rows: int) -> None:
    tables, _ = merged(SPEC.model_copy(update={"block_rows": block_rows}), {"item": 61})
    table = tables["item"]
    assert isinstance(table, MergedRows)
    remap = table.remap.tolist()
    expected = [remap[raw // block_rows] * block_rows + raw % block_rows for raw in range(61)]
    assert table.rows(torch.arange(61))["ids.item"].flatten().tolist() == expected
    assert len(set(expected)) < 61


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
@pytest.mark.parametrize("sizes", VOCABULARIES, ids=str)
def test_served_bytes_keep_every_budget_once_merged(sizes: dict[str, int], precision: str) -> None:
    for number, budget in enumerate(BUDGETS[::2]):
        spec = DedupTable(embedding_dim=5, budget=budget, block_rows=1 + number % 3, precision=precision)
        try:
            tables, weights = merged(spec, sizes)
        except ValueError as error:
            least = str(error).rpartition(" ")[2]
            tables, weights = merged(spec.model_copy(update={"budget": least}), sizes)  # what it names can be had
            assert served_bytes(tables, weights) == int(least.removesuffix("B"))
            continue
        most = spec._most([table for table in tables.values() if isinstance(table, MergedRows)])
        assert most is not None
        assert served_bytes(tables, weights) <= most


def test_without_a_budget_only_what_is_similar_is_merged() -> None:
    tables, weights = merged(DedupTable(embedding_dim=6), {"item": 400})
    frozen, _ = tables["item"].freeze(weights)
    assert isinstance(frozen, RowPerId)  # initial values are not alike
    loose, weights = merged(DedupTable(embedding_dim=6, tolerance=0.06), {"item": 400})
    assert served_bytes(loose, weights) < 0.8 * 400 * 24


def test_served_are_the_kept_blocks_and_the_same_vectors() -> None:
    tables, weights = merged(SPEC, {"item": 61, "tag": 7})
    for table in tables.values():
        frozen, arrays = table.freeze(weights)
        ids = torch.arange(table.num_embeddings or 0)
        assert torch.equal(frozen(ids, arrays), table(ids, weights))
        again, rows = frozen.freeze(arrays)
        assert torch.equal(again(ids, rows), table(ids, weights))
    assert tables["item"].freeze(weights)[1]["ids.item"].shape[0] < 61


def test_a_budget_out_of_reach_names_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"table 'ids': budget 1% is too small, the minimum is 103B"):
        DedupTable(embedding_dim=6, budget="1%").build("ids", readers_of({"item": 61}))  # 2 + 1 rows, 31 numbers


# --- the stages ---


def test_schedule_merges_at_the_end_and_repeats_the_phases() -> None:
    ended: list[str] = []
    tables = SPEC.build("ids", readers_of({"item": 61}))
    given = [phase("cf"), phase("kg", lambda: ended.append("kg"))]
    search = search_of(tables, initial_weights(tables["item"].stores, seed=0))
    found = SPEC.schedule(given, search)
    assert [one.name for one in found] == ["cf", "kg", "cf, merged", "kg, merged"]
    assert [one.until.max_epochs for one in found] == [9, 9, 1, 1]
    assert found[0] == given[0]
    assert [one.on_end is None for one in found] == [True, False, True, True]
    twice = SPEC.schedule(found, search)
    assert len({one.name for one in twice}) == len(twice) == 8
    assert found[1].on_end is not None
    found[1].on_end()
    assert ended == ["kg"]
    assert len(tables["item"].state_dict()["remap"].unique()) < 31


def test_merging_again_finds_the_same() -> None:
    staged = Staged(SPEC)
    staged.train(staged.phases[:1])
    expected = {name: remap.clone() for name, remap in remaps(staged.collection).items()}
    assert staged.phases[0].on_end is not None
    staged.phases[0].on_end()
    assert all(torch.equal(remap, expected[name]) for name, remap in remaps(staged.collection).items())
    assert any(len(remap.unique()) < len(remap) for remap in expected.values())


def test_fine_tuning_trains_shared_rows_as_one_and_no_others() -> None:
    staged = Staged(SPEC)
    staged.train(staged.phases[:1])
    before = {name: weight.clone() for name, weight in staged.collection.backend.weights().items()}
    staged.train(staged.phases[1:])
    for table in staged.collection.tables.values():
        assert isinstance(table, MergedRows)
        weight = staged.collection.backend.weights()[table.store]
        read = torch.zeros(len(weight), dtype=torch.bool)
        read[table.rows(torch.arange(table.num_embeddings or 0))[table.store]] = True
        assert torch.equal((weight != before[table.store]).any(1), read)
    assert torch.equal(vectors_of(staged.collection.freeze()), vectors_of(staged.collection))


def test_state_after_merging_goes_on_alike() -> None:
    staged, other = Staged(SPEC), Staged(SPEC)
    staged.train(staged.phases[:1])
    other.collection.load_state_dict(staged.collection.state_dict())
    other.collection.load_state({name: tensor.clone() for name, tensor in staged.collection.state().items()})
    for one in (staged, other):
        one.train(one.phases[1:])
    assert torch.equal(vectors_of(staged.collection), vectors_of(other.collection))


# --- backends ---


def collection_of(spec: TableSpec, backend: str, sharding: str | None = None) -> EmbeddingCollection:
    return EmbeddingCollection(
        encoder(), {"ids": spec}, backend=backend, optimizer=RowWiseAdagrad(lr=0.2), seed=2, sharding=sharding  # type: ignore[arg-type]
    )  # fmt: skip


def merge(spec: TableSpec, collection: EmbeddingCollection) -> None:
    """What happens at the end of the first stage, if there is one."""

    def search(tables: object) -> Search:
        return replace(search_of({}, {}), tables=tables, weights=collection.backend.weights)  # type: ignore[arg-type]

    end = collection.schedule([phase()], search)[0].on_end
    if end is not None:
        end()


def batches() -> Iterator[tuple[Batch, Tensor]]:
    """Ids of two features, and which global rows they are."""
    generator = torch.Generator().manual_seed(7)
    for size in (16, 9, 2, 30):
        columns = {name: torch.randint(n, (size,), generator=generator) for name, n in (("user", 41), ("item", 61))}
        yield Batch(features=columns), torch.arange(size)


def step(collection: EmbeddingCollection, batch: Batch, numbers: Tensor) -> None:
    """A step of every store and parameter on this rank's rows of a global batch."""
    rows = numbers[distributed.rank() :: distributed.world_size()]
    vectors = collection(batch.select(rows))
    pull = torch.linspace(-1.0, 2.0, vectors["user"].shape[1])
    loss = sum((vectors[name].sin() * pull).mean(1) * (1 + rows % 3) for name in ("user", "item"))
    (loss.sum() * distributed.world_size() / len(numbers)).backward()
    distributed.average_gradients(list(collection.tables.parameters()))
    dense = torch.optim.SGD([*collection.tables.parameters(), torch.zeros(1)], lr=0.1)
    dense.step()
    dense.zero_grad()


def trained(spec: TableSpec, backend: str, sharding: str | None = None) -> EmbeddingCollection:
    collection = collection_of(spec, backend, sharding)
    for number, (batch, numbers) in enumerate(batches()):
        step(collection, batch, numbers)
        if number == 1:
            merge(spec, collection)
    return collection


def assert_same(found: EmbeddingCollection, expected: EmbeddingCollection) -> None:
    for name, remap in remaps(expected).items():
        assert torch.equal(remaps(found)[name], remap)
    torch.testing.assert_close(
        dict(found.backend.whole_weights()), dict(expected.backend.whole_weights()), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(dict(found.named_parameters()), dict(expected.tables.named_parameters(prefix="tables")))


SPECS: dict[str, TableSpec] = {
    "dedup": SPEC,
    "adapt": AdaptTable(embedding_dim=6, budget="30%"),
    "mde": MixedDimTable(embedding_dim=6, budget="50%"),
}


@pytest.mark.parametrize("name", SPECS)
def test_fused_equals_plain(name: str) -> None:
    assert_same(trained(SPECS[name], "fused"), plain_twin(SPECS[name]))


def plain_twin(spec: TableSpec) -> EmbeddingCollection:
    """Trained on the whole batches by the definition, also where this process is one of two ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: 0)
        patch.setattr(distributed, "world_size", lambda: 1)
        return trained(spec, "plain")


def test_sharded_equals_plain_on_two_ranks() -> None:
    run_on_two_ranks(check_on_two_ranks)


def check_on_two_ranks() -> None:
    for spec in SPECS.values():
        expected = plain_twin(spec)
        for sharding in ("table_wise", "row_wise"):
            assert_same(trained(spec, "sharded", sharding), expected)


# --- runs that are stopped ---

UNIFIED = 'method = "unified"\nnum_embeddings = 300\nchunk_dim = 4\nchunks = 2'
CONFIG = CTR.replace(UNIFIED, 'method = "dedup"\nembedding_dim = 4\nbudget = "40%"')


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    folder = write_project(tmp_path_factory.mktemp("project"))
    (folder / "dedup.toml").write_text(CONFIG)
    with Forker(folder) as forker:
        assert forker.run("prepare", "dedup.toml").code == 0
        yield forker


@pytest.mark.slow
def test_a_run_stopped_in_each_stage_resumes_bit_equal(forker: Forker) -> None:
    """Two epochs, merging, one epoch; stopped in each, and killed when it has merged but not yet said so."""
    whole = forker.run("train", "dedup.toml", "--runs", "whole")
    assert whole.code == 0, whole.err
    expected = forker.ask("digest", "whole/dedup")
    checkpoints = Checkpoints(forker.folder / "whole" / "dedup" / "checkpoints" / "select")
    remap = checkpoints.load("last")["model.collection.tables.ids/user.remap"]
    assert len(remap.unique()) < len(remap)
    steps = checkpoints.meta("last")["progress"]["step"] // 3  # of an epoch
    saves = [number for number, point in enumerate(whole.points, 1) if point == "rename:last.json"]
    merging = saves[2 * steps + 2]  # after a save a step, and one an evaluation
    stops: list[dict[str, Any]] = [
        {"term_at_step": 1}, {"term_at_step": 2 * steps}, {"fault": f"{merging}:kill"}, {"term_at_step": 2 * steps + 1},
    ]  # fmt: skip
    for stop in stops:
        ended = forker.run("train", "dedup.toml", "--runs", "stopped", **stop)
        assert ended.code == (75 if "term_at_step" in stop else -signal.SIGKILL)
        assert forker.run("train", "dedup.toml", "--runs", "stopped", "--resume").code == 0
        assert forker.ask("digest", "stopped/dedup") == expected
        shutil.rmtree(forker.folder / "stopped")

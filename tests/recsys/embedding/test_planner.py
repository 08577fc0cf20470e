"""A plan: the placement of training, its bytes counted as tensors are, and changes that hold when they are made."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import pytest

from recsys.embedding.optimizers import SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from recsys.embedding.placement import place, sharding_kinds, training_bytes
from recsys.embedding.planner import Plan, Workload, byte_text, changes, plan
from recsys.embedding.step_time import Cluster
from recsys.embedding.store import Store

GIB = 2**30
STORES = [
    Store(name="user", num_embeddings=4_000_000, embedding_dim=64),
    Store(name="item", num_embeddings=300_000, embedding_dim=30),
    Store(name="tag", num_embeddings=100, embedding_dim=8),
]
ACCESSES = {"user": 1.0, "item": 20.5, "tag": 2.0}
CLUSTER = Cluster(world_size=16, ranks_per_host=8)


def workload(optimizer: TableOptimizer | None = None, stores: list[Store] = STORES) -> Workload:
    return Workload(
        stores=stores, optimizer=optimizer or RowWiseAdagrad(lr=0.1), accesses=ACCESSES, batch_size=4096,
        replicated_bytes=1000,
    )  # fmt: skip


def huge() -> Workload:
    """Two TiB that are seldom read, beside stores of which nothing need move."""
    cold = Store(name="user", num_embeddings=2**33, embedding_dim=64)
    return workload(stores=[cold, *STORES[1:]])


# --- where ---


@pytest.mark.parametrize("sharding", ["auto", "row_wise", "table_wise", {"item": "row_wise"}])
def test_a_plan_places_as_training_does(sharding: str | Mapping[str, str]) -> None:
    kinds = sharding_kinds(STORES, sharding, RowWiseAdagrad(lr=0.1), 16)
    found = plan(workload(), sharding, CLUSTER)
    assert {mine.store.name: mine.placement for mine in found.stores} == place(STORES, kinds, 16)


def test_known_wrong_cells_are_no_plan() -> None:
    with pytest.raises(ValueError, match=r"under RowWiseAdagrad: .*5\.7 times off"):
        plan(workload(), "column_wise", CLUSTER)
    with pytest.raises(ValueError, match="'data_parallel', accepted are"):
        plan(workload(), {"item": "data_parallel"}, CLUSTER)
    with pytest.raises(ValueError, match="no Adam"):
        workload(Adam(lr=0.1))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        replace(workload(), batch_size=0)


def test_column_wise_and_table_row_wise_are_planned_and_say_why() -> None:
    found = plan(workload(Adagrad(lr=0.1)), {"user": "column_wise", "item": "table_row_wise"}, CLUSTER)
    reasons = {mine.store.name: mine.reason for mine in found.stores}
    assert reasons["user"] == "set so; 16 blocks of 4 columns, exact as Adagrad is element-wise"
    assert "8 ranks of host" in reasons["item"]
    assert "does not train" in reasons["item"]


def test_every_choice_has_its_reason() -> None:
    reasons = {mine.store.name: mine.reason for mine in plan(workload(), {"item": "row_wise"}, CLUSTER).stores}
    assert reasons["user"].startswith("976.6 MiB is more than a rank's fair share of 63.3 MiB")
    assert reasons["item"] == "set so; 36.6 MiB over 16 ranks"
    assert reasons["tag"].startswith("3.1 KiB is within a rank's fair share of 63.3 MiB: whole on rank 0")
    few = [Store(name="user", num_embeddings=3, embedding_dim=64)]
    assert plan(workload(stores=few), "auto", CLUSTER).stores[0].reason == "3 rows are too few for 16 blocks of rows"


# --- bytes ---


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), Adagrad(lr=0.1), RowWiseAdagrad(lr=0.1)])
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_bytes_of_all_ranks_are_those_of_the_stores(optimizer: TableOptimizer, sharding: str) -> None:
    found = plan(workload(optimizer), sharding, CLUSTER)
    assert sum(rank.weights for rank in found.ranks) == sum(map(training_bytes, STORES))
    shapes = [optimizer.state_shapes(s.num_embeddings, -(-s.embedding_dim // 4) * 4) for s in STORES]
    assert sum(rank.state for rank in found.ranks) == 4 * sum(prod(shape) for each in shapes for shape in each.values())


def test_vectors_of_a_step_are_held_by_askers_and_holders() -> None:
    """Two tensors each: vectors and their gradients."""
    found = plan(workload(), "row_wise", CLUSTER)
    floats = 4096 * (1.0 * 64 + 20.5 * 32 + 2.0 * 8)
    assert sum(rank.buffers for rank in found.ranks) == pytest.approx(4 * floats * 4, rel=1e-6)
    assert {rank.replicated for rank in found.ranks} == {1000}


def test_a_store_too_large_goes_to_host_memory_the_coldest_first() -> None:
    found = plan(huge(), "auto", Cluster(world_size=16, ranks_per_host=8, hbm=80 * GIB, host_memory=4096 * GIB))
    assert [mine.cached for mine in found.stores] == [True, False, False]
    assert found.fits
    (host,) = {rank.host for rank in found.ranks}
    assert host == 2**33 // 16 * (64 + 1) * 4
    assert found.device_bytes < 80 * GIB < found.device_bytes + host
    assert found.host_bytes == 8 * host


def test_a_plan_that_fits_nowhere_says_so() -> None:
    assert not plan(workload(), "auto", replace(CLUSTER, hbm=1024)).fits
    assert not plan(huge(), "auto", replace(CLUSTER, hbm=80 * GIB, host_memory=100 * GIB)).fits
    assert plan(workload(), "auto", CLUSTER).fits


def test_a_plan_allocates_no_store() -> None:
    """A pebibyte, which no machine of ours could."""
    store = Store(name="user", num_embeddings=2**40, embedding_dim=256)
    found = plan(workload(stores=[store]), "auto", replace(CLUSTER, world_size=64))
    changes(found)
    assert sum(rank.weights + rank.host for rank in found.ranks) >= 2**50


# --- what would change it ---


def said(found: Plan, ending: str) -> str:
    (line,) = [line for line in changes(found) if line.endswith(ending)]
    return line


def test_changes_of_room_hold_when_they_are_made() -> None:
    small = Cluster(world_size=8, ranks_per_host=8, hbm=80 * GIB, host_memory=512 * GIB)
    found = plan(huge(), "auto", small)
    assert not found.fits
    ranks = int(said(found, "everything would fit").split()[1])
    assert plan(huge(), "auto", replace(small, world_size=ranks)).fits
    assert not plan(huge(), "auto", replace(small, world_size=ranks // 2)).fits
    ranks = int(said(found, "nothing would lie in host memory").split()[1])
    assert not any(mine.cached for mine in plan(huge(), "auto", replace(small, world_size=ranks)).stores)


def test_a_faster_kind_is_named() -> None:
    found = plan(workload(), "table_wise", CLUSTER)
    (line,) = [line for line in changes(found) if line.startswith("item as row_wise")]
    other = plan(workload(), {"user": "table_wise", "item": "row_wise", "tag": "table_wise"}, CLUSTER)
    assert f"{found.step.total / other.step.total:.2f} times as fast" in line


def test_the_number_of_ranks_that_splits_the_next_store_holds() -> None:
    ranks = int(said(plan(workload(), "auto", CLUSTER), "whole now").split()[1])
    for count, kind in ((ranks, "row_wise"), (ranks - 1, "table_wise")):
        assert sharding_kinds(STORES, "auto", RowWiseAdagrad(lr=0.1), count)["item"] == kind


def test_element_wise_state_names_what_row_wise_saves() -> None:
    assert any("row-wise Adagrad" in line for line in changes(plan(workload(Adagrad(lr=0.1)), "auto", CLUSTER)))
    assert not any("row-wise Adagrad" in line for line in changes(plan(workload(), "auto", CLUSTER)))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * GIB, "1.5 GiB"), (2**50, "1.0 PiB")]
)
def test_bytes_are_written_for_people(count: float, text: str) -> None:
    assert byte_text(count) == text

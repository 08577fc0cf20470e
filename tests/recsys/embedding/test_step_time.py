"""The estimate of a step: sums that can be done by hand, and what must make it longer or shorter."""

from dataclasses import replace

import pytest

from recsys.embedding.step_time import Cluster, Part, step_time, updated_bytes

CLUSTER = Cluster(
    world_size=4, ranks_per_host=2, hbm_bandwidth=1e9, host_bandwidth=1e8, intra_bandwidth=1e8, inter_bandwidth=1e7,
    latency=0.0,
)  # fmt: skip


def part(rank: int, lookups: float, cached: bool = False) -> Part:
    """1,000 rows of 16 floats with one number of state each."""
    return Part(
        rank=rank, rows=1000, columns=16, weight_bytes=64_000, state_bytes=4_000, lookups=lookups, cached=cached
    )


def test_lookup_reads_every_row_on_the_busiest_rank() -> None:
    found = step_time([part(0, 100), part(0, 50), part(1, 20)], 1, CLUSTER)
    assert found.lookup == pytest.approx(150 * 64 / 1e9)


def test_update_touches_a_row_once_however_often_it_is_hit() -> None:
    assert updated_bytes(part(0, 10)) == pytest.approx(10 * 64 + 2 * 10 * 68)
    assert updated_bytes(part(0, 5000)) == pytest.approx(5000 * 64 + 2 * 1000 * 68)


def test_exchange_by_hand() -> None:
    """Rank 0 holds all: it sends a quarter to its neighbour and half over the network, and keeps a quarter."""
    bytes_of_vectors, bytes_of_numbers = 100 * 64, 100 * 8
    found = step_time([part(0, 100)], 1, CLUSTER).exchange
    assert found == pytest.approx((2 * bytes_of_vectors + bytes_of_numbers) * (0.25 / 1e8 + 0.5 / 1e7))


def test_an_even_spread_is_the_fastest() -> None:
    spread = step_time([part(rank, 25) for rank in range(4)], 1, CLUSTER)
    alone = step_time([part(0, 100)], 1, CLUSTER)
    assert alone.lookup == pytest.approx(4 * spread.lookup)
    assert alone.exchange > spread.exchange
    assert alone.total > spread.total


def test_every_exchange_costs_its_latency() -> None:
    slow = replace(CLUSTER, latency=1.0)
    once, twice = (step_time([part(0, 1)], count, slow).exchange for count in (1, 2))
    assert twice - once == pytest.approx(4.0)


def test_host_memory_is_slower_by_what_is_not_cached() -> None:
    device, host = (step_time([part(0, 100, cached)], 1, CLUSTER).lookup for cached in (False, True))
    assert host == pytest.approx(device * (0.2 + 0.8 * 10))


def test_one_rank_exchanges_nothing() -> None:
    assert step_time([part(0, 100)], 3, Cluster(world_size=1)).exchange == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"world_size": 0}, "world_size must be at least 1, got 0"),
        ({"ranks_per_host": 0}, "ranks_per_host must be at least 1"),
        ({"ranks_per_host": 3}, "world_size 4 is no multiple of ranks_per_host 3"),
        ({"hbm": 0}, "hbm must be above 0"),
        ({"inter_bandwidth": -1}, "inter_bandwidth must be above 0"),
        ({"latency": -1}, "latency must not be negative"),
        ({"reserve": 1}, "reserve must be in"),
        ({"cache": 0}, "cache must be between 0 and 1"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(CLUSTER, **settings)


def test_a_cluster_smaller_than_a_host_is_one_host() -> None:
    assert Cluster(world_size=3, ranks_per_host=8).host_size == 3

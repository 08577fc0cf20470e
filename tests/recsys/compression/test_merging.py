"""Blocks that are alike are found and merged; with a budget, until it is kept; the same each time."""

import pytest
import torch

from recsys.compression.merging import Blocks, Likeness, Merging, first_of_bucket, number_type

ALIKE = Likeness(tolerance=0.01, similarity=0.7)


def values_of(rows: int, seed: int = 0, width: int = 4) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def merging(
    values: dict[str, torch.Tensor], block_rows: int = 2, most: int | None = None, alike: Likeness = ALIKE
) -> Merging:
    blocks = {
        name: Blocks(num_rows=len(rows), block_rows=block_rows, row_bytes=4 * rows.shape[1])
        for name, rows in values.items()
    }
    return Merging(values, blocks, alike, most, seed=3)


@pytest.mark.parametrize("block_rows", [1, 2, 5])
def test_noisy_copies_are_merged_and_nothing_else(block_rows: int) -> None:
    originals = values_of(20 * block_rows).view(20, -1)
    copies = torch.arange(60) % 20
    noise = 0.004 * torch.rand(60, originals.shape[1], generator=torch.Generator().manual_seed(1))
    rows = (originals[copies] + noise).view(60 * block_rows, 4)
    remap = merging({"a": rows}, block_rows).run()["a"]
    assert len(remap.unique()) == 20
    assert torch.equal(copies[remap], copies)


def test_blocks_are_alike_when_enough_of_their_floats_are() -> None:
    one = torch.zeros(2, 10)
    other = torch.zeros(2, 10)
    other[0, :3], other[1, :4] = 5.0, 5.0
    assert ALIKE(one, other).tolist() == [True, False]
    assert Likeness(tolerance=5.0, similarity=1.0)(one, other).all()
    assert ALIKE.loosened().tolerance > ALIKE.tolerance


def test_remap_leads_to_blocks_that_stay() -> None:
    remap = merging({"a": values_of(301)}, most=2000).run()["a"]
    assert remap.shape == (151,)
    assert torch.equal(remap[remap], remap)
    assert int(remap[-1]) == 150  # the shorter last block
    assert 150 not in remap[:-1]


def test_search_ends_as_soon_as_the_budget_is_kept() -> None:
    values = {"a": values_of(300), "b": values_of(100, seed=1)}
    for most in (400, 1500, 3100, 6200):
        found = merging(values, most=most)
        found.run()
        assert most - 32 - 2 * 200 < found.num_bytes() <= most  # a block, and remaps that shrink with their numbers


def test_least_bytes_can_be_reached() -> None:
    for rows in (1, 2, 3, 4, 7, 100):
        blocks = Blocks(num_rows=rows, block_rows=2, row_bytes=16)
        found = merging({"a": values_of(rows)}, most=blocks.least_bytes)
        found.run()
        assert found.num_bytes() == blocks.least_bytes


def test_search_depends_on_values_seed_and_names_alone() -> None:
    values = {"a": values_of(300), "b": values_of(100, seed=1)}
    expected = merging(values, most=2500).run()
    turned = merging(dict(reversed(values.items())), most=2500).run()
    assert all(torch.equal(expected[name], turned[name]) for name in values)


def test_similar_small_blocks_go_first() -> None:
    """Of rows that all look alike to a wide tolerance, those of the lowest percentile are merged."""
    rows = values_of(40).abs() * torch.linspace(0.1, 10.0, 40).unsqueeze(1)
    found = merging({"a": rows}, block_rows=1, most=40 * 16 - 40, alike=Likeness(tolerance=1e3, similarity=0.7))
    remap = found.run()["a"]
    moved = (remap != torch.arange(40)).nonzero().flatten()
    order = rows.kthvalue(3, 1).values.argsort()
    assert len(moved)
    assert set(moved.tolist()) <= set(order[: len(moved) + 5].tolist())


@pytest.mark.parametrize("removed", [0, 1, 10, 49])
def test_bytes_are_kept_rows_and_remap_or_all_rows(removed: int) -> None:
    blocks = Blocks(num_rows=101, block_rows=2, row_bytes=5)
    assert (blocks.count, blocks.complete) == (51, 50)
    assert blocks.num_bytes(removed) == min(505, (101 - 2 * removed) * 5 + 51)


def test_numbers_take_the_smallest_integer() -> None:
    sizes = {1: torch.uint8, 256: torch.uint8, 257: torch.int16, 32768: torch.int16, 32769: torch.int32}
    assert {count: number_type(count) for count in sizes} == sizes


def test_first_of_bucket_is_that_of_a_loop() -> None:
    buckets = torch.randint(-5, 5, (40,), generator=torch.Generator().manual_seed(0))
    listed = buckets.tolist()
    assert first_of_bucket(buckets).tolist() == [listed.index(bucket) for bucket in listed]


def test_values_that_are_not_finite_are_refused() -> None:
    rows = values_of(10)
    rows[3, 1] = float("nan")
    with pytest.raises(ValueError, match="table 'a' holds values that are not finite"):
        merging({"a": rows})

"""Budgets in bytes and in per cent."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from recsys.embedding.budget import Budget, allowed_bytes, budget_bytes, parse_budget, share, solve
from recsys.embedding.table import Reader

USER = Reader(name="user", salt="user", num_embeddings=100)
ITEM = Reader(name="item", salt="item", num_embeddings=50)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25MiB", (25 * 2**20, False)),
        ("158kB", (158_000, False)),
        ("1.5 GB", (1_500_000_000, False)),
        ("40B", (40, False)),
        ("10%", (Fraction(1, 10), True)),
        ("0.1%", (Fraction(1, 1000), True)),
    ],
)
def test_budget_is_read(text: str, expected: tuple[Fraction, bool]) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "25", "25 mib", "-3MB", "0kB", "1e3B", "MiB", "ten%", "5KB"])
def test_budget_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a positive number with one of %, B, kB"):
        parse_budget(text)
    with pytest.raises(ValidationError, match=r"must be a positive number with one of %, B, kB"):
        TypeAdapter(Budget | None).validate_python(text)


@pytest.mark.parametrize(("text", "expected"), [("1kB", 1000), ("50%", 3), ("0.5B", 0)])
def test_allowed_bytes_are_whole_and_no_more_than_said(text: str, expected: int) -> None:
    assert allowed_bytes(text, full=7) == expected


def test_budget_share_is_of_the_collisionless_bytes() -> None:
    assert budget_bytes("29%", "ids", {USER: 8, ITEM: 4}) == 29 * (100 * 8 + 50 * 4) * 4 // 100


def test_budget_share_needs_to_know_how_many_ids() -> None:
    with pytest.raises(ValueError, match=r"table 'ids' \(budget 10%\) needs the number of ids of 'word'"):
        budget_bytes("10%", "ids", {Reader(name="word", salt="word"): 8})


@given(most=st.integers(7, 400), top=st.integers(1, 60))
def test_solve_finds_the_largest_knob_by_trying_all(most: int, top: int) -> None:
    def size(knob: int) -> int:
        return 7 * knob

    best = max(knob for knob in range(1, top + 1) if size(knob) <= most)
    assert solve(size, most, range(1, top + 1), "it") == best


def test_solve_names_the_minimum() -> None:
    with pytest.raises(ValueError, match="it is too small, the minimum is 14B"):
        solve(lambda knob: 7 * knob, 13, range(2, 9), "it")


SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=1)


@given(full=SIZES, part=st.integers(1, 100), least=st.integers(1, 40))
def test_share_deals_within_bounds_and_no_more_than_there_is(full: dict[str, int], part: int, least: int) -> None:
    low = {name: min(least, size) for name, size in full.items()}
    most = max(sum(low.values()), sum(full.values()) * part // 100)
    dealt = share(most, full, low, "it")
    assert all(low[name] <= dealt[name] <= full[name] for name in full)
    assert most - len(full) < sum(dealt.values()) <= most or dealt == full


def test_share_is_proportional_where_nothing_binds() -> None:
    assert share(50, {"a": 300, "b": 200}, {"a": 1, "b": 1}, "it") == {"a": 30, "b": 20}


def test_share_names_the_minimum() -> None:
    with pytest.raises(ValueError, match="it is too small, the minimum is 12B"):
        share(11, {"a": 300, "b": 200}, {"a": 6, "b": 6}, "it")

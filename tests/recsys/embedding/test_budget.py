"""Budgets in bytes and in per cent."""

from fractions import Fraction

import pytest

from recsys.embedding.budget import budget_bytes, parse_budget
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


def test_budget_share_is_of_the_collisionless_bytes() -> None:
    assert budget_bytes("29%", "ids", {USER: 8, ITEM: 4}) == 29 * (100 * 8 + 50 * 4) * 4 // 100


def test_budget_share_needs_to_know_how_many_ids() -> None:
    with pytest.raises(ValueError, match=r"table 'ids' \(budget 10%\) needs the number of ids of 'word'"):
        budget_bytes("10%", "ids", {Reader(name="word", salt="word"): 8})

"""Every model of ours obeys the laws of its kind; and a model that breaks one is found out."""

import pytest

from recsys.laws.model import (
    CASES,
    Case,
    Law,
    every_parameter_is_trained,
    laws_of,
    learns_the_checkerboard,
    overfits_eight_examples,
)
from recsys.models import MODELS

PAIRS = [pytest.param(law, CASES[name], id=f"{name}-{law.__name__}") for name in CASES for law in laws_of(name)]


def test_laws_have_a_case_for_every_model() -> None:
    assert set(CASES) == set(MODELS)


@pytest.mark.parametrize(("law", "case"), PAIRS)
def test_model_obeys(law: Law, case: Case) -> None:
    law(case)


@pytest.mark.parametrize(
    ("law", "case", "broken"),
    [
        (learns_the_checkerboard, Case(name="lr", embedding_dim=1), "of users are given the item that they like first"),
        (overfits_eight_examples, Case(name="mf", embedding_dim=1, inputs=("user", "item")), "own item is not first"),
        (every_parameter_is_trained, Case(name="mf"), "store 'ids.tags' is not updated"),
    ],
)
def test_law_finds_a_model_that_breaks_it(law: Law, case: Case, broken: str) -> None:
    with pytest.raises(AssertionError, match=broken):
        law(case)

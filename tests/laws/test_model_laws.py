"""Every model of ours obeys the laws of its kind; and a model that breaks one is found out."""

import pytest

from recsys.laws.model import CASES, Case, Law, laws_of
from recsys.models import MODELS

PAIRS = [pytest.param(law, CASES[name], id=f"{name}-{law.__name__}") for name in CASES for law in laws_of(name)]


def test_laws_have_a_case_for_every_model() -> None:
    assert set(CASES) == set(MODELS)


@pytest.mark.parametrize(("law", "case"), PAIRS)
def test_model_obeys(law: Law, case: Case) -> None:
    law(case)

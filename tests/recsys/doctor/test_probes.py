"""What the probes of one rank see; those of two run in `recsys doctor` (test_doctor.py runs all)."""

import pytest

from recsys.doctor.facts import FACTS
from recsys.doctor.probes import probe


@pytest.mark.filterwarnings("ignore::FutureWarning:torchrec")
@pytest.mark.parametrize("name", [name for name, fact in FACTS.items() if fact.num_ranks == 1])
def test_probes_see_the_fact_and_say_how(name: str) -> None:
    found = probe(name)
    assert found["expected"], found
    assert len(found["seen"]) > 10

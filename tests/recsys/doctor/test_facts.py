"""Facts and probes belong together; that each is seen is a matter of `recsys doctor` (test_doctor.py runs it)."""

from recsys.doctor.facts import FACTS
from recsys.doctor.probes import PROBES


def test_facts_have_a_probe_each() -> None:
    assert PROBES.keys() == FACTS.keys()


def test_facts_are_distinct_and_need_one_or_two_ranks() -> None:
    assert len({fact.statement for fact in FACTS.values()}) == len(FACTS)
    assert {fact.num_ranks for fact in FACTS.values()} == {1, 2}

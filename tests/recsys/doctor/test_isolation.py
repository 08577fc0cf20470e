"""Jobs in processes that may die: each has its answer, or the reason why not, and the next one runs all the same."""

import pytest

from recsys.doctor.isolation import ImportFailedError, Job, Lost, run_jobs

JOBS = "tests.recsys.doctor.small_jobs"


def answers(jobs: list[tuple[str, str, int]], timeout_s: float = 60.0) -> list[object]:
    return list(run_jobs([Job(f"{JOBS}:{name}", text, ranks) for name, text, ranks in jobs], [JOBS], timeout_s))


def test_isolation_answers_come_in_order_whatever_dies_between() -> None:
    asked = [("greet", "a", 1), ("crash", "0", 1), ("fail", "so it goes", 1), ("leave", "3", 1), ("greet", "b", 1)]
    first, crashed, failed, left, last = answers(asked)
    assert (first, last) == ({"hello": "a", "ranks": 1}, {"hello": "b", "ranks": 1})
    assert crashed == Lost("rank 0: killed by SIGSEGV")
    assert failed == Lost("rank 0: LookupError: so it goes")
    assert left == Lost("rank 0: SystemExit: 3")


def test_isolation_ranks_work_together_and_one_that_dies_is_named() -> None:
    total, crashed, again = answers([("add_ranks", "", 2), ("crash", "1", 2), ("add_ranks", "", 2)])
    assert (total, again) == (3, 3)
    assert crashed == Lost("rank 1: killed by SIGSEGV")


def test_isolation_ends_what_hangs() -> None:
    hung, after = answers([("sleep", "600", 2), ("greet", "c", 2)], timeout_s=2.0)
    assert isinstance(hung, Lost)
    assert "no answer within 2 s" in hung.reason
    assert after == {"hello": "c", "ranks": 2}


def test_isolation_says_what_cannot_be_imported() -> None:
    with pytest.raises(ImportFailedError, match="No module named 'no_such_module'"):
        list(run_jobs([Job(f"{JOBS}:greet", "")], ["no_such_module"]))

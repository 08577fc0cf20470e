"""Deadlines: time runs out, callers leave, and `check` names the stage that was not begun."""

import math

import pytest

from serving.deadline import Deadline
from serving.errors import DeadlineExpiredError


def test_deadline_in_the_future_lets_stages_begin() -> None:
    deadline = Deadline.after(3600)
    deadline.check("search")
    assert 3500 < deadline.remaining() <= 3600


def test_deadline_that_is_spent_names_the_stage() -> None:
    with pytest.raises(DeadlineExpiredError, match="before: search"):
        Deadline.after(0).check("search")


def test_deadline_that_is_cancelled_is_spent() -> None:
    deadline = Deadline.never()
    assert deadline.remaining() == math.inf
    deadline.cancel()
    with pytest.raises(DeadlineExpiredError):
        deadline.check("reply")

"""What can go wrong with one request, as exceptions that know nothing of gRPC.

`serving.service` maps each class to a status code in one table. Anything else that is raised is a defect of ours.
"""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

MAX_SHOWN = 80


class InvalidArgumentError(ValueError):
    """The caller sent something that cannot be answered; the reason says what came and what is accepted."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")

    @staticmethod
    def got(field: str, came: Any, accepted: str) -> "InvalidArgumentError":
        """A value outside what is accepted."""
        return InvalidArgumentError(field, f"got {shown(came)}, accepted: {accepted}")

    @staticmethod
    def unknown_name(field: str, name: str, known: Collection[str]) -> "InvalidArgumentError":
        """A name that is none of `known`, with the nearest valid one."""
        near = get_close_matches(name, list(known), n=1)
        hint = f", did you mean {near[0]!r}?" if near else ","
        return InvalidArgumentError(field, f"unknown name {shown(name)}{hint} accepted: {sorted(known)}")


class NotServedError(Exception):
    """The bundle does not hold the part that the call needs."""


class NotReadyError(Exception):
    """The bundle is not loaded yet, or the server is shutting down."""


class OverloadedError(Exception):
    """More calls at once than the server admits."""


class DeadlineExpiredError(Exception):
    """The time of the call is spent, or the caller has gone."""


def shown(value: Any) -> str:
    """A value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."

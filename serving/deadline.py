"""`Deadline`: until when an answer is wanted. The pipeline asks between its stages, so that expired work is not done.

Work that runs in a thread cannot be interrupted; it can only stop at the next stage.
"""

import math
import time

from serving.errors import DeadlineExpiredError


class Deadline:
    """A moment on the monotonic clock, which the caller's leaving (`cancel`) brings forward to now.

    Example: `deadline = Deadline.after(0.25)`, then `deadline.check("search")` before each stage.
    """

    def __init__(self, expires: float) -> None:
        self._expires = expires

    @staticmethod
    def after(seconds: float) -> "Deadline":
        """That many seconds from now."""
        return Deadline(time.monotonic() + seconds)

    @staticmethod
    def never() -> "Deadline":
        """No limit, for offline use."""
        return Deadline(math.inf)

    def remaining(self) -> float:
        """Seconds left; negative when expired."""
        return self._expires - time.monotonic()

    def cancel(self) -> None:
        """Nobody waits any more: every later `check` raises."""
        self._expires = -math.inf

    def check(self, stage: str) -> None:
        """Raise DeadlineExpiredError, naming the stage that was not begun, if the time is spent."""
        if self.remaining() <= 0:
            raise DeadlineExpiredError(f"the time was spent before: {stage}")

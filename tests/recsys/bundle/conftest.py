import os

import pytest


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that the system has: syncing is announced as a point, but not waited for."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

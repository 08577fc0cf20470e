"""`held`: a folder that one process at a time works in, as searches, sweeps and daily jobs do."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.config import ConfigError

LOCK = ".lock"


@contextmanager
def held(folder: Path, worker: str, option: str) -> Iterator[None]:
    """Make the folder, and hold it alone until the end; a process that dies lets go of it. One left empty is removed.

    worker: what may be at work there already ("sweep"); option: by which the user chose the folder ("--out"). Raises
    ConfigError when the folder is a file, or held by another process.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{option} {folder} is a file, a folder is needed")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another {worker} is at work in {folder}; wait for it or choose another {option}"
            ) from None
        try:
            yield
        finally:
            if folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()

"""The lock of a folder that processes share, and how its files are opened, whoever put them there."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["FOREIGN_SAFE", "NOT_LET_GO", "locked"]

FOREIGN_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags of open: a link, a pipe or a device in a file's place neither leads elsewhere nor blocks."""
NOT_LET_GO = "another process does not let go of the folder's lock"


@contextmanager
def locked(folder: str, *, wait: float) -> Iterator[int]:
    """Holds the folder's lock. Raises OSError, TimeoutError if another process does not let go of it for so long."""
    lock = _lock(f"{folder}/lock", wait)
    try:
        yield lock
    finally:
        # Closing alone would not do if a child was forked meanwhile.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _lock(path: str, wait: float) -> int:
    deadline = time.monotonic() + wait
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | FOREIGN_SAFE, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return lock
            os.close(lock)  # removed since it was opened: the next process to come would lock another file
        except BlockingIOError:
            os.close(lock)
        except OSError:
            os.close(lock)
            raise
        if time.monotonic() > deadline:
            raise TimeoutError(f"{NOT_LET_GO}, {path}")
        time.sleep(0.001)

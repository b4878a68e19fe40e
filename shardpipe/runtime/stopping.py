"""Reads that nobody waits for any more, so that threads end when their reader does, whatever the network does."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakSet

__all__ = ["GIVEN_UP", "abandon_when", "abandoned", "at_exit", "pause", "pool"]

GIVEN_UP = "given up, for nobody waits for it any more"

_thread = threading.local()
_given: WeakSet[threading.Event] = WeakSet()


def abandon_when(stopped: threading.Event) -> None:
    """What the calling thread reads of any store from now on is given up once `stopped` is set: the read then raises
    a StoreError, within a fraction of a second where the file system is asynchronous, else after the attempt.

        ThreadPoolExecutor(32, initializer=abandon_when, initargs=(stopped,))
    """
    _thread.stopped = stopped
    _given.add(stopped)


def abandoned() -> bool:
    """Whether nobody waits for what this thread reads."""
    stopped: threading.Event | None = getattr(_thread, "stopped", None)
    return stopped is not None and stopped.is_set()


def pool(threads: int, name: str) -> ThreadPoolExecutor:
    """Threads that read for the calling one, and are abandoned when it is."""
    stopped: threading.Event | None = getattr(_thread, "stopped", None)
    return ThreadPoolExecutor(threads, name, abandon_when, (stopped or threading.Event(),))


def pause(seconds: float) -> None:
    """Sleeps, but not on if this thread is abandoned."""
    stopped: threading.Event | None = getattr(_thread, "stopped", None)
    if stopped is None:
        time.sleep(seconds)
    else:
        stopped.wait(seconds)


def _abandon_all() -> None:
    for stopped in list(_given):
        stopped.set()


# A forked process has none of their threads, one of which may hold the lock of its event.
os.register_at_fork(after_in_child=_given.clear)


def at_exit(action: Callable[[], None]) -> None:
    """Has `action` called as Python begins to end, before it waits for the threads of executors.

    A script may end with a loop half way. These threads would then finish all that waits for them. Such functions are
    called last in, first out, and atexit's when all is over.
    """
    getattr(threading, "_register_atexit", atexit.register)(action)


at_exit(_abandon_all)

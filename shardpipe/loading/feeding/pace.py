"""Who makes batches: threads, or processes where a loop waits for threads that wait for the GIL.

A thread that comes back from a call without the GIL waits for it up to 5 ms (`sys.getswitchinterval`) while another one
is busy in Python: the training loop, say. Decoding comes back a few times a sample: hardly a batch is made meanwhile.
"""

from __future__ import annotations

import logging
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shardpipe.loading.making import Workers
from shardpipe.runtime import leave_if_imported

__all__ = ["Pace"]

_log = logging.getLogger("shardpipe")

_STRETCH = 3.0
"""Seconds that are judged together."""
_BATCHES = 20
"""And batches, at least."""
_SHARE = 0.1
"""Of its time that a loop may wait for batches."""
_STANDING = 0.25
"""Of the time that threads spend on batches, that they may stand still: with cores for all and nobody who is busy in
Python it is 0.02.
"""
_EVERY = 0.25
"""Seconds between batches that are looked at: to ask the system costs a few waits for the GIL."""


class Pace:
    """Told by a loop's thread how long it waits, and watches those that make its batches.

    workers: processes to make batches: at once, or with `wait` when it is seen that threads stand at the GIL. Without
        any, that is but warned of.
    number: how many of them that warning asks for.
    """

    def __init__(self, workers: Workers | None, number: int, *, wait: bool) -> None:
        self.workers = None if wait else workers
        """Who makes batches; None for threads."""
        self._spare = workers
        self._number = number
        self._decided = self.workers is not None
        self._looks: deque[tuple[float, float]] = deque(maxlen=1000)
        """Seconds that a batch took its thread, and how many of them that stood still."""
        self._next_look = 0.0
        self._waited = self._passed = 0.0
        self._batches = self._slow = 0

    def begin(self) -> None:
        """As a loop does."""
        if self._spare is not None:
            leave_if_imported()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the making of a batch, in the thread that does it."""
        began = time.perf_counter()
        if self._decided or began < self._next_look:
            yield
            return
        self._next_look = began + _EVERY
        active, blocks = _spent()
        yield
        active_then, blocks_then = _spent()
        if blocks == blocks_then:  # else it waited for a disk, and nobody can tell how long for what
            took = time.perf_counter() - began
            self._looks.append((took, took - (active_then - active)))

    def taken(self, waited: float, passed: float) -> None:
        """In the loop's thread: seconds that it waited for a batch, and in all since the one before."""
        if self._decided:
            return
        self._waited += waited
        self._passed += passed
        self._batches += 1
        if self._passed < _STRETCH or self._batches < _BATCHES:
            return
        share, looks = self._waited / self._passed, list(self._looks)
        took, stood = (sum(seconds) for seconds in zip(*looks)) if looks else (0.0, 0.0)
        is_slow = share > _SHARE and stood > _STANDING * took
        self._slow = self._slow + 1 if is_slow else 0
        self._waited = self._passed = 0.0
        self._batches = 0
        self._looks.clear()
        if self._slow == 2:  # once may have been some other program's doing
            self._decided = True
            self._act(
                f"the loop waits for batches {100 * share:.0f} % of its time, as threads wait for the GIL to make them"
            )

    def _act(self, found: str) -> None:
        if self._spare is None:
            fix = f'workers={self._number} has processes make them, workers="auto" goes over to these by itself'
            _log.warning("%s: %s", found, fix)
            return
        _log.info("%s: %d worker processes take over", found, self._number)
        # They take seconds to begin.
        threading.Thread(target=self._go_over, args=(self._spare,), name="shardpipe", daemon=True).start()

    def _go_over(self, workers: Workers) -> None:
        try:
            workers.begin()
        except Exception as error:  # whatever it is, the loop can do without them
            if not threading.main_thread().is_alive() or sys.is_finalizing():
                return  # they end with the program
            _log.warning("threads go on making batches, for no worker processes can be had: %s", error)
        else:
            self.workers = workers


def _spent() -> tuple[float, int]:
    """Seconds that this thread has had a core or waited for one, and blocks that it has read from a disk; 0 of what the
    system does not tell.
    """
    queued = blocks = 0
    with suppress(OSError, IndexError, AttributeError):  # Linux alone has these
        blocks = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        with open("/proc/thread-self/schedstat") as file:
            queued = int(file.read().split()[1])
    return time.thread_time() + queued / 1e9, blocks

"""Who makes batches: threads, or processes where a loop waits for threads that wait for the GIL.

A thread that comes back from a call without the GIL waits for it up to 5 ms (`sys.getswitchinterval`) while another one
is busy in Python: the training loop, say. Decoding comes back a few times a sample: hardly a batch is made meanwhile.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque

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
_STANDING = 0.5
"""Of `sys.getswitchinterval`, in the mean, to get the GIL back: it takes all of that where somebody is always busy."""
_EVERY = 0.1
"""Seconds between looks at it, each of which may cost a few times that interval."""


class Pace:
    """Told by a loop's thread how long it waits, and by those that make its batches whenever one is made.

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
        self._stood: deque[float] = deque(maxlen=1000)
        self._looked = 0.0
        self._waited = self._passed = 0.0
        self._batches = self._slow = 0

    def begin(self) -> None:
        """As a loop does."""
        if self._spare is not None:
            leave_if_imported()

    def made(self) -> None:
        """In the thread that has made a batch: finds how long it takes to get the GIL back."""
        if self._decided or time.perf_counter() < self._looked + _EVERY:
            return
        queued, began = _queued(), time.perf_counter()
        time.sleep(0)
        self._looked = time.perf_counter()
        self._stood.append(max(0.0, self._looked - began - (_queued() - queued)))

    def taken(self, waited: float, passed: float) -> None:
        """In the loop's thread: seconds that it waited for a batch, and in all since the one before."""
        if self._decided:
            return
        self._waited += waited
        self._passed += passed
        self._batches += 1
        if self._passed < _STRETCH or self._batches < _BATCHES:
            return
        share, stood = self._waited / self._passed, list(self._stood)
        is_slow = share > _SHARE and bool(stood) and sum(stood) / len(stood) > _STANDING * sys.getswitchinterval()
        self._slow = self._slow + 1 if is_slow else 0
        self._waited = self._passed = 0.0
        self._batches = 0
        self._stood.clear()
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


def _queued() -> float:
    """Seconds that this thread has waited for a core, which is not waiting for the GIL; 0 where no system says it."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0

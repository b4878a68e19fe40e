"""A store as slow as a network."""

from __future__ import annotations

import heapq
import math
import threading
import time
from typing import Any

from shardpipe.store.base import Stat, Store

__all__ = ["SlowStore"]


class SlowStore:
    """Another store behind a line: every request waits `latency_seconds`, any number of them at once, and what is read
    then comes through a line of `bytes_per_second`, which all reads under way share equally (in every process anew).

    The time that the other store and this one take is part of the wait, so that requests end when the model says, if
    the machine keeps up with it.
    """

    def __init__(
        self, inner: Store, latency_seconds: float, bytes_per_second: float = math.inf, *, parallel: int = 32
    ) -> None:
        self.parallel = parallel
        self._inner = inner
        self._latency = latency_seconds
        self._rate = bytes_per_second
        self._line = _Line(bytes_per_second)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self._inner, self._latency, self._rate, self.parallel)

    @property
    def url(self) -> str:
        return self._inner.url

    def stat(self, name: str) -> Stat:
        answered = time.monotonic() + self._latency
        found = self._inner.stat(name)
        _sleep_until(answered)
        return found

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        answered = time.monotonic() + self._latency
        data = self._inner.read(name, offset, length)
        _sleep_until(answered)
        self._line.carry(len(data), answered)
        return data


def _open(inner: Store, latency: float, rate: float, parallel: int) -> SlowStore:
    return SlowStore(inner, latency, rate, parallel=parallel)


class _Line:
    """Bandwidth shared equally by the transfers under way.

    Follows `shared`, the bytes that a transfer would have got that was there all the time: it grows by the rate over
    the number of transfers. A transfer ends when it has grown by the transfer's size (generalised processor sharing:
    Parekh and Gallager, "A Generalized Processor Sharing Approach to Flow Control", 1993). Ends are computed, not
    observed, so a thread that wakes late holds up nobody else.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._shared = 0.0
        self._time = 0.0
        self._ends: list[float] = []
        """Where `shared` will be at the ends of the transfers under way: a heap."""

    def carry(self, size: int, start: float) -> None:
        """Returns when `size` bytes that set out at `start` have come through."""
        if not size or math.isinf(self._rate):
            return
        with self._lock:
            self._advance(start)
            end = self._shared + size
            heapq.heappush(self._ends, end)
        while True:
            with self._lock:
                self._advance(time.monotonic())
                if self._shared >= end:
                    return
                earliest = self._earliest(end)
            # Who comes meanwhile makes it later, nothing makes it earlier.
            _sleep_until(earliest)

    def _advance(self, now: float) -> None:
        while self._ends and self._time < now:
            ends = self._time + (self._ends[0] - self._shared) * len(self._ends) / self._rate
            if ends > now:
                self._shared += (now - self._time) * self._rate / len(self._ends)
                self._time = now
            else:
                self._shared = heapq.heappop(self._ends)
                self._time = ends
        self._time = max(self._time, now)

    def _earliest(self, end: float) -> float:
        """When a transfer will end if no other one comes."""
        # Each has still to come what it lacks, but of the longer ones no more than this one gets.
        left = sum(min(other, end) - self._shared for other in self._ends)
        return self._time + left / self._rate


def _sleep_until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)

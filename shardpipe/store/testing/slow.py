"""A store as slow as a network."""

from __future__ import annotations

import heapq
import math
import threading
import time
from typing import Any

from shardpipe.errors import StoreError
from shardpipe.runtime import GIVEN_UP, abandoned, after_fork, pause
from shardpipe.store.base import Over, Stat, Store
from shardpipe.store.urls import shown_in

__all__ = ["SharedLine", "SlowStore"]


class SlowStore(Over):
    """Another store behind a line: every request waits `latency_seconds`, any number of them at once, and what is read
    then comes through a line of `bytes_per_second`, which all reads under way share equally (in every process anew).

    The time that the other store and this one take is part of the wait, so that requests end when the model says, if
    the machine keeps up with it.
    """

    def __init__(
        self, inner: Store, latency_seconds: float, bytes_per_second: float = math.inf, *, parallel: int = 64
    ) -> None:
        super().__init__(inner)
        self._parallel = parallel
        self._latency = latency_seconds
        self._rate = bytes_per_second
        self._begin()
        after_fork(self, SlowStore._begin)

    def _begin(self) -> None:
        self._line = SharedLine(self._rate)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self._inner, self._latency, self._rate, self._parallel)

    @property
    def parallel(self) -> int:
        return self._parallel

    def stat(self, name: str) -> Stat:
        answered = time.monotonic() + self._latency
        found = self._inner.stat(name)
        self._wait_until(answered, name)
        return found

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        answered = time.monotonic() + self._latency
        data = self._inner.read(name, offset, length)
        self._wait_until(answered, name)
        if data and not math.isinf(self._rate):
            self._carry(name, len(data), answered)
        return data

    def _carry(self, name: str, size: int, start: float) -> None:
        with self._lock:
            goal = self._line.begin(size, start)
        try:
            while (end := self._end(goal)) is not None:
                self._wait_until(end, name)
        finally:
            with self._lock:
                self._line.leave(goal, time.monotonic())

    def _end(self, goal: float) -> float | None:
        with self._lock:
            return self._line.earliest_end(goal, time.monotonic())

    def _wait_until(self, moment: float, name: str) -> None:
        if (left := moment - time.monotonic()) > 0:
            pause(left)
        if abandoned():
            raise StoreError(GIVEN_UP, url=shown_in(self, name), fix="Read it in another loop.")


def _open(inner: Store, latency: float, rate: float, parallel: int) -> SlowStore:
    return SlowStore(inner, latency, rate, parallel=parallel)


class SharedLine:
    """Bandwidth shared equally by the transfers under way; times in seconds, of any clock, never going back.

    Follows `_shared`, the bytes that a transfer would have got that was there all the time: it grows by the rate over
    the number of transfers. A transfer ends when it has grown by the transfer's size (generalised processor sharing:
    Parekh and Gallager, "A Generalized Processor Sharing Approach to Flow Control", 1993). Ends are computed, not
    observed, so a thread that wakes late holds up nobody else. Not safe to call from many threads.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._shared = 0.0
        self._time = 0.0
        self._goals: list[float] = []
        """Where `_shared` will be when the transfers under way end: a heap."""

    def begin(self, size: int, now: float) -> float:
        """The goal of a transfer of `size` bytes that begins now."""
        self._advance(now)
        goal = self._shared + size
        heapq.heappush(self._goals, goal)
        return goal

    def earliest_end(self, goal: float, now: float) -> float | None:
        """When a transfer will end if no other one comes, which would make it later; None if it has ended."""
        self._advance(now)
        if self._shared >= goal:
            return None
        # Each has still to come what it lacks, but of the longer ones no more than this one gets.
        return self._time + sum(min(other, goal) - self._shared for other in self._goals) / self._rate

    def leave(self, goal: float, now: float) -> None:
        """Ends a transfer, whatever it still lacks."""
        self._advance(now)
        if goal in self._goals:
            self._goals.remove(goal)
            heapq.heapify(self._goals)

    def _advance(self, now: float) -> None:
        while self._goals and self._time < now:
            end = self._time + (self._goals[0] - self._shared) * len(self._goals) / self._rate
            if end > now:
                self._shared += (now - self._time) * self._rate / len(self._goals)
                self._time = now
            else:
                self._shared = heapq.heappop(self._goals)
                self._time = end
        self._time = max(self._time, now)

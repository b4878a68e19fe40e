"""Work done ahead by threads and delivered in order, within bounds of number and of bytes.

Three stages, each ahead of the next: planning, in one thread; reads that take a round trip, many at once, as far ahead
as bytes allow; making, in as many threads as there are cores. No thread waits for the consumer: planning ends where
enough is planned and is begun again where it is not, so nothing is left behind when the consumer has gone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from shardpipe.runtime import abandon_when, after_fork, keep

__all__ = ["Pipeline"]

_Work = TypeVar("_Work")
_Read = TypeVar("_Read")
_Result = TypeVar("_Result")

_PLANNED = 64
"""Pieces of work that are planned ahead of those begun, where reads begin far ahead: they take next to no memory.
Elsewhere fewer do, and the planner is less in the way of those who make what comes first.
"""


class _Entry(Generic[_Work, _Read, _Result]):
    """One piece of work on its way."""

    def __init__(self, work: _Work, size: int) -> None:
        self.work = work
        self.size = size
        self.reads: list[Future[_Read]] = []
        self.made: Future[_Result] | None = None


class Pipeline(Generic[_Work, _Read, _Result]):
    """Iterating gives (work, result) in the order of `plan`, which may be endless. Close it when done.

    plan: iterated ahead, in a thread of its own.
    reads: what a piece of work needs read; run by up to `parallel` threads, ahead of its turn to be made.
    make: called with a piece of work and what its reads returned, in one of `threads` threads.
    size: bytes that a piece of work occupies from its reads to its delivery.
    most_made: results made ahead. most_bytes: bytes ahead in all; one piece of work is let through, however large.
    """

    def __init__(
        self,
        plan: Iterator[_Work],
        *,
        reads: Callable[[_Work], list[Callable[[], _Read]]],
        make: Callable[[_Work, list[_Read]], _Result],
        size: Callable[[_Work], int],
        threads: int,
        parallel: int,
        most_made: int,
        most_bytes: int,
    ) -> None:
        self._plan = plan
        self._reads = reads
        self._make = make
        self._size = size
        self._most_made = most_made
        self._most_bytes = most_bytes
        # Without round trips to hide, nothing is gained by beginning more than what is being made.
        self._most_begun = most_made if parallel == 1 else most_made + 4 * parallel
        self._most_planned = 2 * most_made if parallel == 1 else _PLANNED
        self._threads = (1, parallel, threads)
        self._ended = False
        self._fault: BaseException | None = None
        self._start()
        after_fork(self, Pipeline._orphan)

    def _start(self) -> None:
        self._planned: deque[_Entry[_Work, _Read, _Result]] = deque()
        self._begun: deque[_Entry[_Work, _Read, _Result]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._planning = False
        self._closed = threading.Event()
        self._planner, self._readers, self._makers = (
            ThreadPoolExecutor(number, "shardpipe", abandon_when, (self._closed,)) for number in self._threads
        )

    def _orphan(self) -> None:
        """In a forked process, which has none of the threads: it can but close."""
        keep(self._begun)  # what is made may lie in page-locked memory, which only the parent can free
        self._start()
        self._ended = True
        self._fault = RuntimeError("this loop was begun in another process: begin another `for`")

    def __iter__(self) -> Iterator[tuple[_Work, _Result]]:
        while (entry := self._take()) is not None:
            assert entry.made is not None
            yield entry.work, entry.made.result()

    def close(self) -> None:
        """Ends all threads, once what they are making at this moment is done; reads over a network are given up."""
        self._closed.set()
        with self._changed:
            self._ended = True
        for executor in (self._planner, self._readers, self._makers):
            executor.shutdown(wait=True, cancel_futures=True)

    def _take(self) -> _Entry[_Work, _Read, _Result] | None:
        """The next piece of work, made; it leaves room for another."""
        with self._changed:
            self._plan_more()
            while not self._begun and self._planning:
                self._changed.wait()
            if not self._begun:
                if self._fault is not None:
                    raise self._fault
                return None
            entry = self._begun[0]
            if entry.made is None and self._fault is not None:
                raise self._fault  # it failed as it was to be made
        assert entry.made is not None
        entry.made.exception()  # waits for it, while it still takes room
        with self._changed:
            self._begun.popleft()
            self._bytes -= entry.size
            self._begin()
        return entry

    def _plan_more(self) -> None:
        """Has the planner go on for a while, so that it is not woken for every piece of work, nor waits for anyone."""
        if not self._planning and not self._ended and len(self._planned) < self._most_planned // 2:
            self._planning = True
            self._planner.submit(self._plan_until_full)

    def _plan_until_full(self) -> None:
        try:
            for work in self._plan:
                entry: _Entry[_Work, _Read, _Result] = _Entry(work, self._size(work))
                with self._changed:
                    self._planned.append(entry)
                    self._begin()
                    if self._ended or len(self._planned) >= self._most_planned:
                        return
            self._ended = True
        except BaseException as error:
            self._fault, self._ended = error, True
        finally:
            with self._changed:
                self._planning = False
                self._changed.notify_all()

    def _begin(self) -> None:
        """Moves on what there is room for: reads begin, and the first few are made."""
        begun = False
        while self._planned and not self._closed.is_set() and self._has_room(self._planned[0].size):
            entry = self._planned.popleft()
            entry.reads = [self._readers.submit(read) for read in self._reads(entry.work)]
            self._begun.append(entry)
            self._bytes += entry.size
            begun = True
        for entry in islice(self._begun, self._most_made):
            if entry.made is None:
                entry.made = self._makers.submit(self._made, entry)
        if begun:
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._begun or (len(self._begun) < self._most_begun and self._bytes + size <= self._most_bytes)

    def _made(self, entry: _Entry[_Work, _Read, _Result]) -> _Result:
        if self._closed.is_set():
            raise RuntimeError("nobody waits for it any more")  # at the end of a script, where nothing is cancelled
        results = [read.result() for read in entry.reads]
        entry.reads.clear()  # what was read is not to live on in the futures
        return self._make(entry.work, results)

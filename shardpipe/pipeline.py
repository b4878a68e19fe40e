"""Work done ahead by threads and delivered in order, within bounds of number and of bytes.

Three stages, each ahead of the next: planning, in one thread; reads that take a round trip, many at once, begun as soon
as a piece of work is planned; making, in as many threads as there are cores. No thread waits for the consumer: planning
ends where there is no room and is begun again where there is, so nothing is left behind when the consumer has gone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from shardpipe.store import abandon_when

__all__ = ["Pipeline"]

_Work = TypeVar("_Work")
_Read = TypeVar("_Read")
_Result = TypeVar("_Result")

_NAME = "shardpipe"


class _Entry(Generic[_Work, _Read, _Result]):
    """One piece of work on its way."""

    def __init__(self, work: _Work, reads: list[Future[_Read]], size: int) -> None:
        self.work = work
        self.reads = reads
        self.size = size
        self.made: Future[_Result] | None = None


class Pipeline(Generic[_Work, _Read, _Result]):
    """Iterating gives (work, result) in the order of `plan`, which may be endless. Close it when done.

    plan: iterated ahead, in a thread of its own.
    reads: what a piece of work needs read; run by up to `parallel` threads, at once for all that is planned.
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
        # Without round trips to hide, nothing is gained by planning further than what is being made.
        self._most_planned = most_made if parallel == 1 else most_made + 4 * parallel
        self._entries: deque[_Entry[_Work, _Read, _Result]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._planning = False
        self._ended = False
        self._fault: BaseException | None = None
        self._waiting: _Work | None = None
        self._closed = threading.Event()
        self._planner, self._readers, self._makers = (
            ThreadPoolExecutor(number, _NAME, abandon_when, (self._closed,)) for number in (1, parallel, threads)
        )

    def __iter__(self) -> Iterator[tuple[_Work, _Result]]:
        while (entry := self._take()) is not None:
            assert entry.made is not None
            yield entry.work, entry.made.result()

    def close(self) -> None:
        """Ends all threads, once what they are making at this moment is done; reads over a network are given up."""
        self._closed.set()
        with self._changed:
            self._ended = True
        # The garbage collector may close an abandoned pipeline, and may do so in one of its own threads.
        wait = not threading.current_thread().name.startswith(_NAME)
        for executor in (self._planner, self._readers, self._makers):
            executor.shutdown(wait=wait, cancel_futures=True)

    def _take(self) -> _Entry[_Work, _Read, _Result] | None:
        """The next piece of work, making or made; it leaves room for another."""
        self._plan_more()
        with self._changed:
            while not self._entries and self._planning:
                self._changed.wait()
            if not self._entries:
                if self._fault is not None:
                    raise self._fault
                return None
            entry = self._entries[0]
        assert entry.made is not None
        entry.made.exception()  # waits for it, while it still takes room
        with self._changed:
            self._entries.popleft()
            self._bytes -= entry.size
            self._make_more()
        self._plan_more()
        return entry

    def _plan_more(self) -> None:
        """Has the planner go on until there is no room; it ends then, and no thread ever waits for a consumer."""
        with self._changed:
            if self._planning or self._ended or not self._has_room(self._waiting):
                return
            self._planning = True
            self._planner.submit(self._plan_until_full)

    def _plan_until_full(self) -> None:
        try:
            while (work := self._next()) is not None:
                with self._changed:
                    if self._ended or not self._has_room(work):
                        self._waiting = work
                        return
                    reads = [self._readers.submit(read) for read in self._reads(work)]
                    self._entries.append(_Entry(work, reads, self._size(work)))
                    self._bytes += self._size(work)
                    self._make_more()
                    self._changed.notify_all()
            self._ended = True
        except BaseException as error:
            self._fault, self._ended = error, True
        finally:
            with self._changed:
                self._planning = False
                self._changed.notify_all()

    def _next(self) -> _Work | None:
        work, self._waiting = self._waiting, None
        return next(self._plan, None) if work is None else work

    def _has_room(self, work: _Work | None) -> bool:
        """Whether a piece of work, if it is known already, may go on its way."""
        size = 0 if work is None else self._size(work)
        room = len(self._entries) < self._most_planned and self._bytes + size <= self._most_bytes
        return room or not self._entries

    def _make_more(self) -> None:
        for entry in list(self._entries)[: self._most_made]:
            if entry.made is None:
                entry.made = self._makers.submit(self._made, entry)

    def _made(self, entry: _Entry[_Work, _Read, _Result]) -> _Result:
        results = [read.result() for read in entry.reads]
        entry.reads.clear()  # what was read is not to live on in the futures
        return self._make(entry.work, results)

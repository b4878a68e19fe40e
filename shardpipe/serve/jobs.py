"""Requests become jobs: each batch is made once however many ask for it, within bounds of number and of bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from shardpipe.loading import digest_of
from shardpipe.serve.datasets import OpenDataset
from shardpipe.serve.making import check_request, made
from shardpipe.serve.metrics import Metrics
from shardpipe.serve.room import Answer, Full, Room, Shelf

__all__ = ["Jobs"]

_QUEUED = 64
"""Requests that may wait for a thread, beside eight for each."""


_SAMPLE_BYTES = 1 << 10
"""That a request takes for each of its samples, and their rows with it."""


@dataclass(eq=False)
class _Job:
    """A batch in the making, and how many wait for it."""

    dataset: str
    future: Future[Answer] | None
    """Until it is done: it holds this in turn, and a circle would keep the answer until Python looks for such."""
    done: asyncio.Future[Answer]
    taken: list[int] = field(default_factory=list)
    waiters: int = 0


class Jobs:
    """Answers requests. Used by the event loop's thread, all but the making."""

    def __init__(
        self, datasets: Mapping[str, OpenDataset], metrics: Metrics, *, threads: int, memory: int, keep: int
    ) -> None:
        self._datasets = datasets
        self._metrics = metrics
        self._room = Room(memory)
        self._shelf = Shelf(keep)
        self._most = 8 * threads + _QUEUED
        self._threads = ThreadPoolExecutor(threads, "shardpipe")
        self._jobs: dict[str, _Job] = {}
        metrics.watch(queue=lambda: len(self._jobs), used=lambda: self._room.used, kept=lambda: self._shelf.used)

    @asynccontextmanager
    async def answer(self, body: bytes) -> AsyncIterator[Answer]:
        """The answer, which takes room until the block is left. Raises Refused, Full and TooLarge."""
        digest = digest_of(body)
        answer = self._shelf.get(digest)
        if answer is None:
            answer = await self._made(digest, body)
        else:
            self._hold(answer)
            self._metrics.hits.labels(answer.dataset).inc()
        try:
            yield answer
        finally:
            self._let_go(answer)

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Has so many bytes count as used until the block is left. Raises Full and TooLarge."""
        self._room.take(size)
        try:
            yield
        finally:
            self._room.give(size)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _made(self, digest: str, body: bytes) -> Answer:
        """The answer, held once more; made with others who want it, if there are any."""
        if (job := self._jobs.get(digest)) is not None:
            self._metrics.hits.labels(job.dataset).inc()
        else:
            job = self._begin(digest, body)
        job.waiters += 1
        try:
            answer = await asyncio.shield(job.done)
            self._hold(answer)
            return answer
        finally:
            job.waiters -= 1
            if not job.waiters:
                if job.done.done():
                    self._over(job)
                elif job.future is not None and job.future.cancel():  # nobody waits, and nobody has begun
                    job.done.cancel()
                    self._jobs.pop(digest, None)

    def _begin(self, digest: str, body: bytes) -> _Job:
        if len(self._jobs) >= self._most:
            raise Full
        request = check_request(body, self._datasets)
        loop = asyncio.get_running_loop()
        taken: list[int] = []

        def take(size: int) -> None:
            self._room.take(size)
            taken.append(size)

        take(_SAMPLE_BYTES * len(request.samples))

        def make() -> Answer:
            began = time.perf_counter()
            answer = made(request, digest, self._datasets, take)
            self._metrics.making.labels(answer.dataset).observe(time.perf_counter() - began)
            return answer

        future = self._threads.submit(make)
        job = self._jobs[digest] = _Job(request.datasets[0].name, future, loop.create_future(), taken)

        def finish(one: Future[Answer]) -> None:
            with suppress(RuntimeError):  # the loop, and with it the server, has ended meanwhile
                loop.call_soon_threadsafe(self._finish, digest, job, one)

        future.add_done_callback(finish)
        return job

    def _finish(self, digest: str, job: _Job, future: Future[Answer]) -> None:
        job.future = None
        if self._jobs.get(digest) is job:
            del self._jobs[digest]
        if future.cancelled():
            self._room.give(sum(job.taken))
            return
        if (error := future.exception()) is not None:
            self._room.give(sum(job.taken))
            job.taken.clear()
            if not job.done.done():
                job.done.set_exception(error)
                job.done.exception()  # it may be that nobody waits for it any more
            return
        answer = future.result()
        self._room.give(sum(job.taken) - answer.size)
        job.taken[:] = [answer.size]
        answer.users += 1
        self._shelf.put(digest, answer)
        if not job.done.done():
            job.done.set_result(answer)
        if not job.waiters:
            self._over(job)

    def _over(self, job: _Job) -> None:
        """The job lets go of what it has made; those who wait for it hold it by now."""
        if job.taken and not job.done.cancelled() and job.done.exception() is None:
            job.taken.clear()
            self._let_go(job.done.result())

    def _hold(self, answer: Answer) -> None:
        if not answer.users:
            self._room.take(answer.size)
        answer.users += 1

    def _let_go(self, answer: Answer) -> None:
        answer.users -= 1
        if not answer.users:
            self._room.give(answer.size)

"""The same work in one process or many: results come in the order of the items, whoever does them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from shardpipe.errors import ShardpipeError

__all__ = ["in_order"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    function: Callable[[list[_Item]], list[_Result]], chunks: Iterable[list[_Item]], *, jobs: int
) -> Iterator[_Result]:
    """The result of every item, in order, worked out chunk by chunk by `jobs` processes (1: by this one).

    `function` takes a chunk and returns the results of all of its items or of the first few, at least one: the rest
    comes back to it. So a function that stops once its results are large bounds the memory of the whole, for at most
    2 * jobs calls' results wait at a time. Raises ShardpipeError if a process dies.
    """
    rest = iter(chunks)
    if jobs == 1:
        for chunk in rest:
            while chunk:
                results = function(chunk)
                chunk = chunk[len(results) :]
                yield from results
        return
    with _pool(jobs) as pool:
        pending: deque[tuple[list[_Item], Future[list[_Result]]]] = deque()
        while True:
            while len(pending) < 2 * jobs and (chunk := next(rest, [])):
                pending.append((chunk, pool.submit(function, chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            results = future.result()
            if left := chunk[len(results) :]:
                pending.appendleft((left, pool.submit(function, left)))
            yield from results


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    # forkserver: safe beside the threads of this process, and it imports our modules once for all workers.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ShardpipeError(
            "a worker process died", fix="Most often the memory ran out: run again with fewer jobs."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle; and a parent that is killed must not leave its workers behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()

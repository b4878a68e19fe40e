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
from copy import copy
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from shardpipe.errors import ShardpipeError
from shardpipe.runtime.guard import PROCESS, leave_if_imported, unguarded
from shardpipe.runtime.stopping import abandon_when

__all__ = ["cores", "exit_with_parent", "in_order"]

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
    leave_if_imported()
    with _pool(jobs) as pool:
        pending: deque[tuple[list[_Item], Future[list[_Result]]]] = deque()
        while True:
            while len(pending) < 2 * jobs and (chunk := next(rest, [])):
                pending.append((chunk, _submitted(pool, function, chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            results = future.result()
            if left := chunk[len(results) :]:
                pending.appendleft((left, _submitted(pool, function, left)))
            yield from results


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    # forkserver: safe beside the threads of this process, and it imports our modules once for all workers.
    context: Any = copy(multiprocessing.get_context("forkserver"))
    context.Process = partial(context.Process, name=PROCESS)
    end, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=(end,))
    try:
        yield pool
    except BrokenProcessPool as error:
        processes: dict[int, BaseProcess] = getattr(pool, "_processes", None) or {}
        raise unguarded(processes.values()) or ShardpipeError(
            "a worker process died",
            fix="Memory may have run out (run again with fewer jobs), or the script that asks for more than one job "
            'lacks `if __name__ == "__main__":`.',
        ) from error
    finally:
        our_end.close()  # which tells the workers that nobody waits for what they read
        pool.shutdown(wait=True, cancel_futures=True)
        end.close()


def _submitted(
    pool: ProcessPoolExecutor, function: Callable[[list[_Item]], list[_Result]], chunk: list[_Item]
) -> Future[list[_Result]]:
    try:
        return pool.submit(function, chunk)
    except (ConnectionError, EOFError) as error:
        # From Python 3.14 on, a script that starts processes as it is imported ends the fork server itself.
        raise BrokenProcessPool("the fork server died") from error


def _start_worker(end: Connection) -> None:
    # Ctrl-C is the parent's to handle; and a parent that is killed must not leave its workers behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopped = threading.Event()
    abandon_when(stopped)

    def watch() -> None:
        end.poll(None)
        stopped.set()
        exit_with_parent()

    threading.Thread(target=watch, daemon=True).start()


def exit_with_parent() -> None:
    """Ends this process once the one that started it has ended, however that was, and whatever this one is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

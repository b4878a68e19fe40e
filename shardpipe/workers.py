"""Processes that make batches, for transforms that hold the GIL."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from shardpipe.batch import Maker, Skipped
from shardpipe.errors import ShardpipeError
from shardpipe.read import Payload
from shardpipe.work import Work

__all__ = ["Workers"]


class Workers:
    """Calls `make` in processes; safe for threads, each of which waits for its own batch."""

    def __init__(self, number: int, make: Maker) -> None:
        # spawn: a fork would copy the locks of threads that do not live on in it.
        self._pool = ProcessPoolExecutor(number, get_context("spawn"), _install, (make,))

    def __call__(self, work: Work, fetched: Mapping[int, Payload]) -> tuple[Any, list[Skipped]]:
        sent = {i: bytes(payload) if isinstance(payload, memoryview) else payload for i, payload in fetched.items()}
        try:
            return self._pool.submit(_make_installed, work, sent).result()
        except BrokenExecutor as error:
            raise ShardpipeError(
                "a worker process died",
                fix="Memory may have run out (take fewer workers), the transform may have crashed, or the script that "
                'starts the loader lacks `if __name__ == "__main__":`.',
            ) from error

    def close(self) -> None:
        """Ends the processes once they have made what they were making."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_installed: Maker | None = None


def _install(make: Maker) -> None:
    """Run once in every process, so that a task carries no more than its batch."""
    global _installed
    _installed = make


def _make_installed(work: Work, fetched: Mapping[int, Payload]) -> tuple[Any, list[Skipped]]:
    assert _installed is not None
    return _installed(work, fetched)

"""Requests to fsspec's file systems: each within its time, and given up where nobody waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import fsspec

from shardpipe.runtime import GIVEN_UP, abandoned
from shardpipe.store.urls import is_s3

__all__ = ["PARALLEL", "call", "file_system"]

PARALLEL = 64
"""Requests at once. With round trips of 30 ms and samples of 100 KB, 28 only just fill 100 MB/s, were all in step."""
_LOOK = 0.2  # seconds between looks at whether a request is abandoned
_CANCELLING = 2.0  # seconds that a request may take to end once it is cancelled


def file_system(
    url: str, options: Mapping[str, Any], *, connect_seconds: float, read_seconds: float
) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL, and how it names what lies there. `options` are the user's, and come before ours: a
    request is sent once, and bounded in time.
    """
    given = dict(options)
    if is_s3(url):
        ours = {
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": connect_seconds,
            "read_timeout": read_seconds,
            "max_pool_connections": PARALLEL,
        }
        given["config_kwargs"] = ours | given.get("config_kwargs", {})
    fs, path = fsspec.core.url_to_fs(url, **given)
    return fs, str(path)


def call(fs: fsspec.AbstractFileSystem, method: str, limit: float, *arguments: Any, **options: Any) -> Any:
    """What a method of a file system returns. It is cancelled after `limit` seconds, or if this thread is abandoned,
    where the file system is asynchronous.
    """
    if not fs.async_impl:
        return getattr(fs, method)(*arguments, **options)
    return _finished(fs.loop, getattr(fs, f"_{method}")(*arguments, **options), limit)


def _finished(loop: asyncio.AbstractEventLoop, request: Coroutine[Any, Any, Any], limit: float) -> Any:
    deadline = time.monotonic() + limit + _CANCELLING
    running = asyncio.run_coroutine_threadsafe(_within(limit, request), loop)
    try:
        while True:
            try:
                return running.result(_LOOK)
            except TimeoutError as error:
                if running.done():
                    raise error if str(error) else TimeoutError(f"not complete within {limit:.1f} seconds") from error
            if abandoned():
                raise TimeoutError(GIVEN_UP)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete within {limit:.1f} seconds, nor to be cancelled")
    finally:
        running.cancel()  # it does nothing to what is done


async def _within(limit: float, request: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await asyncio.wait_for(request, limit)
    except Exception:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return None  # it failed as it was given up: nobody takes the error, which asyncio would log
        raise

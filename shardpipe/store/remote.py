"""Any place that fsspec can open."""

from __future__ import annotations

import asyncio
import posixpath
import time
from collections.abc import Coroutine
from typing import Any

import fsspec

from shardpipe.errors import StoreError
from shardpipe.store.base import Stat, as_store_error, whole
from shardpipe.store.faults import refuses_range
from shardpipe.store.redact import secrets_in, shown_url, split_url
from shardpipe.store.retry import Retry, RetryingStore
from shardpipe.store.stopping import abandoned

__all__ = ["FsspecStore", "stat_of"]

_PARALLEL = 64  # with round trips of 30 ms and samples of 100 KB, 28 only just fill 100 MB/s, were all in step
_S3 = ("s3", "s3a")
_LOOK = 0.2  # seconds between looks at whether a request is abandoned
_CANCELLING = 2.0  # seconds that a request may take to end once it is cancelled


class FsspecStore(RetryingStore):
    """Any URL that fsspec can open: `s3://bucket/set`, `https://host/set`, `memory://set` and so on.

    `options` go to the file system, credentials among them where they do not come from the environment; nothing that
    the store shows holds a user, a password, a query string or a secret option. `retry` bounds every call, and the
    retries of s3fs and botocore are off unless `options` say otherwise. An attempt that exceeds its time is cancelled,
    so it holds no connection; file systems that are not asynchronous (sftp, smb, hdfs) cannot be cancelled, and there
    the limits in `options` are what counts.
    """

    def __init__(self, url: str, *, retry: Retry | None = None, **options: Any) -> None:
        retry = retry or Retry()
        super().__init__(_OneAttempt(url, retry, options), retry)


class _OneAttempt:
    """Every call is one attempt at one request, but for a look at what lies there after a short read."""

    parallel = _PARALLEL

    def __init__(self, url: str, retry: Retry, options: dict[str, Any]) -> None:
        self._given = (url, retry, options)
        self._retry = retry
        # A query string (an Azure SAS, say) follows every file's path.
        self._base, self._query = split_url(url)
        self._base = self._base.rstrip("/")
        self.url = shown_url(self._base)
        self._secrets = secrets_in(url, options)
        self._stats: dict[str, Stat] = {}
        with as_store_error(self.url, self._secrets):
            self._fs, _ = fsspec.core.url_to_fs(self._base, **_with_defaults(self._base, retry, options))
        if _is_s3(self._base):
            self._fs.retries = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given

    def stat(self, name: str) -> Stat:
        with as_store_error(self._shown(name), self._secrets):
            path = self._path(name)
            self._fs.invalidate_cache(path)  # of listings: what lies there now counts
            found = self._call("info", self._retry.limit(), path)
            if found["type"] == "directory":
                raise IsADirectoryError("it is a folder")
            if found["size"] is None:
                raise ValueError("its server does not say how large it is")
            now = stat_of(found)
            self._stats.setdefault(name, now)
            return now

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None:
            length = max(0, self.stat(name).size - offset)
        if not length:
            return b""
        failure: Exception | None = None
        data = b""
        try:
            data = self._call(
                "cat_file", self._retry.limit(length), self._path(name), start=offset, end=offset + length
            )
        except Exception as error:
            failure = error
        if len(data) == length:
            return data
        if failure is None or refuses_range(failure):
            self._check_unchanged(name, offset, length)
        with as_store_error(self._shown(name), self._secrets):
            if failure is not None:
                raise failure
        return whole(data, self._shown(name), offset, length, transient=len(data) < length)

    def _call(self, method: str, limit: float, path: str, **arguments: Any) -> Any:
        if not self._fs.async_impl:
            return getattr(self._fs, method)(path, **arguments)
        return _finished(self._fs.loop, getattr(self._fs, f"_{method}")(path, **arguments), limit)

    def _check_unchanged(self, name: str, offset: int, length: int) -> None:
        """Raises StoreError if a short read has its reason in the file: it is another one, or shorter than asked."""
        before = self._stats.get(name)
        now = self.stat(name)
        fix = "The dataset was changed or its index is another's: run `shardpipe verify` on it, then start again."
        if before is not None and now != before:
            what = f"has changed while it was read: it had {_described(before)}, it has {_described(now)}"
            raise StoreError(what, url=self._shown(name), fix=fix)
        if offset + length > now.size:
            what = f"asked for {length} bytes at {offset}, it has only {now.size}"
            raise StoreError(what, url=self._shown(name), fix=f"It is shorter than its index says. {fix}")

    def _path(self, name: str) -> str:
        """As the file system wants it."""
        if "://" in name:
            return str(self._fs._strip_protocol(name))
        return str(self._fs._strip_protocol(_joined(self._base, name) + self._query))

    def _shown(self, name: str) -> str:
        return shown_url(name) if "://" in name else _joined(self.url, name)


def _finished(loop: asyncio.AbstractEventLoop, request: Coroutine[Any, Any, Any], limit: float) -> Any:
    """What a request returns that runs on fsspec's thread. It is cancelled after `limit` seconds, or if abandoned."""
    deadline = time.monotonic() + limit + _CANCELLING
    running = asyncio.run_coroutine_threadsafe(asyncio.wait_for(request, limit), loop)
    try:
        while True:
            try:
                return running.result(_LOOK)
            except TimeoutError as error:
                if running.done():
                    raise error if str(error) else TimeoutError(f"not complete within {limit:.1f} seconds") from error
            if abandoned():
                raise TimeoutError("given up, for its reader has stopped")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete within {limit:.1f} seconds, nor to be cancelled")
    finally:
        running.cancel()  # it does nothing to what is done


def stat_of(info: dict[str, Any]) -> Stat:
    """From what a file system tells of a file."""
    fields = ("ETag", "etag", "md5Hash", "mtime", "created")
    return Stat(int(info["size"]), str(next((info[field] for field in fields if info.get(field)), "")))


def _joined(base: str, name: str) -> str:
    if ".." not in name:
        return f"{base}/{name}"
    scheme, _, path = base.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{path}/{name}')}"


def _is_s3(url: str) -> bool:
    return url.partition("://")[0] in _S3


def _with_defaults(url: str, retry: Retry, options: dict[str, Any]) -> dict[str, Any]:
    """The user's options, and for what they leave open ours."""
    if not _is_s3(url):
        return options
    config = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": retry.attempt_seconds,
        "read_timeout": retry.attempt_seconds,
        "max_pool_connections": _PARALLEL,
    }
    return options | {"config_kwargs": config | options.get("config_kwargs", {})}


def _described(stat: Stat) -> str:
    return f"{stat.size} bytes (version {stat.version or 'unknown'})"

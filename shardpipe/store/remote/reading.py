"""Any place that fsspec can open."""

from __future__ import annotations

import posixpath
from typing import Any

import fsspec

from shardpipe.errors import StoreError
from shardpipe.runtime import after_fork, keep
from shardpipe.store.base import Stat, as_store_error, whole
from shardpipe.store.faults import refuses_range
from shardpipe.store.redact import secrets_in, shown_url, split_url
from shardpipe.store.remote.calling import PARALLEL, call, file_system
from shardpipe.store.retry import Retry, RetryingStore
from shardpipe.store.urls import check_place, is_s3

__all__ = ["FsspecStore", "stat_of"]


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

    parallel = PARALLEL

    def __init__(self, url: str, retry: Retry, options: dict[str, Any]) -> None:
        self._given = (url, retry, options)
        self._retry = retry
        # A query string (an Azure SAS, say) follows every file's path.
        base, self._query = split_url(url)
        check_place(base)
        scheme, _, path = base.partition("://")
        self._base = f"{scheme}://{path.rstrip('/')}"
        self.url = shown_url(self._base)
        self._secrets = secrets_in(url, options)
        self._stats: dict[str, Stat] = {}
        self._connected: fsspec.AbstractFileSystem | None = self._connect()
        after_fork(self, _OneAttempt._disconnect)

    def _connect(self) -> fsspec.AbstractFileSystem:
        _, retry, options = self._given
        with as_store_error(self.url, self._secrets):
            fs, _ = file_system(
                self._base, options, connect_seconds=retry.attempt_seconds, read_seconds=retry.attempt_seconds
            )
        if is_s3(self._base):
            fs.retries = 1
        return fs

    def _disconnect(self) -> None:
        # Its end would take the parent's connections from the event queue that both processes share.
        keep(self._connected)
        self._connected = None

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        """One of this process's own: connections, and the loop that they are waited for in, outlive no fork."""
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given

    def stat(self, name: str) -> Stat:
        with as_store_error(self._shown(name), self._secrets):
            path = self._path(name)
            self._fs.invalidate_cache(path)  # of listings: what lies there now counts
            found = call(self._fs, "info", self._retry.limit(), path)
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
            data = call(
                self._fs, "cat_file", self._retry.limit(length), self._path(name), start=offset, end=offset + length
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


def stat_of(info: dict[str, Any]) -> Stat:
    """From what a file system tells of a file."""
    fields = ("ETag", "etag", "md5Hash", "mtime", "created")
    return Stat(int(info["size"]), str(next((info[field] for field in fields if info.get(field)), "")))


def _joined(base: str, name: str) -> str:
    if ".." not in name:
        return f"{base}/{name}"
    scheme, _, path = base.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{path}/{name}')}"


def _described(stat: Stat) -> str:
    return f"{stat.size} bytes (version {stat.version or 'unknown'})"

"""The write side of a URL: files go up whole or not at all, and are looked at once they are there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from shardpipe.errors import StoreError
from shardpipe.store.base import Stat
from shardpipe.store.faults import may_pass
from shardpipe.store.redact import safe_cause, scrub
from shardpipe.store.remote import FsspecStore, stat_of
from shardpipe.store.retry import Retry, attempted
from shardpipe.store.urls import checked_url, scheme_of

__all__ = ["Uploads"]

# Of whole files. Every part of a large one is tried by s3fs five times within a few seconds before the file is.
_RETRY = Retry(attempts=6, first_wait=1.0)
_S3 = {
    "config_kwargs": {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": 10,
        "read_timeout": 60,  # putting the parts of a large file together takes S3 its time
    }
}
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_PARTS_MAX = 10_000  # of one file; S3's limit
_FIX = "Run the same command again once the place can be written to: what is uploaded is kept."
_T = TypeVar("_T")


class Uploads:
    """Writes files to a URL. Every call raises StoreError, after a few attempts where another one may help.

    Raises ConfigError for a URL that holds credentials.
    """

    def __init__(self, url: str) -> None:
        self.store = FsspecStore(checked_url("out", url))
        options = _S3 if scheme_of(url) in ("s3", "s3a") else {}
        self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)

    @property
    def url(self) -> str:
        return self.store.url

    def put(self, path: Path, name: str) -> Stat:
        """Uploads a file and returns what then lies there. To S3 large ones go in parts, four of 16 MiB at a time."""
        size = path.stat().st_size
        options = _part_options(self._fs, size)

        def upload() -> Stat:
            if self._fs.root_marker == "/":  # it has folders, and wants them made; a bucket is not ours to make
                self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), self._path(name), **options)
            self._fs.invalidate_cache(self._path(name))
            found = stat_of(self._fs.info(self._path(name)))
            if found.size != size:
                raise ConnectionError(f"{found.size} of {size} bytes have arrived")
            return found

        return self._attempted(upload, name, "written")

    def remove(self, name: str) -> None:
        """Removes a file that is there."""
        self._attempted(lambda: self._fs.rm_file(self._path(name)), name, "removed")

    def listing(self, folder: str = "") -> dict[str, Stat]:
        """The files right in a folder, with their names from the root; none if there is no such folder."""
        path = self._path(folder).rstrip("/")

        def look() -> list[dict[str, Any]]:
            self._fs.invalidate_cache(path)  # of listings, which fsspec remembers
            try:
                found: list[dict[str, Any]] = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
            return found

        prefix = f"{folder}/" if folder else ""
        return {
            prefix + str(entry["name"]).rpartition("/")[2]: stat_of(entry)
            for entry in self._attempted(look, folder, "listed")
            if entry["type"] == "file" and str(entry["name"]).rstrip("/") != path
        }

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _attempted(self, action: Callable[[], _T], name: str, done: str) -> _T:
        def attempt() -> _T:
            try:
                return action()
            except Exception as error:
                # Not only OSError: file systems raise what their client libraries do.
                reason = scrub(str(error).strip() or type(error).__name__)
                url = f"{self.url}/{name}".rstrip("/")
                raise StoreError(
                    f"cannot be {done} ({reason})", url=url, fix=_FIX, transient=may_pass(error)
                ) from safe_cause(error, ())

        return attempted(attempt, _RETRY)


def _part_options(fs: Any, size: int) -> dict[str, int]:
    """How to upload a file in parts, where the file system lets itself be told: its own choice may fill the memory."""
    known = inspect.signature(getattr(fs, "_put_file", fs.put_file)).parameters
    wanted = {"chunksize": max(_PART_BYTES, -(-size // _PARTS_MAX)), "max_concurrency": _PARTS_AT_ONCE}
    return {name: value for name, value in wanted.items() if name in known}

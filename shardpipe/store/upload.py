"""The write side of a URL: files go up whole or not at all, and are looked at once they are there."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from shardpipe.errors import StoreError
from shardpipe.store.base import Stat
from shardpipe.store.remote import FsspecStore
from shardpipe.store.urls import checked_url

__all__ = ["Uploads"]

_ATTEMPTS = 6
_FIRST_WAIT = 0.25  # seconds
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_PARTS_MAX = 10_000  # of one upload; S3's limit
_FIX = "Run the same command again once the place can be written to: what is uploaded is kept."
_T = TypeVar("_T")


class Uploads:
    """Writes files to a URL. Every call raises StoreError, after a few attempts where another one may help."""

    def __init__(self, url: str) -> None:
        self.store = FsspecStore(checked_url("out", url))
        self._fs, self._root = fsspec.core.url_to_fs(self.url)

    @property
    def url(self) -> str:
        return self.store.url

    def put(self, path: Path, name: str) -> Stat:
        """Uploads a file and returns what then lies there. To S3 large ones go in parts, at most 64 MiB in memory."""
        size = path.stat().st_size
        options = _part_options(self._fs, size)

        def upload() -> Stat:
            if self._fs.root_marker == "/":  # it has folders, and wants them made; a bucket is not ours to make
                self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), self._path(name), **options)
            found = self._stat(self._fs.info(self._path(name)))
            if found.size != size:
                raise OSError(f"{found.size} of {size} bytes have arrived")
            return found

        return _attempted(upload, f"{self.url}/{name}", "written")

    def remove(self, name: str) -> None:
        """Removes a file that is there."""
        _attempted(lambda: self._fs.rm_file(self._path(name)), f"{self.url}/{name}", "removed")

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

        entries = _attempted(look, f"{self.url}/{folder}".rstrip("/"), "listed")
        prefix = f"{folder}/" if folder else ""
        return {
            prefix + str(entry["name"]).rpartition("/")[2]: self._stat(entry)
            for entry in entries
            if entry["type"] == "file" and str(entry["name"]).rstrip("/") != path
        }

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @staticmethod
    def _stat(entry: dict[str, Any]) -> Stat:
        version = next((entry[field] for field in ("ETag", "etag", "md5Hash", "mtime") if field in entry), "")
        return Stat(int(entry["size"]), str(version))


def _part_options(fs: Any, size: int) -> dict[str, int]:
    """How to upload a file in parts, where the file system lets itself be told: its own choice may fill the memory."""
    known = inspect.signature(getattr(fs, "_put_file", fs.put_file)).parameters
    wanted = {"chunksize": max(_PART_BYTES, -(-size // _PARTS_MAX)), "max_concurrency": _PARTS_AT_ONCE}
    return {name: value for name, value in wanted.items() if name in known}


def _attempted(action: Callable[[], _T], url: str, done: str) -> _T:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except (FileNotFoundError, PermissionError, NotImplementedError, ImportError, ValueError) as error:
            raise StoreError(f"cannot be {done} ({error})", url=url, attempts=attempt, fix=_FIX) from error
        except Exception as error:
            # Not only OSError: file systems raise what their client libraries do.
            if attempt == _ATTEMPTS:
                what = f"cannot be {done} after {attempt} attempts ({error})"
                raise StoreError(what, url=url, attempts=attempt, fix=_FIX) from error
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1) * (0.5 + random.random() / 2))
    raise AssertionError("unreachable")

"""The write side of a URL: files go up whole or not at all, and are looked at once they are there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from shardpipe.store.base import Stat, as_store_error
from shardpipe.store.places import checked_url
from shardpipe.store.remote.calling import call, file_system
from shardpipe.store.remote.reading import FsspecStore, stat_of
from shardpipe.store.retry import Retry, attempted

__all__ = ["Uploads"]

# Of whole files. Every part of a large one is tried by s3fs five times within a few seconds before the file is.
_RETRY = Retry(attempts=6, first_wait=1.0, attempt_seconds=120.0)
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 60.0  # putting the parts of a large file together takes S3 its time
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
_PARTS_MAX = 10_000  # of one file; S3's limit
_FIX = "Run the same command again once the place can be written to: what is uploaded is kept."
_T = TypeVar("_T")


class Uploads:
    """Writes files to a URL. Every call raises StoreError, after a few attempts where another one may help; `fix` says
    what to do then.

    Raises ConfigError for a URL that holds credentials.
    """

    def __init__(self, url: str, *, fix: str = _FIX) -> None:
        self._fix = fix
        self.store = FsspecStore(checked_url("out", url))
        self._fs, self._root = file_system(self.url, {}, connect_seconds=_CONNECT_SECONDS, read_seconds=_READ_SECONDS)

    @property
    def url(self) -> str:
        return self.store.url

    def put(self, path: Path, name: str) -> Stat:
        """Uploads a file and returns what then lies there. To S3 large ones go in parts, four of 16 MiB at a time."""
        size = path.stat().st_size
        options = _part_options(self._fs, "put_file", size)
        return self._upload(
            lambda there: call(self._fs, "put_file", _RETRY.limit(size), str(path), there, **options), name, size
        )

    def write(self, data: bytes, name: str) -> Stat:
        """Uploads a file of these bytes, as `put` does, and returns what then lies there."""
        size = len(data)
        options = _part_options(self._fs, "pipe_file", size)
        return self._upload(
            lambda there: call(self._fs, "pipe_file", _RETRY.limit(size), there, data, **options), name, size
        )

    def copy(self, name: str, to: str) -> None:
        """Copies a file to another name, there; what lies under it is replaced."""

        def copied() -> None:
            there = self._path(to)
            self._make_folder(there)
            self._call("cp_file", self._path(name), there)

        self._attempted(copied, to, "written")

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is no error, for the answer to the first attempt may be lost."""

        def removed() -> None:
            with suppress(FileNotFoundError):
                self._call("rm_file", self._path(name))

        self._attempted(removed, name, "removed")

    def listing(self, folder: str = "") -> dict[str, Stat]:
        """The files right in a folder, with their names from the root; none if there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        return {prefix + name: stat_of(entry) for name, entry in self._entries(folder) if entry["type"] == "file"}

    def folders(self) -> list[str]:
        """Names of the folders right in the root."""
        return [name for name, entry in self._entries("") if entry["type"] == "directory"]

    def _entries(self, folder: str) -> list[tuple[str, dict[str, Any]]]:
        path = self._path(folder).rstrip("/")

        def look() -> list[dict[str, Any]]:
            self._fs.invalidate_cache(path)  # of listings, which fsspec remembers
            try:
                found: list[dict[str, Any]] = self._call("ls", path, detail=True)
            except FileNotFoundError:
                return []
            return found

        entries = [(str(entry["name"]).rstrip("/"), entry) for entry in self._attempted(look, folder, "listed")]
        return [(name.rpartition("/")[2], entry) for name, entry in entries if name != path]

    def _upload(self, send: Callable[[str], Any], name: str, size: int) -> Stat:
        def upload() -> Stat:
            there = self._path(name)
            self._make_folder(there)
            send(there)
            self._fs.invalidate_cache(there)
            found = stat_of(self._call("info", there))
            if found.size != size:
                raise ConnectionError(f"{found.size} of {size} bytes have arrived")
            return found

        return self._attempted(upload, name, "written")

    def _make_folder(self, path: str) -> None:
        if self._fs.root_marker == "/":  # it has folders, and wants them made; a bucket is not ours to make
            self._call("makedirs", path.rpartition("/")[0], exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return call(self._fs, method, _RETRY.limit(), *arguments, **options)

    def _attempted(self, action: Callable[[], _T], name: str, done: str) -> _T:
        def attempt() -> _T:
            with as_store_error(f"{self.url}/{name}".rstrip("/"), done=done, fix=self._fix):
                return action()

        return attempted(attempt, _RETRY)


def _part_options(fs: Any, method: str, size: int) -> dict[str, int]:
    """How to upload a file in parts, where the file system lets itself be told: its own choice may fill the memory."""
    known = inspect.signature(getattr(fs, f"_{method}", getattr(fs, method))).parameters
    wanted = {"chunksize": max(_PART_BYTES, -(-size // _PARTS_MAX)), "max_concurrency": _PARTS_AT_ONCE}
    return {name: value for name, value in wanted.items() if name in known}

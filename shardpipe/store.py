"""Byte ranges of a dataset, wherever it lies. The only module that knows fsspec.

A store is rooted at a dataset's folder; names are relative to it, as the manifest writes them, or absolute.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import fsspec

from shardpipe.errors import StoreError

__all__ = ["CountingStore", "FsspecStore", "LocalStore", "Store", "open_store"]


@runtime_checkable
class Store(Protocol):
    """What the read side needs of a place that holds a dataset. Safe to call from many threads."""

    @property
    def url(self) -> str:
        """The root, for messages."""

    def size(self, name: str) -> int:
        """Bytes in `name`. Raises StoreError."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes of `name` from `offset`, the rest of it if None. Raises StoreError, on a short read too."""


def open_store(data: str | os.PathLike[str] | Store) -> Store:
    """The store for a directory, a `file://` or other fsspec URL, or a store itself."""
    if isinstance(data, Store):
        return data
    url = os.fspath(data)
    if "://" not in url:
        return LocalStore(url)
    if url.startswith("file://"):
        return LocalStore(url.removeprefix("file://"))
    return FsspecStore(url)


class LocalStore:
    """A folder of a file system."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)

    @property
    def url(self) -> str:
        return str(self._root)

    def size(self, name: str) -> int:
        path = self._root / name
        with _as_store_error(str(path)):
            return path.stat().st_size

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = str(self._root / name)
        with _as_store_error(path), open(path, "rb", buffering=0) as file:
            if offset:
                file.seek(offset)
            if length is None:
                return file.readall()
            data = file.read(length)
            while len(data) < length and (more := file.read(length - len(data))):
                data += more
        return _whole(data, path, offset, length)


class FsspecStore:
    """Any URL that fsspec can open: `s3://bucket/set`, `memory://set` and so on."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url.rstrip("/")
        self._options = options
        with _as_store_error(self._url):
            self._fs, self._root = fsspec.core.url_to_fs(self._url, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_fsspec, (self._url, self._options)

    @property
    def url(self) -> str:
        return self._url

    def size(self, name: str) -> int:
        path = self._path(name)
        with _as_store_error(self._shown(name)):
            return int(self._fs.size(path))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        end = None if length is None else offset + length
        with _as_store_error(self._shown(name)):
            data: bytes = self._fs.cat_file(path, start=offset, end=end)
        return data if length is None else _whole(data, self._shown(name), offset, length)

    def _path(self, name: str) -> str:
        return str(self._fs._strip_protocol(self._shown(name)))

    def _shown(self, name: str) -> str:
        return name if "://" in name else f"{self._url}/{name}"


def _open_fsspec(url: str, options: dict[str, Any]) -> FsspecStore:
    return FsspecStore(url, **options)


class CountingStore:
    """A store that notes every read of another one, so that a test can say which bytes were touched."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.reads: list[tuple[str, int, int]] = []
        """(name, offset, bytes) of every read so far."""

    @property
    def url(self) -> str:
        return self._inner.url

    def size(self, name: str) -> int:
        return self._inner.size(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._inner.read(name, offset, length)
        with self._lock:
            self.reads.append((name, offset, len(data)))
        return data


def _whole(data: bytes, url: str, offset: int, length: int) -> bytes:
    if len(data) != length:
        raise StoreError(
            f"asked for {length} bytes at {offset}, got {len(data)}",
            url=url,
            fix="The file is shorter than its index says: run `shardpipe verify` on the dataset.",
        )
    return data


@contextmanager
def _as_store_error(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(
            "there is no such file", url=url, fix="Check the path, and that the dataset is whole."
        ) from error
    except Exception as error:
        # Not only OSError: file systems raise what their client libraries do, missing credentials for instance.
        raise StoreError(f"cannot be read ({error})", url=url, fix="Check the path and the permissions.") from error

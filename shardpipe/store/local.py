"""A folder of a file system."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shardpipe.store.base import Stat, as_store_error, whole

__all__ = ["LocalStore"]


class LocalStore:
    """A folder of a file system."""

    parallel = 1

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)

    @property
    def url(self) -> str:
        return str(self._root)

    def stat(self, name: str) -> Stat:
        path = str(self._root / name)
        with as_store_error(path):
            found = Path(path).stat()
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError("it is a folder")
            return Stat(found.st_size, str(found.st_mtime_ns))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = str(self._root / name)
        with as_store_error(path), open(path, "rb", buffering=0) as file:
            if offset:
                file.seek(offset)
            if length is None:
                return file.readall()
            data = file.read(length)
            while len(data) < length and (more := file.read(length - len(data))):
                data += more
        return whole(data, path, offset, length)

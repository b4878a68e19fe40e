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
        self._root = str(Path(root))

    @property
    def url(self) -> str:
        return self._root

    def stat(self, name: str) -> Stat:
        path = os.path.join(self._root, name)  # noqa: PTH118 - a Path takes longer than what it names
        with as_store_error(path):
            found = os.stat(path)  # noqa: PTH116
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError("it is a folder")
            return Stat(found.st_size, str(found.st_mtime_ns))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = os.path.join(self._root, name)  # noqa: PTH118
        with as_store_error(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if length is None:
                    length = max(0, os.fstat(descriptor).st_size - offset)
                data = os.pread(descriptor, length, offset)
                while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
                    data += more
            finally:
                os.close(descriptor)
        return whole(data, path, offset, length)

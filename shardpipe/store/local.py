"""A folder of a file system."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardpipe.store.base import Stat, as_store_error, whole

__all__ = ["LocalStore"]

_NO_FILE = "it is a pipe, a socket or a device, and no file"
_OPEN = 64  # files; opening and closing one takes as long as reading a sample of it


class LocalStore:
    """A folder of a file system."""

    parallel = 1

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = str(Path(root))
        self._opened: dict[str, _File] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (self._root,)

    @property
    def url(self) -> str:
        return self._root

    def stat(self, name: str) -> Stat:
        path = os.path.join(self._root, name)  # noqa: PTH118 - a Path takes longer than what it names
        with as_store_error(path):
            found = os.stat(path)  # noqa: PTH116
            _check_regular(found)
            return Stat(found.st_size, str(found.st_mtime_ns))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is not None and (opened := self._opened.get(name)):
            with suppress(OSError):  # which is raised below, where there is more to say
                if len(data := os.pread(opened.descriptor, length, offset)) == length:
                    return data
        path = os.path.join(self._root, name)  # noqa: PTH118
        with as_store_error(path):
            if length is None:
                file = _File(path)  # who wants all of a file wants it as it is now
                length = max(0, os.fstat(file.descriptor).st_size - offset)
            else:
                file = self._opened.get(name) or self._open(name, path)
            data = os.pread(file.descriptor, length, offset)
            while len(data) < length and (more := os.pread(file.descriptor, length - len(data), offset + len(data))):
                data += more
        return whole(data, path, offset, length)

    def close(self) -> None:
        """Closes the files that are kept open for the next read; a later read opens them again."""
        self._opened.clear()

    def _open(self, name: str, path: str) -> _File:
        file = self._opened[name] = _File(path)
        if len(self._opened) > _OPEN:
            with suppress(KeyError, StopIteration, RuntimeError):  # another thread may have been quicker
                del self._opened[next(iter(self._opened))]
        return file


def _check_regular(found: os.stat_result) -> None:
    """Raises OSError for what has no bytes of its own, and may keep its reader waiting for ever."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError("it is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(_NO_FILE)


class _File:
    """A file that is open as long as anyone holds it: whoever reads it does, whatever the others do meanwhile."""

    def __init__(self, path: str) -> None:
        # Opening a pipe would wait for who writes to it.
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket
                raise OSError(_NO_FILE) from None
            raise
        _check_regular(os.fstat(self.descriptor))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

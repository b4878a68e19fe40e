"""A local cache of remote shards: a folder of sparse files, shared by threads, processes and jobs.

    <content>-<size>.shard   what is cached of the shard with this content and size; a byte lies where it does in it
    lock, *.lease            keep the folder within its bound; see `quota`

Nothing here is trusted. A reader checks what it gets against the CRC-32 of the dataset's index and takes the rest for
missing; the next write mends it. So a torn write, a hole, a flipped bit need no journal, no flush and no repair, and
SIGKILL leaves nothing worse than ranges that are not there. A file is named by its content: every dataset that holds
the shard shares it, and a shard that has changed never meets the bytes of its past.

The least recently used shard goes first, the whole of it. A file's time of modification is its last use, brought up to
date once a second. Files are opened for every read: it costs 2 us, and what is evicted gives its space back at once.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from typing import Any, Protocol

from shardpipe.cache.lock import FOREIGN_SAFE
from shardpipe.cache.quota import Quota
from shardpipe.settings import check, integer
from shardpipe.store import only_local

__all__ = ["Shard", "ShardCache"]

_LIMIT_MIN = 1 << 20
_PAUSE = 60.0  # seconds
_TOUCH = 1.0  # seconds

_FILE = re.compile(r"[0-9a-f]{32}-[0-9]+\.shard")

_log = logging.getLogger("shardpipe")


class Shard(Protocol):
    """What the cache has to know of a shard; `ShardInfo` is one."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def content(self) -> str:
        """32 hex digits that are those of no other content, such as its MD5."""


class ShardCache:
    """What is kept of shards in `folder`: at most `limit_bytes` of disk space by all who use it, all that fits if None.

    Safe to use from many threads, after fork, and in other processes, pickled or made anew. Processes may have
    different limits: each adds nothing beyond its own. Raises ConfigError, and StoreError if the folder cannot serve.
    Once made it does not raise: what cannot be read is missing, and where writing fails nothing is cached for a minute,
    with one warning to the logger "shardpipe" for each cause.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int | None = None) -> None:
        if limit_bytes is not None:
            limit_bytes = integer("cache_bytes", limit_bytes)
            check("cache_bytes", limit_bytes, limit_bytes >= _LIMIT_MIN, f"it must be at least {_LIMIT_MIN} (1 MiB)")
        self.folder = os.path.realpath(only_local("cache_dir", folder))
        self.limit_bytes = limit_bytes
        self._quota = Quota(self.folder, limit_bytes, _FILE)
        self._touched: dict[str, float] = {}
        self._paused_until = 0.0
        self._reported: set[tuple[type[OSError], int | None]] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardCache, (self.folder, self.limit_bytes)

    def read(self, shard: Shard, offset: int, length: int) -> bytes | None:
        """`length` bytes of the shard from `offset`; None if they are not there. Check them: they may be anything."""
        path = self._path(shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | FOREIGN_SAFE)
        except OSError:
            return None
        try:
            # What lies in a hole would cost a read and a checksum of zeros to be found missing.
            if self._quota.sees_holes and os.lseek(descriptor, offset, os.SEEK_HOLE) < offset + length:
                return None
            data = os.pread(descriptor, length, offset)
            if len(data) < length:
                return None
            if (now := time.monotonic()) - self._touched.get(path, -_TOUCH) >= _TOUCH:
                self._touched[path] = now
                with suppress(OSError):
                    os.utime(descriptor)
            return data
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def holds(self, shard: Shard, offset: int, length: int) -> bool:
        """A hint for who fetches ahead: whether the range has no hole. It may be wrong yet, or gone when it is read.

        Always False where the file system does not tell holes.
        """
        if not self._quota.sees_holes:
            return False
        try:
            descriptor = os.open(self._path(shard), os.O_RDONLY | FOREIGN_SAFE)
        except OSError:
            return False
        try:
            return os.lseek(descriptor, offset, os.SEEK_HOLE) >= offset + length
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def write(self, shard: Shard, offset: int, data: bytes | memoryview) -> None:
        """Keeps `data` as what the shard holds from `offset` on."""
        assert 0 <= offset <= offset + len(data) <= shard.size
        if time.monotonic() < self._paused_until:
            return
        try:
            with self._quota.reserved(offset, len(data)):
                _put(self._path(shard), shard.size, offset, data)
        except OSError as error:
            self._pause(error)

    def close(self) -> None:
        """Gives back what room this process has reserved, once none of its threads writes. A later write takes more."""
        self._quota.close()

    def _path(self, shard: Shard) -> str:
        name = f"{shard.content}-{shard.size}.shard"
        if not _FILE.fullmatch(name):
            raise ValueError(f"content must be 32 hex digits, and is {shard.content!r}")
        return f"{self.folder}/{name}"

    def _pause(self, error: OSError) -> None:
        self._paused_until = time.monotonic() + _PAUSE
        self._quota.forfeit()
        cause = (type(error), error.errno)
        if cause in self._reported:
            return
        self._reported.add(cause)
        _log.warning(
            "%s: nothing is cached for %d seconds (%s). The run goes on, reading from the store what is not cached, "
            "and tries again without another word. Make room there, or choose another cache_dir or cache_bytes.",
            self.folder,
            _PAUSE,
            error.strerror or error,
        )


def _put(path: str, size: int, offset: int, data: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | FOREIGN_SAFE, 0o666)
    try:
        if os.fstat(descriptor).st_size < size:
            # At its full size from the start, for XFS allocates ahead of a file that grows.
            os.ftruncate(descriptor, size)
        rest = memoryview(data)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            offset, rest = offset + written, rest[written:]
    finally:
        os.close(descriptor)

"""A bound on the disk space of a folder that processes and jobs fill together, each by leases.

    <16 hex>.lease   held by flock: how many bytes a living process may still add to the folder (20 digits)
    lock             held by flock while one counts the folder, evicts and takes a lease; 1 MiB, all but empty

The bound is on allocated space (st_blocks), not on sizes. A process adds bytes within its lease alone. To take one it
locks the folder, sums what is allocated and what living processes may still add, and removes the least recently
modified of its own kind of files until the sum, its new lease included, keeps to its limit. The kernel drops a dead
process's flock, and with it the lease: SIGKILL leaves a file of 20 bytes that the next to count removes.

Everything that lies in the folder counts (not in folders below it), but nothing foreign is ever removed. The disk is a
limit as well: a twentieth of it, or 1 GiB if that is less, stays free. The bound holds on file systems that count what
is written at once (ext4, XFS, Btrfs, tmpfs); where the count lags (ZFS, NFS), it is exceeded by what was written
meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from shardpipe.cache.lock import FOREIGN_SAFE, NOT_LET_GO, locked
from shardpipe.errors import StoreError
from shardpipe.runtime import after_fork

__all__ = ["Quota"]

_LEASES = 256
"""A lease is such a part of the limit: what a process holds and does not use is lost to the others."""
_LEASE_MIN = 256 << 10
_LEASE_MAX = 256 << 20
_FREE_SHARE = 20
_FREE_MAX = 1 << 30
_LOCK_WAIT = 5.0
"""Seconds. A count takes milliseconds: whoever holds the lock longer is stopped, or its disk hangs."""
_PROBE = 1 << 20
_MARK = b"shardpipe cache 1\n"

_LEASE = re.compile(r"[0-9a-f]{16}\.lease")


class _NoRoom(OSError):
    """Not enough can be added, whatever is evicted."""


class _Census(NamedTuple):
    """What lies in the folder, in bytes."""

    used: int
    promised: int
    """To other living processes."""
    evictable: list[tuple[int, int, str]]
    """Time of last use, bytes, path."""


class Quota:
    """The right of one process to add bytes to a folder that holds `limit` at most (None: what the disk has).

    Files whose whole name matches `evictable` are removed for it, least recently modified first. Processes may have
    different limits, each keeps to its own. Safe to use from many threads, and after fork. Raises StoreError if the
    folder cannot serve.
    """

    def __init__(self, folder: str, limit: int | None, evictable: re.Pattern[str]) -> None:
        self._folder = folder
        self._limit = limit
        self._evictable = evictable
        self._mutex = threading.Lock()
        self._left = 0
        self._in_flight = 0
        self._lease: int | None = None
        self._lease_path = ""
        self._locked_out = 0.0
        """When the folder's lock was last waited for in vain; 0 once it was had again."""
        self._unit, self.sees_holes = _probe(folder)
        """Bytes that the file system allocates at once, and whether it tells holes (SEEK_HOLE)."""
        after_fork(self, Quota._begin_anew)

    @contextmanager
    def reserved(self, offset: int, length: int) -> Iterator[None]:
        """The right to write this range of a file while the context lasts. Raises OSError if there is no room."""
        first, last = offset // self._unit, -(-(offset + length) // self._unit)
        cost = (last - first + 1) * self._unit  # one more, for the file's tree of extents
        asked = time.monotonic()
        with self._mutex:
            if self._left < cost:
                if self._locked_out > asked:
                    raise TimeoutError(NOT_LET_GO)  # another thread has waited for all that have come meanwhile
                self._renew(cost)
            self._left -= cost
            self._in_flight += cost
        try:
            yield
        finally:
            with self._mutex:
                self._in_flight -= cost

    def forfeit(self) -> None:
        """The next reservation counts anew, and sees whether folder and lease are still there."""
        with self._mutex:
            self._left = 0

    def close(self) -> None:
        """Gives the lease back. A later reservation takes another."""
        with self._mutex:
            if self._lease is not None:
                with suppress(OSError):
                    Path(self._lease_path).unlink()
            self._drop()

    def __del__(self) -> None:
        self.close()

    def _begin_anew(self) -> None:
        """A child has no lease, and must not keep its parent's alive."""
        self._mutex = threading.Lock()
        self._in_flight = 0
        self._drop()

    def _drop(self) -> None:
        self._left = 0
        if self._lease is not None:
            os.close(self._lease)
            self._lease, self._lease_path = None, ""

    def _renew(self, cost: int) -> None:
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._folder, wait=0.0 if self._locked_out else _LOCK_WAIT))
            except TimeoutError:
                self._locked_out = time.monotonic()
                raise
            self._locked_out = 0.0
            disk = os.statvfs(self._folder)
            capacity = disk.f_blocks * disk.f_frsize
            free = disk.f_bavail * disk.f_frsize - min(capacity // _FREE_SHARE, _FREE_MAX)
            census = self._count()
            # What threads are just writing is in no count and no longer in the lease; the last is the lease's file.
            promised = census.promised + self._in_flight + self._unit
            limit = capacity if self._limit is None else min(self._limit, capacity)
            room = min(limit - census.used, free) - promised
            wanted = max(cost, _LEASE_MIN, min(limit // _LEASES, _LEASE_MAX))
            evictable = sum(size for _, size, _ in census.evictable)
            wanted = min(wanted, room + evictable)
            if wanted >= cost:  # else evicting would be of no use
                room += _evict(census.evictable, wanted - room)
            grant = min(wanted, room)
            if grant < cost:
                raise _NoRoom(
                    f"no room for {cost} bytes within {limit}: the cache's files take {evictable}, others in the "
                    f"folder {census.used - evictable}, {promised} are promised to those who write, and the disk can "
                    f"spare {max(free, 0)}"
                )
            self._promise(self._in_flight + grant)
            self._left = grant

    def _promise(self, size: int) -> None:
        if self._lease is not None and not os.fstat(self._lease).st_nlink:
            self._drop()  # the folder was cleared
        if self._lease is None:
            self._lease_path = f"{self._folder}/{secrets.token_hex(8)}.lease"
            self._lease = os.open(self._lease_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(self._lease, b"%020d" % size, 0)

    def _count(self) -> _Census:
        """Counts the locked folder, and removes the leases of the dead."""
        with os.scandir(self._folder) as scan:
            # Leases first: what is added while we count is then counted twice, not missed.
            entries = sorted(scan, key=lambda entry: not entry.name.endswith(".lease"))
        used = promised = 0
        evictable = []
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
                size = found.st_blocks * 512
                if not entry.is_file(follow_symlinks=False):
                    pass
                elif self._evictable.fullmatch(entry.name):
                    # ext4 and XFS allocate a file's tree of extents when they write back, after this count; a block
                    # of it holds 170 extents at least, and an extent a block at least.
                    size += self._unit + size // 128
                    evictable.append((found.st_mtime_ns, size, entry.path))
                elif _LEASE.fullmatch(entry.name) and entry.path != self._lease_path:
                    promised += _promised(entry.path)
            except FileNotFoundError:
                continue  # a lease given back meanwhile
            used += size
        return _Census(used, promised, evictable)


def _probe(folder: str) -> tuple[int, bool]:
    """Makes the folder and tries what is needed of it: (allocation unit, whether holes can be seen)."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not _is_probe(f"{folder}/lock"):  # else the lock need not be had, which a process that is stopped may hold
            with locked(folder, wait=_LOCK_WAIT) as lock:
                os.pwrite(lock, _MARK, 0)
                os.ftruncate(lock, _PROBE)
                os.fsync(lock)
        lock = os.open(f"{folder}/lock", os.O_RDWR | FOREIGN_SAFE)
        try:
            found = os.fstat(lock)
            sees_holes = os.lseek(lock, 0, os.SEEK_HOLE) < _PROBE
        finally:
            os.close(lock)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise StoreError(
            f"cannot serve as a cache ({error.strerror or error})",
            url=folder,
            fix="Give a cache_dir on a local disk, where this user may write.",
        ) from error
    if not 0 < found.st_blocks * 512 < _PROBE:
        raise StoreError(
            f"cannot serve as a cache: a file of {_PROBE} bytes, of which {len(_MARK)} were written, is said to take "
            f"{found.st_blocks * 512}, so its file system has no sparse files, or does not count them",
            url=folder,
            fix="Give a cache_dir on another file system: ext4, XFS, Btrfs and tmpfs will do.",
        )
    return max(found.st_blksize, 4096), sees_holes


def _is_probe(path: str) -> bool:
    with suppress(OSError):
        return os.lstat(path).st_size == _PROBE
    return False


def _promised(lease: str) -> int:
    """The bytes promised by a lease; none, and the file removed, if its owner is dead."""
    descriptor = os.open(lease, os.O_RDWR | FOREIGN_SAFE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(lease).unlink()
        return 0
    except BlockingIOError:
        digits = os.pread(descriptor, 20, 0)
        return int(digits) if digits.isdigit() else 0
    finally:
        os.close(descriptor)


def _evict(files: list[tuple[int, int, str]], wanted: int) -> int:
    """Removes least recently used files until so many bytes are free; how many it has freed."""
    freed = 0
    for _, size, path in sorted(files):
        if freed >= wanted:
            break
        with suppress(OSError):
            # Its space is free at once, even while another process has the file open.
            os.truncate(path, 0)
        with suppress(OSError):
            Path(path).unlink()
            freed += size
    return freed

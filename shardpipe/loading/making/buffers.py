"""Memory for padded batches, used again once nobody holds it.

Fresh memory costs a page fault every few KiB when it is first written to, and is given back with as much trouble: for
PCM audio that takes as long as the decoding. Here it all comes from one arena, which processes may share.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.reduction import DupFd
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shardpipe.errors import ShardpipeError

__all__ = ["Arena", "Empty", "Room", "SharedBytes", "memory_for"]

_ALIGNMENT = 4096
_MOST = 1 << 32
"""What is lent beyond comes from elsewhere: systems refuse to promise memory that they do not have."""


Empty: TypeAlias = Callable[[tuple[int, ...], str], npt.NDArray[Any]]
"""An array of a shape and dtype, its content undefined."""


def memory_for(empty: Empty, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """An array from `empty`. Raises ShardpipeError where there is not so much memory."""
    try:
        return empty(shape, dtype)
    except (MemoryError, OverflowError, ValueError, RuntimeError) as error:  # numpy's and torch's words for it
        what = f"there is no memory for a batch of {shape[0]} samples, padded to {shape[-1]} frames"
        raise ShardpipeError(what, fix="Leave longer samples out (max_seconds), or take smaller batches.") from error


class Arena:
    """Arrays out of `size` bytes, which take no memory before they are used; from elsewhere when they are all lent.

    Every array takes the lowest place where it fits, so the bytes in use lie together, however sizes vary. A place is
    free again when the last view of it is gone, whoever held it: a tensor, a slice, a list. Safe for threads.

    What is `shared` lies in memory that processes started from this one can have: `Arena.shared`, and `start` says
    where in it.
    """

    def __init__(self, size: int, *, shared: bool = False) -> None:
        reserved = -(-min(size, _MOST) // _ALIGNMENT) * _ALIGNMENT
        if shared:
            self.shared = SharedBytes(reserved)
            self._memory = self.shared.memory
        else:
            # Private: processes that were forked from one another must not write to the same batch.
            self._memory = mmap.mmap(-1, reserved, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel may be built without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._lock = threading.Lock()
        self._free = [(0, len(self._memory))]
        # The garbage collector may return an array in the middle of any line of ours, so it takes no lock.
        self._returned: deque[tuple[int, int]] = deque()

    def empty(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array with whatever was in its memory before."""
        items = math.prod(shape)
        size = items * np.dtype(dtype).itemsize
        start = self._take(-(-size // _ALIGNMENT) * _ALIGNMENT)
        if start is None:
            return np.empty(shape, dtype)
        lent = _Lent(self, start, size)
        return np.asarray(lent).view(dtype).reshape(shape)

    def start(self, array: npt.NDArray[Any]) -> int | None:
        """Where an array that was lent begins, in bytes from the arena's beginning; None if it came from elsewhere."""
        first = np.frombuffer(self._memory, np.uint8, 1)
        start = _address(array) - _address(first)
        return start if 0 <= start < len(self._memory) else None

    def _take(self, size: int) -> int | None:
        with self._lock:
            while self._returned:
                self._join(*self._returned.popleft())
            for i, (start, stop) in enumerate(self._free):
                if stop - start >= size:
                    self._free[i] = (start + size, stop)
                    return start
        return None

    def _join(self, start: int, stop: int) -> None:
        """Puts a range among the free ones, which are in order, and never touch each other."""
        joined: list[tuple[int, int]] = []
        for low, high in sorted([*self._free, (start, stop)]):
            if low == high:
                continue
            if joined and joined[-1][1] == low:
                low, _ = joined.pop()
            joined.append((low, high))
        self._free = joined

    def _return(self, start: int, size: int) -> None:
        self._returned.append((start, start + -(-size // _ALIGNMENT) * _ALIGNMENT))


class _Lent:
    """A range of the arena while any array over it lives: numpy keeps the object whose memory it was given."""

    def __init__(self, arena: Arena, start: int, size: int) -> None:
        self._arena = arena
        self._start = start
        self._bytes = np.frombuffer(arena._memory, np.uint8, size, start)
        self.__array_interface__ = self._bytes.__array_interface__

    def __del__(self) -> None:
        self._arena._return(self._start, len(self._bytes))


class SharedBytes:
    """Memory that this process shares with those that it starts, to which it travels; no file system shows it."""

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        self._size = size
        if descriptor is None:
            descriptor = _nameless_file()
            os.ftruncate(descriptor, size)
        self._descriptor = descriptor
        self.memory = mmap.mmap(descriptor, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _map_shared, (self._size, DupFd(self._descriptor))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class Room:
    """Bytes that another process has lent this one, for one array."""

    def __init__(self, shared: SharedBytes, start: int | None, size: int) -> None:
        self._shared = shared
        self._start = start
        self._size = size
        self.array: npt.NDArray[Any] | None = None
        """What lies there."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array with whatever was there before; from elsewhere if it does not fit."""
        items = math.prod(shape)
        if self._start is None or items * np.dtype(dtype).itemsize > self._size:
            return np.empty(shape, dtype)
        self.array = np.frombuffer(self._shared.memory, dtype, items, self._start).reshape(shape)
        return self.array


def _map_shared(size: int, descriptor: Any) -> SharedBytes:
    return SharedBytes(size, descriptor.detach())


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("shardpipe")  # not in /dev/shm, which containers keep small
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])

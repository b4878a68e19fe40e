"""Memory for padded batches, used again once nobody holds it.

A fresh array of some megabytes costs a page fault every few KiB when it is first written to: for PCM audio that is as
much time as the decoding. Memory that has been written to before costs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]

_STEP = 1 << 16  # sizes are rounded up to an eighth of their power of two, and to this, so that buffers fit again


class BufferPool:
    """Arrays whose memory returns here when the last view of it is gone, whoever holds it: a tensor, a slice, a list.

    Up to `keep` idle buffers are kept. Safe for threads, and for return by the garbage collector at any moment: it
    takes no lock, for every single step on the dict of idle buffers is atomic.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._idle: dict[int, npt.NDArray[np.uint8]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return BufferPool, (self._keep,)

    def empty(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array with whatever was in its memory before."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        lent = np.asarray(_Lent(self, self._take(size)))
        return lent[:size].view(dtype).reshape(shape)

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        fitting = sorted((len(memory), name) for name, memory in list(self._idle.items()) if len(memory) >= size)
        for length, name in fitting:
            if length <= 2 * size + _STEP and (memory := self._idle.pop(name, None)) is not None:
                return memory
        step = max(_STEP, 1 << max(0, size.bit_length() - 4))
        return np.empty(-(-size // step) * step, np.uint8)

    def _return(self, memory: npt.NDArray[np.uint8]) -> None:
        self._idle[id(memory)] = memory
        while len(self._idle) > self._keep:
            oldest = next(iter(list(self._idle)), None)
            if oldest is not None:
                self._idle.pop(oldest, None)


class _Lent:
    """Owns a buffer while any array over it lives: numpy keeps the object whose interface it took as their base."""

    def __init__(self, pool: BufferPool, memory: npt.NDArray[np.uint8]) -> None:
        self._pool = pool
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._pool._return(self._memory)

"""A store that notes what is read of another one."""

from __future__ import annotations

import threading

from shardpipe.store.base import Over, Stat, Store

__all__ = ["CountingStore"]


class CountingStore(Over):
    """A store that notes every read of another one, so that a test can say which bytes were touched."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.reads: list[tuple[str, int, int]] = []
        """(name, offset, bytes) of every read so far."""
        self.stats = 0
        """Calls of `stat` so far."""

    def stat(self, name: str) -> Stat:
        with self._lock:
            self.stats += 1
        return self._inner.stat(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._inner.read(name, offset, length)
        with self._lock:
            self.reads.append((name, offset, len(data)))
        return data

"""A store that fails when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import count

from shardpipe.store.base import Over, Stat, Store, as_store_error, whole

__all__ = ["FailingStore", "Fault"]

Fault = BaseException | Callable[[bytes], bytes] | None
"""What becomes of a request. An exception is raised before it reaches the other store; a function is given what was
read (b"" for a stat) and returns what arrives instead, or raises; None does no harm."""


class FailingStore(Over):
    """Another store whose requests fail on schedule, for tests of what stands above.

    `schedule` says what becomes of request 0, 1, 2 and so on, in the order in which they come, `stat` and `read` alike:
    a function of the number, or an iterable, after whose end no request fails. An OSError and the like become what a
    store makes of them, a StoreError; a body that arrives too short is one as well, and `transient`.

        FailingStore(store, [ConnectionResetError(104, "reset"), None, lambda data: data[:10]])
    """

    def __init__(self, inner: Store, schedule: Callable[[int], Fault] | Iterable[Fault]) -> None:
        super().__init__(inner)
        self._faults = map(schedule, count()) if callable(schedule) else iter(schedule)
        self._lock = threading.Lock()

    def stat(self, name: str) -> Stat:
        with as_store_error(f"{self.url}/{name}"):
            fault = self._next()
            found = self._inner.stat(name)
            if fault:
                fault(b"")
            return found

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with as_store_error(f"{self.url}/{name}"):
            fault = self._next()
            data = self._inner.read(name, offset, length)
            if not fault:
                return data
            arrived = fault(data)
        return whole(arrived, f"{self.url}/{name}", offset, len(data), transient=True)

    def _next(self) -> Callable[[bytes], bytes] | None:
        with self._lock:
            fault = next(self._faults, None)
        if isinstance(fault, BaseException):
            raise fault
        return fault

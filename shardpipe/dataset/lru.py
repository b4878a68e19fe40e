"""A cache for values that are slow to load: each is loaded by one thread, once, while others load others."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from shardpipe.runtime import after_fork

__all__ = ["LoadingCache"]

_T = TypeVar("_T")


class LoadingCache:
    """Keeps the most recently used values as long as their sizes sum to at most `limit`; the last one always stays.

    Safe for threads. A forked process begins with nothing kept: the threads that were loading are not there.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begin()
        after_fork(self, LoadingCache._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._size = 0
        self._loading: dict[Hashable, Future[Any]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, load: Callable[[], _T], size_of: Callable[[_T], int]) -> _T:
        """The value of `key`, loaded if it is not kept. What `load` raises, all that wait for it raise."""
        value: _T
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                value = kept[0]
                return value
            loading = self._loading.get(key)
            mine = loading is None
            if loading is None:
                loading = self._loading[key] = Future()
        if not mine:
            value = loading.result()
            return value
        try:
            value = load()
            self._keep(key, value, size_of(value))
        except BaseException as error:
            loading.set_exception(error)
            raise
        else:
            loading.set_result(value)
            return value
        finally:
            with self._lock:
                del self._loading[key]

    def _keep(self, key: Hashable, value: object, size: int) -> None:
        with self._lock:
            self._kept[key] = (value, size)
            self._size += size
            while self._size > self._limit and len(self._kept) > 1:
                _, (_, size) = self._kept.popitem(last=False)
                self._size -= size

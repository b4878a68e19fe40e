"""Asking a service, with the patience that a storage has of its readers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from shardpipe.errors import StoreError
from shardpipe.loading.served.access import Access
from shardpipe.loading.served.exchange import Busy, Exchange, Question
from shardpipe.loading.served.replicas import Replicas
from shardpipe.loading.served.watch import Watch
from shardpipe.runtime import abandoned, after_fork, pause
from shardpipe.store import Retry, attempted

__all__ = ["Client"]

_T = TypeVar("_T")
_random = random.SystemRandom()

_SLICE = 0.1
_BUSY_SECONDS = 600.0
"""For which servers that say they are busy are asked again and again."""
_FIRST_WAIT = 3.0


class Client:
    """Puts questions to replicas, from any thread, while `using`."""

    def __init__(self, replicas: Replicas, access: Access, watch: Watch, retry: Retry) -> None:
        self.replicas = replicas
        self.retry = retry
        self._access = access
        self._watch = watch
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_users")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()
        after_fork(self, Client._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def using(self) -> Iterator[None]:
        """While replicas are looked after."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._watch.begin()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._watch.end()
                    self.replicas.close()

    def answer(self, question: Question[_T], *, patient: bool = True) -> _T:
        """The answer to a question, asked with all the patience of `retry` if `patient`, else of each replica once.

        Raises StoreError if there is none, and what the answer says is wrong with what is asked for.
        """
        exchange = Exchange(self.replicas, self._access, question, self.retry)
        until = time.monotonic() + _BUSY_SECONDS
        self._wait_for_one(_FIRST_WAIT, new=True)
        while True:
            try:
                retry = self.retry if patient else Retry(attempts=1)
                # As long as may be, not some part of it drawn: a wait ends with the first replica that is back, and of
                # many batches asked for at once the least patient one would end the run.
                return attempted(exchange.round, retry, sleep=self._wait_for_one, jitter=lambda: 1.0)
            except Busy as busy:
                if not patient or abandoned() or time.monotonic() > until:
                    raise self._refused(str(busy)) from None
            pause(_random.uniform(0.05, 1.0))

    def _refused(self, what: str) -> StoreError:
        return StoreError(
            what, url=self.replicas.url, fix="Start more replicas, or allow them more memory.", transient=True
        )

    def wait_for_all(self) -> None:
        """Waits until every replica has said something or failed, for a while."""
        self._wait(_FIRST_WAIT, lambda: bool(self.replicas.all) and all(one.was_asked for one in self.replicas.all))

    def _wait_for_one(self, seconds: float, *, new: bool = False) -> None:
        """Waits until a replica is in use; with `new`, only for those that have never been asked."""

        def over() -> bool:
            everyone = self.replicas.all
            return bool(self.replicas.up) or (new and bool(everyone) and all(one.was_asked for one in everyone))

        self._wait(seconds, over)

    def _wait(self, seconds: float, over: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not over() and not abandoned() and time.monotonic() < until:
            with self.replicas.changed:
                self.replicas.changed.wait(_SLICE)

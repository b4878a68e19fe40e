"""Attempts in a row, for faults that may pass."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shardpipe.errors import StoreError
from shardpipe.runtime import abandoned, pause
from shardpipe.settings import check
from shardpipe.store.base import Over, Stat, Store

__all__ = ["Retry", "RetryingStore", "attempted"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
# Not the generator that users seed: a fault must not change what they draw from it. Nor one that forks alike.
_random = random.SystemRandom()


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How often and how patiently to try; times in seconds.

    By default a server that refuses is asked for half a minute, one that is silent for two minutes.
    """

    attempts: int = 10
    first_wait: float = 0.2
    """The longest wait before the second attempt; it doubles with every further one."""
    longest_wait: float = 20.0
    attempt_seconds: float = 10.0
    """How long an attempt may take beside the bytes it brings; without a byte for so long it is given up as well."""
    slowest: float = 100e3
    """The bytes a second that an attempt must bring, at least; many share the line."""

    def __post_init__(self) -> None:
        check("attempts", self.attempts, self.attempts >= 1, "it must be at least 1")
        check("first_wait", self.first_wait, self.first_wait >= 0, "it must not be negative")
        check("longest_wait", self.longest_wait, self.longest_wait >= 0, "it must not be negative")
        check("attempt_seconds", self.attempt_seconds, self.attempt_seconds > 0, "it must be above 0")
        check("slowest", self.slowest, self.slowest > 0, "it must be above 0")

    def limit(self, size: int = 0) -> float:
        """The seconds that an attempt to get `size` bytes may take."""
        return self.attempt_seconds + size / self.slowest

    def longest(self, attempt: int) -> float:
        """The longest wait after the given attempt, the first being 1."""
        # Beyond 2**64 no wait is below longest_wait, and a float ends at 2**1024.
        return min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 64))


def attempted(
    action: Callable[[], _T],
    retry: Retry,
    *,
    sleep: Callable[[float], None] = pause,
    jitter: Callable[[], float] = _random.random,
) -> _T:
    """What `action` returns, tried again after every StoreError that is `transient`.

    Waits by exponential backoff with full jitter, uniform in [0, min(longest_wait, first_wait * 2^n)], so that many
    readers whom one fault has hit do not come back together (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015). Raises the StoreError that does not pass, or the last one with the number of attempts.
    """
    attempt = 1
    while True:
        try:
            return action()
        except StoreError as error:
            failure = error
        if not failure.transient or attempt >= retry.attempts or abandoned():
            break
        wait = retry.longest(attempt) * jitter()
        _log.info("attempt %d of %d, the next in %.2f s: %s", attempt, retry.attempts, wait, failure)
        sleep(wait)
        if abandoned():
            break
        attempt += 1
    # Not where it was caught: there it would keep as its context what was cut off for its secrets.
    raise _final(failure, attempt)


def _final(error: StoreError, attempts: int) -> StoreError:
    what = error.what if attempts == 1 else f"{error.what}, after {attempts} attempts"
    final = StoreError(what, url=error.url, attempts=attempts, fix=error.fix, transient=error.transient)
    final.__cause__ = error.__cause__
    return final


class RetryingStore(Over):
    """A store that asks another one again where a fault may pass."""

    def __init__(self, inner: Store, retry: Retry) -> None:
        super().__init__(inner)
        self._retry = retry

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def stat(self, name: str) -> Stat:
        return attempted(lambda: self._inner.stat(name), self._retry)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return attempted(lambda: self._inner.read(name, offset, length), self._retry)

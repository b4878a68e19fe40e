"""Who makes which batch, where servers make them too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from shardpipe.errors import StoreError
from shardpipe.loading.making import Empty, Skipped
from shardpipe.loading.served import ServedMaker
from shardpipe.loading.work import Work
from shardpipe.runtime import abandoned

__all__ = ["CALLS", "Sharing"]

CALLS = 16
"""Batches asked of servers at once: what a loop takes while one is on its way."""


class Sharing:
    """Deals a loop's batches to servers and, if it has `threads`, to this process: whoever has less than enough to do
    gets the next one. What no server makes, this process does then.
    """

    def __init__(self, served: ServedMaker, threads: int) -> None:
        self._served = served
        self._most = 2 * threads
        """As many as are being made, and as many whose bytes are read meanwhile."""
        self._own: set[Work] = set()
        self._making = threading.Semaphore(max(1, threads))
        self._lock = threading.Lock()

    @property
    def makes(self) -> bool:
        """Whether this process makes any."""
        return self._most > 0

    def is_own(self, work: Work) -> bool:
        """Whether a batch that is begun now is to be made here."""
        if not self._most or (len(self._own) >= self._most and self._served.is_up):
            return False
        with self._lock:
            self._own.add(work)
        return True

    def made(
        self, work: Work, empty: Empty, make: Callable[[], tuple[Any, list[Skipped]]]
    ) -> tuple[Any, list[Skipped]]:
        """The batch, by servers, or by `make` if it is our own or none of them makes it."""
        if work not in self._own:
            try:
                return self._served(work, empty, patient=not self._most)
            except StoreError:
                if not self._most or self._served.is_a_mistake or abandoned():
                    raise
        try:
            with self._making:
                return make()
        finally:
            with self._lock:
                self._own.discard(work)

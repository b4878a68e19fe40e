"""The end of what a loop has begun, wherever and whenever it comes."""

from __future__ import annotations

import _thread
import gc
import threading
from contextlib import ExitStack, suppress
from typing import Any

__all__ = ["Ending"]

_collector = threading.local()


class Ending(ExitStack):
    """An ExitStack that the garbage collector may unwind as well.

    It comes in the middle of any line of any thread, one of those that are to be waited for or one that holds a lock
    that they want. Then another thread does the work, and nobody waits for it.
    """

    def __exit__(self, *details: Any) -> bool:
        if not getattr(_collector, "at_work", False):
            return bool(super().__exit__(*details))
        with suppress(RuntimeError):  # Python itself is ending, and its threads with it
            # Not threading.Thread, which takes locks of its own.
            _thread.start_new_thread(self.pop_all().close, ())
        return False


def _note(phase: str, _: dict[str, int]) -> None:
    _collector.at_work = phase == "start"


gc.callbacks.append(_note)

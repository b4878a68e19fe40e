"""The end of what a loop has begun, wherever and whenever it comes."""

from __future__ import annotations

import _thread
import gc
import os
import threading
from contextlib import ExitStack, suppress
from typing import Any
from weakref import WeakSet

from shardpipe.runtime.stopping import at_exit

__all__ = ["Ending"]

_collector = threading.local()


_entered: WeakSet[Ending] = WeakSet()


class Ending(ExitStack):
    """An ExitStack that the garbage collector may unwind as well, and that is unwound as Python begins to end.

    The collector comes in the middle of any line of any thread, one of those that are to be waited for or one that
    holds a lock that they want. Then another thread does the work, and nobody waits for it. And what a script leaves
    open would be unwound when it is late: when the modules that it takes are gone.
    """

    def __enter__(self) -> Ending:
        self._owner = threading.current_thread()
        _entered.add(self)
        return super().__enter__()

    def __exit__(self, *details: Any) -> bool:
        if not getattr(_collector, "at_work", False):
            return bool(super().__exit__(*details))
        with suppress(RuntimeError):  # Python itself is ending, and its threads with it
            # Not threading.Thread, which takes locks of its own.
            _thread.start_new_thread(self.pop_all().close, ())
        return False


def _note(phase: str, _: dict[str, int]) -> None:
    _collector.at_work = phase == "start"


def _end_all() -> None:
    for one in list(_entered):
        # A thread that goes on beside the end of Python goes on with its loop, too.
        if one._owner is threading.current_thread() or not one._owner.is_alive():
            with suppress(Exception):
                one.pop_all().close()


gc.callbacks.append(_note)
at_exit(_end_all)
os.register_at_fork(after_in_child=_entered.clear)

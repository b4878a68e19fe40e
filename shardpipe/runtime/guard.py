"""Scripts that do their work as they are imported, which every process that they start does once more."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

from shardpipe.errors import ShardpipeError

__all__ = ["PROCESS", "leave_if_imported", "unguarded"]

PROCESS = "shardpipe worker"
"""What processes of ours are called, by which they know themselves while they are being started."""

_UNGUARDED = 86


def leave_if_imported() -> None:
    """Called where work begins: ends a process of ours that has come here because it imports the script that started
    it. The one that waits for it says why; each of them would print pages about it.
    """
    process = multiprocessing.current_process()
    if process.name == PROCESS and getattr(process, "_inheriting", False):
        os._exit(_UNGUARDED)


def unguarded(processes: Iterable[BaseProcess]) -> ShardpipeError | None:
    """The error for that, if some of these processes have ended so."""
    if all(process.exitcode != _UNGUARDED for process in processes):
        return None
    return ShardpipeError(
        "worker processes import the script that starts them, and this one does all its work again when it is imported",
        fix='Put what it does, but for its functions, classes and imports, under `if __name__ == "__main__":`.',
    )

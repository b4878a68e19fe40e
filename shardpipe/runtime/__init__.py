"""Threads and processes: the same work in many of them, and how all of it ends.

In: functions and items, an event that says that nobody waits any more. Out: results in order, and nothing left behind,
whatever comes first: the end, an error, a fork, the garbage collector, SIGKILL. Knows nothing of data.
"""

from typing import TYPE_CHECKING

from shardpipe.runtime.lazy import lazily

if TYPE_CHECKING:
    from shardpipe.runtime.ending import Ending
    from shardpipe.runtime.forks import after_fork, keep
    from shardpipe.runtime.guard import PROCESS, leave_if_imported, unguarded
    from shardpipe.runtime.jobs import cores, exit_with_parent, in_order
    from shardpipe.runtime.stopping import GIVEN_UP, abandon_when, abandoned, pause, pool
else:
    __getattr__, __dir__ = lazily(
        __name__,
        ending=["Ending"],
        forks=["after_fork", "keep"],
        guard=["PROCESS", "leave_if_imported", "unguarded"],
        jobs=["cores", "exit_with_parent", "in_order"],
        stopping=["GIVEN_UP", "abandon_when", "abandoned", "pause", "pool"],
    )

__all__ = [
    "GIVEN_UP",
    "PROCESS",
    "Ending",
    "abandon_when",
    "abandoned",
    "after_fork",
    "cores",
    "exit_with_parent",
    "in_order",
    "keep",
    "lazily",
    "leave_if_imported",
    "pause",
    "pool",
    "unguarded",
]

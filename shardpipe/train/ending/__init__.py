"""How a start ends before its epochs do: asked to, hung, without one of its processes, or by an error.

signals     who asks it to
watchdog    ends a process that gets nowhere, after it has said where it is
exits       what the process says to whoever starts it again: exit codes, and exit.json
"""

from shardpipe.train.ending.exits import AGAIN, BAD_SETTINGS, FAILED, ExitFile, Outcome, ending_of, exit_code_of
from shardpipe.train.ending.signals import Stop, leaving, stopping
from shardpipe.train.ending.watchdog import Watchdog, stacks_folder

__all__ = [
    "AGAIN",
    "BAD_SETTINGS",
    "FAILED",
    "ExitFile",
    "Outcome",
    "Stop",
    "Watchdog",
    "ending_of",
    "exit_code_of",
    "leaving",
    "stacks_folder",
    "stopping",
]

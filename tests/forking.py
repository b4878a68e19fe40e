"""Processes forked from the tests' own."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable

import pytest

__all__ = ["ended", "forked", "needs_fork"]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
_SECONDS = 60


def forked(action: Callable[[], object]) -> int:
    """The process that does this and nothing else: it fails if `action` does, or does not end within a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: of forking beside threads
        child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(_SECONDS)
            action()
            status = 0
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    """The exit code of a process, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

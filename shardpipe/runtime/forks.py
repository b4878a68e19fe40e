"""Objects that go on in a forked process, where the threads that held their locks do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["after_fork", "keep"]

_T = TypeVar("_T")
_known: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()
_kept: list[object] = []


def after_fork(one: _T, action: Callable[[_T], None]) -> None:
    """Has `action(one)` called in every process that is forked while `one` lives, before anything else uses it."""
    _known[one] = action


def keep(inherited: object) -> None:
    """Has this process, a forked one, never let go of what is not its own to end: connections, memory of a device."""
    _kept.append(inherited)


def _act() -> None:
    for one, action in list(_known.items()):
        action(one)


os.register_at_fork(after_in_child=_act)

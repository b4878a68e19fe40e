"""Processes that die at a chosen step of what they do to a disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

from tests.forking import ended, forked

__all__ = ["dies_before"]

_STEPS = ("replace", "unlink", "rmdir", "mkdir", "fsync")


def dies_before(step: int, action: Callable[[], object]) -> bool:
    """Whether the action, in a process of its own, is cut short as by SIGKILL before the `step`-th change on a disk."""
    left = step

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return real(*args, **keywords)

        return call

    def mortal() -> None:
        for name in _STEPS:
            setattr(os, name, dying(getattr(os, name)))
        shutil.copyfile = dying(shutil.copyfile)
        action()

    code = ended(forked(mortal))
    assert code in (0, 9)
    return code == 9

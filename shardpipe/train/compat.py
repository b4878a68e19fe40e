"""What torch has changed since the oldest version that pyproject.toml admits, met here and nowhere else."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

__all__ = ["leave_group", "maybe_alone"]

_LAST_WORK = 0.5  # seconds


def maybe_alone(function: Callable[..., Any], alone: bool) -> dict[str, Any]:
    """Arguments with which DCP's `save` or `load` takes this process for all there are, if it is, without a warning."""
    # For good: what `warnings.catch_warnings` puts back may be another thread's by then.
    warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # of torch 2.6, to itself
    # `save` has had it since 2.7; before, it found that out by itself.
    return {"no_dist": alone} if "no_dist" in inspect.signature(function).parameters else {}


def leave_group() -> None:
    """Ends the process group. Up to torch 2.6 at least, that waits for gloo's thread and keeps the GIL, for which that
    thread waits if it is just letting go of the last tensor: it is given the time to do so before.
    """
    if dist.get_backend() == "gloo":
        time.sleep(_LAST_WORK)
    dist.destroy_process_group()

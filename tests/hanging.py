"""Starts shardpipe.train with a process that gets stuck in a step, once.

    HANG=RANK:COUNT:HOW:MARKER python tests/hanging.py ARGUMENTS OF shardpipe.train

HOW is `sleeping`, as in a lock that nobody lets go of, or `holding`, by a library that does not let Python run. MARKER
is a file that says that it has happened.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

from shardpipe.train.cli import main
from shardpipe.train.task import Learner

rank, at, how, marker = os.environ["HANG"].split(":", 3)
whole = Learner.forward


def stuck() -> None:
    Path(marker).touch()
    if how == "holding":
        ctypes.PyDLL(None).sleep(1000)
    time.sleep(1000)


def forward(self: Learner, batch: Any, *, train: bool) -> Any:
    here = train and os.environ.get("RANK", "0") == rank and batch.consumed_samples >= int(at)
    if here and not Path(marker).exists():
        stuck()
    return whole(self, batch, train=train)


Learner.forward = forward  # type: ignore[method-assign]
sys.exit(main())

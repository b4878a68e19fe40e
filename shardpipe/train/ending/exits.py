"""What a start says to whoever starts it again: an exit code, and exit.json for where codes are hidden."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from shardpipe.errors import ConfigError, ShardpipeError, StoreError
from shardpipe.store import parsed

__all__ = ["AGAIN", "BAD_SETTINGS", "FAILED", "INTERRUPTED", "Exit", "ExitFile", "LostProcess", "Outcome", "ending_of"]

FAILED = 1
BAD_SETTINGS = 2
AGAIN = 75
"""EX_TEMPFAIL of BSD's sysexits.h: nothing is wrong, and the same command is to be run again."""
INTERRUPTED = 130
"""What shells say of a process that a second Ctrl-C has ended."""

Outcome = Literal["done", "part", "stopped", "hang", "lost", "failed"]
"""done: all epochs are. part: the start has had its slot. stopped: it was asked to. hang: nothing ended for too long.
lost: another process was gone. failed: an error."""

_COLLECTIVE = re.compile(r"gloo/transport|\bNCCL\b")
_OF_GLOO = re.compile(r"gloo/transport[^]]*\] (.*?)\)?(?:\. |$)", re.MULTILINE)
_SEEN_WITHIN = 3.0
"""Seconds in which one process sees what another has written, on a file system that they share."""


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """What exit.json says. `start` is the name of the start whose end it was."""

    start: str
    outcome: Outcome
    code: int
    reason: str
    rank: int
    time: float


class LostProcess(ShardpipeError):
    """Another process of the run is gone: `exit_code` is its own, if it could still say so."""

    def __init__(self, found: Exit | None, line: str) -> None:
        if found is None:
            what = f"another process of the run is gone ({line})"
            fix = "Start it again: it goes on from its last checkpoint, on whatever processes there are."
        else:
            what = f"process {found.rank} of the run has ended it: {found.reason}"
            fix = ""
        super().__init__(what, fix=fix)
        self.exit_code = AGAIN if found is None else found.code


class ExitFile:
    """RUN/exit.json: how the latest start has ended; there is none while one is under way, or was killed.

    The first process to end has the word, for the others end because it does. `start` is what all processes of this
    start call it: what one that was frozen for a while has to say is nothing to a later start.
    """

    def __init__(self, folder: Path, rank: int, start: str) -> None:
        self.path = folder / "exit.json"
        self._rank = rank
        self._start = start

    def clear(self) -> None:
        """Removes that of the start before."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def read(self) -> Exit | None:
        """What the first process to end has said; None while none has."""
        try:
            said = parsed(self.path.read_bytes(), Exit)
        except (OSError, ValueError):
            return None
        return said if said.start == self._start else None

    def write(self, outcome: Outcome, code: int, reason: str) -> None:
        """Says it, unless another process has. A disk that does not take it changes nothing: there is the code."""
        if self.read() is not None:
            return
        said = Exit(start=self._start, outcome=outcome, code=code, reason=reason, rank=self._rank, time=time.time())
        own = self.path.with_name(f".exit-{self._rank}.json")
        with suppress(OSError):
            try:
                own.write_text(json.dumps(msgspec.to_builtins(said), ensure_ascii=False) + "\n")
                try:
                    os.link(own, self.path)  # whole, and if there is none
                except OSError:
                    if self.read() is None:  # that of another start, or a disk without links
                        own.replace(self.path)
            finally:
                own.unlink(missing_ok=True)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Around what a start does: what it ends in is written at once, before anything is wound up. Raises
        LostProcess for the error in which collectives end when another process is gone.
        """
        try:
            yield
        except Exception as error:
            ended = ending_of(error, self)
            lost = isinstance(ended, LostProcess)
            self.write("lost" if lost else "failed", exit_code_of(ended), str(ended) or type(ended).__name__)
            if ended is error:
                raise
            raise ended from error


def ending_of(error: Exception, said: ExitFile | None = None) -> Exception:
    """The error, or LostProcess if it is what collectives end in when another process is gone."""
    lost = _of_collectives(error)
    if lost is None:
        return error
    found, until = None, time.monotonic() + _SEEN_WITHIN
    while said is not None and (found := said.read()) is None and time.monotonic() < until:
        time.sleep(0.1)
    text = str(lost)
    match = _OF_GLOO.search(text)
    return LostProcess(found, match[1] if match else (text.splitlines() or [type(lost).__name__])[0])


def exit_code_of(error: Exception) -> int:
    """The code of a process that ends with an error."""
    if isinstance(error, LostProcess):
        return error.exit_code
    return BAD_SETTINGS if isinstance(error, ConfigError) else FAILED


def _of_collectives(error: BaseException) -> BaseException | None:
    """What torch.distributed raises: known by its class, or by its text where it comes from gloo's and NCCL's own
    threads. Another error may have been made of it.
    """
    seen: BaseException | None = error
    while seen is not None:
        plain = isinstance(seen, StoreError) or type(seen) is RuntimeError
        if "DistError" in {kind.__name__ for kind in type(seen).__mro__} or (plain and _COLLECTIVE.search(str(seen))):
            return seen
        seen = seen.__cause__
    return None

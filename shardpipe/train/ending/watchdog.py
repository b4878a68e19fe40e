"""Ends a process that gets nowhere, after it has said where it is."""

from __future__ import annotations

import faulthandler
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from shardpipe.train.ending.exits import AGAIN, ExitFile

__all__ = ["Watchdog", "stacks_folder"]

_LOOKS_MOST = 5.0
_GRACE_LEAST = 5.0
_ASIDE_LEAST = 300.0
_KEYS_SHOWN = 64


def stacks_folder(run: Path) -> Path:
    """Makes a folder for the stacks of a start, by whose name it is known, and removes those that no start has put any
    in. For the main process.

    A disk that does not take it leaves the watchdog without a place; it then tells standard error alone.
    """
    every = run / "stacks"
    for old in every.glob("*"):
        with suppress(OSError):
            if not any(file.stat().st_size for file in old.iterdir()):
                for file in old.iterdir():
                    file.unlink()
                old.rmdir()
    folder = every / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


class Watchdog:
    """Watches that this process gets on: if it has begun no batch for `minutes` (5 at least while the run is opened and
    wound up), it writes the stacks of its threads and the keys of its last batch into
    `folder`/rank<r>.txt and ends, with exit code AGAIN.

    All processes do, for the first one that is late says so in exit.json, where the others look. It waits for them to
    have written theirs, a tenth of the time at most (5 s at least). A process whose interpreter is held by a library
    is seen by a timer of the system's, which writes the stacks and ends it with exit code 1.

    It also ends a process that waits for one which an error has ended.
    """

    def __init__(self, minutes: float | None, folder: Path, ranks: tuple[int, int], said: ExitFile) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._folder = folder
        self._rank, self._size = ranks
        self.said = said
        self._seen, self._doing, self._keys = time.monotonic(), "the opening of the run", list[str]()
        self._trains = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._file = 2  # standard error

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            with suppress(OSError):
                self._file = os.open(self._own, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._seen = time.monotonic()
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._seconds is None:
            return
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._file != 2:
            os.close(self._file)
            with suppress(OSError):
                self._own.unlink()
                self._folder.rmdir()  # by the last one
                self._folder.parent.rmdir()

    def saw(self, doing: str, keys: Sequence[str] = (), *, trains: bool = True) -> None:
        """Something has ended, and this begins, with these samples; if not `trains`, it is none of many alike."""
        self._doing, self._keys, self._seen, self._trains = doing, list(keys), time.monotonic(), trains

    @property
    def _own(self) -> Path:
        return self._folder / f"rank{self._rank}.txt"

    @property
    def _limit(self) -> float:
        assert self._seconds is not None
        return self._seconds if self._trains else max(self._seconds, _ASIDE_LEAST)

    def _watch(self) -> None:
        assert self._seconds is not None
        grace = max(_GRACE_LEAST, self._seconds / 10)
        looks = min(self._seconds / 20, _LOOKS_MOST)
        while True:
            # Set anew as long as this thread has its turns.
            faulthandler.dump_traceback_later(self._limit + grace / 2, exit=True, file=self._file)
            if self._ended.wait(looks):
                return
            if (late := time.monotonic() - self._seen) > self._limit:
                what = f"nothing has ended for {late / 60:.2g} minutes, in {self._doing}"
                self.said.write("hang", AGAIN, f"{what}; see {self._folder}")
                self._end(what, grace)
            said = self.said.read()
            if said is not None and said.outcome == "hang":
                self._end(f"process {said.rank} hangs; this one is in {self._doing}", grace)
            if said is not None and said.outcome in ("failed", "lost") and said.rank != self._rank:
                # Whose collectives tell it so ends by itself, and says more.
                if self._ended.wait(grace):
                    return
                _tell(self._rank, f"process {said.rank} has ended the run: {said.reason}")
                os._exit(said.code)

    def _end(self, what: str, grace: float) -> None:
        faulthandler.dump_traceback_later(2 * grace, exit=True, file=self._file)  # should a disk hang as well
        keys = ", ".join(self._keys[:_KEYS_SHOWN]) or "none"
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        text = f"{now} UTC, process {self._rank} of {self._size}: {what}\nlast keys: {keys}\n"
        with suppress(OSError):  # a full disk is no reason to stay
            os.write(self._file, text.encode())
            faulthandler.dump_traceback(self._file, all_threads=True)
        _tell(self._rank, f"{what}: the stacks of all threads are in {self._own}; ended, to be started again")
        until = time.monotonic() + grace
        while (silent := self._silent()) and time.monotonic() < until:
            time.sleep(0.1)
        if silent:
            _tell(self._rank, f"no word from process {', '.join(map(str, silent))}: stopped, or its machine is gone")
        os._exit(AGAIN)

    def _silent(self) -> list[int]:
        """The other processes that have not said where they are."""
        said = set()
        with suppress(OSError):
            said = {file.name for file in self._folder.iterdir() if file.stat().st_size}
        return [rank for rank in range(self._size) if rank != self._rank and f"rank{rank}.txt" not in said]


def _tell(rank: int, what: str) -> None:
    """Without any lock that a thread which hangs may hold."""
    with suppress(OSError):
        os.write(2, f"shardpipe-train (rank {rank}): {what}\n".encode())

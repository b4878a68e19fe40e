"""Replicas of a data service, each a process of its own, which end with the demo, however that ends."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from shardpipe.demo.stage import last_words
from shardpipe.errors import ShardpipeError

__all__ = ["DATASET", "Replica", "running"]

DATASET = "demo"
# The wing that has this command stands above.
_MAIN = "from shardpipe.cli import main; main()"
_LISTENS = " at http://127.0.0.1:"
_START_SECONDS = 120.0
_LOOK_EVERY_SECONDS = 0.05


class Replica:
    """One `shardpipe serve` on the loopback, which keeps its port when it is started anew."""

    def __init__(self, name: str, data: Path, log: Path) -> None:
        self.name = name
        self.port = 0
        self._data = data
        self._log = log
        self._said_before = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def arguments(self) -> list[str]:
        return ["serve", str(self._data), "--name", DATASET, "--bind", f"127.0.0.1:{self.port}"]

    @property
    def command(self) -> str:
        return shlex.join(["shardpipe", *self.arguments])

    def start(self) -> None:
        """Begins to start it."""
        with open(self._log, "ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, *self.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def listens(self) -> bool:
        """Whether it can be asked, since it was last started. Raises ShardpipeError if it has ended."""
        assert self._process is not None
        said = self._log.read_bytes()[self._said_before :].decode(errors="replace")
        if _LISTENS in said:
            self.port = int(said.partition(_LISTENS)[2].split()[0])
            return True
        if self._process.poll() is not None:
            raise ShardpipeError(
                f"replica {self.name} ended with code {self._process.returncode}: {last_words(self._log)}",
                where=str(self._data),
                fix=f"See {self._log} for all of it.",
            )
        return False

    def kill(self) -> None:
        """Ends it at once, a frozen one too; it does nothing to one that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Its connections stay open, and nothing comes of them."""
        self._send(signal.SIGSTOP)

    def let_go_on(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextmanager
def running(*replicas: Replica) -> Iterator[None]:
    """Starts them, and goes on when all can be asked; when the block is left, by a signal too, they are killed."""
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for replica in replicas:
            replica.start()
        until = time.monotonic() + _START_SECONDS
        while not all(replica.listens for replica in replicas):
            if time.monotonic() > until:
                raise ShardpipeError(f"no replica listens within {_START_SECONDS:.0f} s")
            time.sleep(_LOOK_EVERY_SECONDS)
        yield
    finally:
        for replica in replicas:
            replica.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """A signal that would end this process without a further word."""
    raise SystemExit(128 + number)

"""Signals that ask a run to stop."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from shardpipe.train.ending.exits import AGAIN, INTERRUPTED

__all__ = ["Stop", "leaving", "stopping"]

_ASKS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Whether this process is to stop: for good, as a signal asks, or because so many minutes have gone by."""

    def __init__(self, say: Callable[[str], None], minutes: float | None) -> None:
        self._say = say
        self._minutes = minutes
        self._ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._interrupts = 0
        self._asked = self._over = False

    def __call__(self) -> bool:
        """Whether a signal has come or the time is over."""
        if not (self._asked or self._over) and time.monotonic() >= self._ends:
            self._say(f"{self._minutes:g} minutes are over: stopping")
            self._over = True
        return self._asked or self._over

    def has_been_asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked

    def receive(self, number: int) -> None:
        """A signal has come. Nothing waits for a second Ctrl-C."""
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            with suppress(OSError):  # nobody may be listening any more
                os.write(2, b"SIGINT again: ended at once; the run goes on from its last checkpoint\n")
            os._exit(INTERRUPTED)
        if not self._asked:
            self._asked = True
            self._say(f"{signal.Signals(number).name}: stopping after this step")


@contextmanager
def stopping(say: Callable[[str], None], minutes: float | None) -> Iterator[Stop]:
    """Has SIGTERM, SIGINT and SIGUSR1 ask for a stop and do nothing else meanwhile. For the main thread."""
    stop = Stop(say, minutes)
    with _received(stop.receive):
        yield stop


def leaving() -> AbstractContextManager[None]:
    """Has the same signals end this process, to be started again, while there is nothing yet to save."""
    return _received(lambda _: os._exit(AGAIN))


@contextmanager
def _received(receive: Callable[[int], object]) -> Iterator[None]:
    """Has a thread receive the signals: the main one may be waiting where Python's own handlers have no turn."""
    ours, systems = socket.socketpair()
    systems.setblocking(False)

    def listen() -> None:
        while numbers := ours.recv(64):
            for number in numbers:
                if number in _ASKS:
                    receive(number)

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    before = {number: signal.signal(number, lambda *_: None) for number in _ASKS}
    woken = signal.set_wakeup_fd(systems.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        systems.close()
        thread.join()
        ours.close()

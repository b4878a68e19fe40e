"""Processes that make batches, for transforms that hold the GIL.

Each has a pipe of its own: work goes in, and out comes the batch but for its audio, which it puts into memory that it
shares with this process. It ends with the pipe, and with this process even in a transform, unless that never
lets go of the GIL.
"""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, TypeAlias
from weakref import finalize

import numpy as np

from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.loading.making.buffers import Arena, Room, SharedBytes, memory_for
from shardpipe.loading.making.maker import Maker, Padded, Skipped
from shardpipe.loading.read import Payload
from shardpipe.loading.work import Work
from shardpipe.runtime import PROCESS, abandoned, after_fork, exit_with_parent, unguarded

__all__ = ["Workers", "check_picklable"]

_Worker: TypeAlias = tuple[BaseProcess, Connection]
_Answer: TypeAlias = tuple[Exception | None, str, Any, list[Skipped]]
"""An error with its trace, or what was made and what of it was skipped."""

_THERE: _Answer = (None, "", None, [])

_LOOK = 0.2  # seconds between looks at whether an answer is still wanted
_PATIENCE = 5.0  # seconds that one may take which is not: to begin a process again takes as long


def check_picklable(**values: object) -> None:
    """Raises ConfigError for what cannot travel to worker processes."""
    for name, value in values.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            rule = f"with workers it must pickle, and does not ({error})"
            raise ConfigError(name, value, rule, fix="Define it at the top level of a module.") from error


class Workers:
    """Calls `make` in `number` processes, begun with the first call and kept as long as this object lives.

    The audio of their batches lies in an arena of `size` bytes. Safe for threads, each of which waits for its own
    batch. Pickled or forked, it begins processes anew.
    """

    def __init__(self, number: int, make: Maker, size: int) -> None:
        self._given = number, make, size
        self._begin()
        after_fork(self, Workers._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._pool: _Pool | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, self._given

    def __call__(self, work: Work, fetched: Mapping[int, Payload]) -> tuple[Any, list[Skipped]]:
        return self._ready().make(work, fetched)

    def begin(self) -> None:
        """Returns when all processes can make a batch at once. Raises ShardpipeError if one cannot be had."""
        self._ready().begin()

    def _ready(self) -> _Pool:
        with self._lock:
            if self._pool is None or self._pool.broken:
                self._pool = _Pool(*self._given)
            return self._pool


class _Pool:
    def __init__(self, number: int, make: Maker, size: int) -> None:
        self.broken = False
        self._number = number
        self._form = make.form
        self._arena = Arena(size, shared=True)
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        # spawn: a fork would copy the locks of threads that do not live on in it.
        context = get_context("spawn")
        with _interrupts_held():
            for _ in range(number):
                connection, end = context.Pipe()
                arguments = (end, make, self._arena.shared)
                process = context.Process(target=_serve, args=arguments, daemon=True, name=PROCESS)
                process.start()
                end.close()
                self._idle.put((process, connection))
                finalize(self, connection.close)

    def begin(self) -> None:
        workers = [self._idle.get() for _ in range(self._number)]
        try:
            for process, connection in workers:
                with self._noting_death(process):
                    connection.send(())
            for worker in workers:
                self._answer(worker)
        finally:
            for worker in workers:
                self._idle.put(worker)

    def make(self, work: Work, fetched: Mapping[int, Payload]) -> tuple[Any, list[Skipped]]:
        sent = {i: bytes(payload) if isinstance(payload, memoryview) else payload for i, payload in fetched.items()}
        # Room for the batch unless a transform lengthens it.
        room = memory_for(self._arena.empty, self._form.shape(work.rows), self._form.dtype)
        error, trace, made, skipped = self._ask(work, sent, self._arena.start(room), room.nbytes)
        if error is not None:
            raise error from _Trace(trace)
        if isinstance(made, Padded) and isinstance(made.audio, tuple):
            made = replace(made, audio=room.reshape(-1)[: math.prod(made.audio)].reshape(made.audio))
        return made, skipped

    def _ask(self, *question: Any) -> _Answer:
        process, connection = worker = self._idle.get()
        try:
            with self._noting_death(process):
                connection.send(question)
            return self._answer(worker)
        finally:
            self._idle.put(worker)

    def _answer(self, worker: _Worker) -> _Answer:
        process, connection = worker
        with self._noting_death(process):
            _await(process, connection)
            answer: _Answer = connection.recv()
            return answer

    @contextmanager
    def _noting_death(self, process: BaseProcess) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self.broken = True
            process.join(_PATIENCE)
            raise unguarded([process]) or ShardpipeError(
                "a worker process died",
                fix="Memory may have run out (take fewer workers), the transform may have crashed, or the script that "
                'starts the loader lacks `if __name__ == "__main__":`.',
            ) from error


def _await(process: BaseProcess, connection: Connection) -> None:
    """Waits for an answer; a transform that hangs does not hold up who has left the loop. Raises EOFError if the
    process ends: what it has started itself may keep the pipe from telling.
    """
    given_up = math.inf
    while not connection.poll(_LOOK):
        if not process.is_alive() and not connection.poll():
            raise EOFError
        if abandoned():
            given_up = min(given_up, time.monotonic() + _PATIENCE)
        if time.monotonic() > given_up:
            process.kill()
            given_up = math.inf


class _Trace(Exception):
    """Where in its process a worker failed: the cause of the error that it sent."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """What is started here gets no Ctrl-C before `_serve`: its imports take seconds, and would be torn."""
    resource_tracker.ensure_running()  # else the first process starts it, which lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, make: Maker, shared: SharedBytes) -> None:
    os.set_inheritable(connection.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # for what a transform may start
    threading.Thread(target=exit_with_parent, daemon=True).start()  # a transform that hangs sees no end of the pipe
    with suppress(EOFError, ConnectionError):
        while True:
            question = connection.recv()
            connection.send_bytes(_answer(make, shared, *question) if question else ForkingPickler.dumps(_THERE))


def _answer(
    make: Maker, shared: SharedBytes, work: Work, fetched: Mapping[int, Payload], start: int | None, size: int
) -> Any:
    room = Room(shared, start, size)
    try:
        made, skipped = replace(make, empty=room.empty)(work, fetched)
        if isinstance(made, Padded) and isinstance(made.audio, np.ndarray) and made.audio is room.array:
            made = replace(made, audio=made.audio.shape)
        return ForkingPickler.dumps((None, "", made, skipped))
    except Exception as error:
        return ForkingPickler.dumps((_sendable(error), traceback.format_exc(), None, []))


def _sendable(error: Exception) -> Exception:
    """The error itself if it survives the journey."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
        return copy
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")

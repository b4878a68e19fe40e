"""One question put to one replica after another, or to two at once.

A refusal, silence, a broken connection or a wrong checksum means the next one. A slow one's question is put once more,
to another, and who answers first is taken.
"""

from __future__ import annotations

import random
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shardpipe.errors import StoreError
from shardpipe.loading.served.access import Access
from shardpipe.loading.served.connection import Body, Broken, Connection, Head, request_head
from shardpipe.loading.served.replicas import Replica, Replicas
from shardpipe.loading.wire import Refusal
from shardpipe.runtime import GIVEN_UP, abandoned
from shardpipe.store import Retry, parsed

__all__ = ["Busy", "Exchange", "Question"]

_T = TypeVar("_T")
_random = random.SystemRandom()

_SLICE = 0.1
"""Seconds between looks at whether a replica has been left alone, or nobody waits any more."""
_DEADLINE = 120.0
"""Seconds for a call, whatever it is: a replica may say that it lives, and yet never answer."""
_REFUSAL_MAX = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Question(Generic[_T]):
    """One request, and what becomes of its answer.

    key: what replicas are ranked by. take: makes something of the head and the body; ValueError if the answer is wrong.
    doubt: whether what was made may come out better from another replica.
    """

    method: str
    path: str
    key: str
    take: Callable[[Head, Body], _T]
    lines: tuple[bytes, ...] = ()
    body: bytes = b""
    doubt: Callable[[_T], bool] = lambda _: False


class _Next(Exception):
    """This replica does not answer the question; another may."""


class Busy(Exception):
    """All replicas are."""


@dataclass(eq=False)
class _Call:
    replica: Replica
    connection: Connection
    reused: bool
    number: int
    shown: bytes
    """The header that shows a token."""
    began: float = field(default_factory=time.monotonic)


class Exchange(Generic[_T]):
    """A question on its way; used by one thread."""

    def __init__(self, replicas: Replicas, access: Access, question: Question[_T], retry: Retry) -> None:
        self._replicas = replicas
        self._access = access
        self._question = question
        self._retry = retry
        self._calls: list[_Call] = []
        self._tried: set[Replica] = set()
        self._busy = self._failed = False
        self._doubtful: list[_T] = []
        self._told: Exception | None = None

    def round(self) -> _T:
        """Asks every replica in use, one after the other. Raises StoreError, transient if another round may help."""
        self._tried, self._busy = set(), False
        hedged = False
        try:
            while True:
                if not self._calls and not self._begin():
                    return self._without()
                for call in self._ready():
                    with self._next(call):
                        if (head := call.connection.advance()) is not None:
                            return self._taken(call, head)
                for call in list(self._calls):
                    with self._next(call):
                        self._look_at(call)
                if not hedged and self._calls and self._is_slow(self._calls[0]):
                    hedged = self._begin(hedge=True)
                if abandoned():
                    raise StoreError(GIVEN_UP, url=self._replicas.url, fix="")
        finally:
            for call in list(self._calls):
                self._end(call)

    def _begin(self, *, hedge: bool = False) -> bool:
        """Puts the question to the next replica; whether there is one."""
        for replica in self._replicas.ranked(self._question.key):
            if replica in self._tried:
                continue
            if time.monotonic() < replica.busy_until:
                self._busy = True
                continue
            if hedge and not self._replicas.may_hedge():
                return False
            if self._call(replica):
                return True
        return False

    def _call(self, replica: Replica) -> bool:
        self._tried.add(replica)
        question = self._question
        try:
            connection, reused = replica.connection(self._access.tls_for(replica.server))
        except Broken as error:
            self._replicas.failed(replica, str(error))
            return False
        shown = self._access.header
        lines = (shown, *question.lines, b"Content-Length: %d\r\n" % len(question.body))
        connection.ask(request_head(question.method, replica.server, question.path, *lines) + question.body)
        call = _Call(replica, connection, reused, self._replicas.called(again=self._failed), shown)
        replica.calls[call.number] = call.began
        self._calls.append(call)
        return True

    def _ready(self) -> list[_Call]:
        poll = select.poll()
        for call in self._calls:
            poll.register(call.connection, call.connection.events)
        found = {descriptor for descriptor, _ in poll.poll(1000 * _SLICE)}
        return [call for call in self._calls if call.connection.fileno() in found]

    @contextmanager
    def _next(self, call: _Call) -> Iterator[None]:
        """What goes wrong with a call ends it, and the round goes on."""
        try:
            yield
        except Broken as error:
            self._end(call)
            if abandoned():  # which is why, and no fault of the replica's
                return
            if call.reused:  # closed by the server in the meantime, as a rule: that is no fault
                call.replica.close()
                self._call(call.replica)
            else:
                self._failed = True
                self._replicas.failed(call.replica, str(error))
        except _Next:
            self._end(call)
            self._failed = True

    def _look_at(self, call: _Call) -> None:
        if call.replica.fault is not None:
            raise _Next
        if time.monotonic() - call.began > _DEADLINE:
            call.reused = False
            raise Broken(f"it has not answered in {_DEADLINE:.0f} s")

    def _is_slow(self, call: _Call) -> bool:
        p95 = self._replicas.p95
        return p95 is not None and time.monotonic() - call.began > p95

    def _taken(self, call: _Call, head: Head) -> _T:
        """What the answer holds. Raises what it says is wrong with the question, and _Next."""
        replica, call.reused = call.replica, False
        seconds = self._retry.limit(head.length)
        body = call.connection.body(head.length, seconds=seconds, wanted=lambda: replica.fault is None)
        if head.status not in (200, 206):
            raise self._refused(call, head, body)
        try:
            made = self._question.take(head, body)
        except ValueError as error:
            raise Broken(f"its answer is damaged: {error}") from error
        self._replicas.brought(replica, time.monotonic() - call.began)
        self._keep(call)
        if self._question.doubt(made) and len(self._replicas.up) > len(self._tried):
            self._doubtful.append(made)
            raise _Next
        return made

    def _refused(self, call: _Call, head: Head, body: Body) -> Exception:
        """What to make of an answer that is none."""
        replica, refusal = call.replica, _refusal(head, body)
        if head.status in (413, 422, 429) and not body.left:
            self._keep(call)
        if head.status == 429:
            replica.busy_until = time.monotonic() + min(5.0, max(0.05, head.retry_after)) * _random.random()
            self._busy = True
            return _Next()
        if head.status == 422 and refusal is not None:
            if refusal.kind != "shard":
                return refusal.error()
            self._told = refusal.error()  # another replica may have the shard whole
            return _Next()
        if head.status == 413 and refusal is not None:
            self._told = StoreError(refusal.what, url=replica.name, fix=refusal.fix)  # another may have more memory
            return _Next()
        if head.status == 401 and self._access.renewed(call.shown):
            return Broken("the token has changed")
        what = refusal.what if refusal else f"it answers HTTP {head.status}"
        # 408: it was this side that was slow.
        self._replicas.failed(replica, what, lasts=400 <= head.status < 500 and head.status != 408)
        return _Next()

    def _keep(self, call: _Call) -> None:
        """The call is over, and its connection good for another."""
        self._calls.remove(call)
        call.replica.calls.pop(call.number, None)
        call.replica.give_back(call.connection)

    def _end(self, call: _Call) -> None:
        with suppress(ValueError):
            self._calls.remove(call)
            call.connection.close()
        call.replica.calls.pop(call.number, None)

    def _without(self) -> _T:
        """No replica is left that could be asked."""
        if self._doubtful:
            return self._doubtful[-1]
        if self._told is not None:
            raise self._told
        if self._busy:
            raise Busy("all servers are busy")
        replicas = self._replicas.all
        if not replicas:
            raise StoreError(
                self._replicas.resolve_fault or "no server is named",
                url=self._replicas.url,
                fix="Check the addresses.",
                transient=True,
            )
        what = "; ".join(f"{one.name}: {one.fault or 'it is in use again'}" for one in replicas)
        lasts = all(one.fault is not None and one.lasts for one in replicas)
        fix = "Start the servers again, or name others." if not lasts else "Ask others, or mend these."
        raise StoreError(f"no server makes batches ({what})", url=self._replicas.url, fix=fix, transient=not lasts)


def _refusal(head: Head, body: Body) -> Refusal | None:
    if head.length > _REFUSAL_MAX:
        return None
    try:
        return parsed(body.rest(), Refusal)
    except ValueError:
        return None

"""The thread that looks after replicas: it asks those that are left alone whether they are good again, and those that
owe an answer whether they live.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shardpipe.loading.served.access import Access
from shardpipe.loading.served.connection import Broken, Connection, Head, request_head
from shardpipe.loading.served.replicas import Replica, Replicas
from shardpipe.loading.wire import About
from shardpipe.store import parsed

__all__ = ["Watch"]

_LOOK = 0.05
_RESOLVE_EVERY = 30.0
_RESOLVE_WITHOUT = 1.0
"""Seconds between, while no replica is in use."""
_ALIVE_WITHIN = 0.3
"""Seconds in which a replica that owes an answer must say that it lives."""
_ANSWER_WITHIN = 2.0
"""Seconds in which one that was left alone must say what it is."""
_OVERDUE_FIRST = 0.5
_OVERDUE = 0.25
_ABOUT_MAX = 1 << 22


@dataclass(eq=False)
class _Probe:
    replica: Replica
    connection: Connection
    seconds: float
    began: float = field(default_factory=time.monotonic)
    is_of_life: bool = False
    shown: bytes = b""
    """The header that shows a token."""


class Watch:
    """Looks after replicas from `begin` to `end`. `accept` says why one is refused, by what it says of itself."""

    def __init__(self, replicas: Replicas, access: Access, accept: Callable[[About], str | None]) -> None:
        self._replicas = replicas
        self._access = access
        self._accept = accept
        self._stop: threading.Event | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stop": None}

    def begin(self) -> None:
        self._stop = threading.Event()
        threading.Thread(target=self._run, args=(self._stop,), name="shardpipe", daemon=True).start()

    def end(self) -> None:
        if self._stop is not None:
            self._stop.set()
        self._stop = None

    def _run(self, stop: threading.Event) -> None:
        probes: list[_Probe] = []
        # In a thread of its own: who asks DNS may have to wait long for it.
        threading.Thread(target=self._resolve, args=(stop,), name="shardpipe", daemon=True).start()
        while not stop.is_set():
            probed = {probe.replica for probe in probes}
            for replica in self._replicas.all:
                if replica not in probed and (probe := self._due(replica)):
                    probes.append(probe)
            poll = select.poll()
            for probe in probes:
                poll.register(probe.connection, probe.connection.events)
            ready = {descriptor for descriptor, _ in poll.poll(1000 * _LOOK)} if probes else set()
            if not probes:
                stop.wait(_LOOK)
            probes = [probe for probe in probes if self._goes_on(probe, ready)]
        for probe in probes:
            probe.connection.close()

    def _resolve(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._replicas.resolve()
            resolved_at = time.monotonic()
            # Whoever is gone may come back at another address.
            while not stop.wait(_RESOLVE_WITHOUT) and self._replicas.up:
                if time.monotonic() >= resolved_at + _RESOLVE_EVERY:
                    break

    def _due(self, replica: Replica) -> _Probe | None:
        """A probe of a replica, if it is time for one."""
        now = time.monotonic()
        p95 = self._replicas.p95
        limit = _OVERDUE_FIRST if p95 is None else max(_OVERDUE, 1.3 * p95)
        overdue = replica.fault is None and any(now - began > limit for began in list(replica.calls.values()))
        if not overdue and (replica.fault is None or now < replica.probe_at):
            return None
        try:
            connection = Connection(replica.server, replica.address, self._access.tls_for(replica.server))
        except Broken as error:
            self._replicas.failed(replica, str(error), probed=True)
            return None
        shown = b"" if overdue else self._access.header
        connection.ask(request_head("GET", replica.server, "/healthz" if overdue else "/about", shown))
        seconds = _ALIVE_WITHIN if overdue else _ANSWER_WITHIN
        return _Probe(replica, connection, seconds, is_of_life=overdue, shown=shown)

    def _goes_on(self, probe: _Probe, ready: set[int]) -> bool:
        """Whether its answer is still to come."""
        replica, head = probe.replica, None
        try:
            if probe.connection.fileno() in ready and (head := probe.connection.advance()):
                if probe.is_of_life:
                    if head.status >= 500:
                        raise Broken(f"it is not well (HTTP {head.status})")
                else:
                    self._heard(probe, head)
            elif time.monotonic() - probe.began > probe.seconds:
                raise Broken("it is silent")
            else:
                return True
        except Broken as error:
            self._replicas.failed(replica, str(error), probed=True)
        probe.connection.close()
        return False

    def _heard(self, probe: _Probe, head: Head) -> None:
        """What a replica has said of itself is as it should be, or Broken says what is not."""
        replica = probe.replica
        if head.status in (401, 403):
            if self._access.renewed(probe.shown):
                raise Broken("the token has changed")
            self._replicas.failed(replica, "it refuses the token: give its own by token_file", lasts=True, probed=True)
            return
        if head.status != 200 or head.length > _ABOUT_MAX:
            what = (
                "it is about to end" if head.status == 503 else f"it answers HTTP {head.status}, as no server of ours"
            )
            raise Broken(what)
        data = probe.connection.body(head.length, seconds=1, wanted=lambda: True).rest()
        try:
            about = parsed(data, About)
        except ValueError as error:
            raise Broken(f"what it says of itself cannot be read ({error})") from error
        replica.about = about
        if refused := self._accept(about):
            self._replicas.failed(replica, refused, lasts=True, probed=True)
        else:
            self._replicas.answered(replica)

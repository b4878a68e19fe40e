"""The replicas of a service: which to ask for what, which are left alone, and what is known of how long they take."""

from __future__ import annotations

import hashlib
import logging
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from shardpipe.loading.served.addresses import Address, Server
from shardpipe.loading.served.connection import Connection
from shardpipe.loading.wire import About
from shardpipe.runtime import after_fork, keep

__all__ = ["Replica", "Replicas"]

_log = logging.getLogger("shardpipe")
# Not the generator that users seed.
_random = random.SystemRandom()

_IDLE_MAX = 16
"""Connections kept to a replica for later calls."""
_IDLE_SECONDS = 30.0
"""Less than servers keep them."""
_FIRST_PROBE, _LAST_PROBE = 0.1, 5.0
_LAST_PROBE_WITHOUT = 1.0
"""Seconds between probes of one replica at most, while there is another in use, and while there is none."""
_ENOUGH = 20
"""Calls after which their durations say something."""
_HEDGED_SHARE = 0.05


class Replica:
    """One process that makes batches, as far as this one knows it."""

    def __init__(self, server: Server, address: Address) -> None:
        self.server = server
        self.address = address
        self.name = f"{server.scheme}://{address}{server.path}"
        self.about: About | None = None
        """What it has last said of itself."""
        self.fault: str | None = "it has not been asked yet"
        """Why it is left alone; None if it is in use."""
        self.lasts = False
        """Whether that is a refusal, which no waiting mends."""
        self.calls: dict[int, float] = {}
        """When those began that it has not answered yet."""
        self.busy_until = 0.0
        self.probe_at = 0.0
        self.failures = 0
        self._idle: list[tuple[float, Connection]] = []

    @property
    def was_asked(self) -> bool:
        """Whether anything is known of it."""
        return self.fault is None or self.failures > 0

    def fingerprint(self, dataset: str) -> str | None:
        """Of the dataset that it has by this name, as far as it has said."""
        found = self.about and self.about.datasets.get(dataset)
        return found.fingerprint if found else None

    def connection(self, tls: ssl.SSLContext | None) -> tuple[Connection, bool]:
        """A connection, and whether it has been used before: the server may have closed it since. Raises Broken."""
        while self._idle:
            try:
                since, connection = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - since < _IDLE_SECONDS:
                return connection, True
            connection.close()
        return Connection(self.server, self.address, tls), False

    def give_back(self, connection: Connection) -> None:
        """Keeps one whose answer has come to its end."""
        if len(self._idle) < _IDLE_MAX and not self.fault:
            self._idle.append((time.monotonic(), connection))
        else:
            connection.close()

    def close(self) -> None:
        idle, self._idle = self._idle, []  # not one by one: others take from it
        for _, connection in idle:
            connection.close()


class Replicas:
    """All that the servers' names stand for, and what is known of each. Safe for threads."""

    def __init__(self, servers: Iterable[Server]) -> None:
        self.servers = tuple(servers)
        self.changed = threading.Condition()
        self.all: list[Replica] = []
        self.num_calls = self.num_answers = self.num_failures = self.num_retries = self.num_hedges = 0
        self._seconds: deque[float] = deque(maxlen=200)
        self._p95 = 0.0
        self.resolve_fault = ""
        after_fork(self, Replicas._forked)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in this process or another, gets to know them for itself."""
        return Replicas, (self.servers,)

    def _forked(self) -> None:
        """What was under way is the parent's, and so are its connections."""
        self.changed = threading.Condition()
        keep(self.all)
        self.all = []

    def resolve(self) -> None:
        """Asks DNS anew; what it does not know any more is let go of, if it knows any."""
        servers = self.servers
        there: dict[Server, list[Address]] = {}
        for server in servers:
            try:
                there[server] = server.addresses()
            except OSError as error:
                self.resolve_fault = str(error)
        with self.changed:
            if servers is not self.servers:  # others were named meanwhile, and looked up then
                return
            known = {replica.name: replica for replica in self.all}
            found = {name: one for name, one in known.items() if one.server in set(servers) - there.keys()}
            for server, addresses in there.items():
                fresh = [Replica(server, address) for address in addresses]
                found |= {one.name: known.get(one.name, one) for one in fresh}
            for name in known.keys() - found.keys():
                known[name].fault = "it is not among the servers any more"
                known[name].close()
            self.all = list(found.values())
            self.changed.notify_all()

    @property
    def url(self) -> str:
        """Where they are, for messages."""
        return ", ".join(server.url for server in self.servers)

    @property
    def up(self) -> list[Replica]:
        return [replica for replica in self.all if replica.fault is None]

    def ranked(self, key: str) -> list[Replica]:
        """Those in use, in the order in which to ask them for what has this key: every client has the same one, so that
        jobs that want the same meet at the same replica (rendezvous hashing: D. Thaler and C. Ravishankar, "Using
        name-based mappings to increase hit rates", 1998). Who has far more to do than the others, or said that it is
        busy, comes last.
        """
        now, up = time.monotonic(), self.up
        most = 1.25 * sum(len(replica.calls) for replica in up) / max(1, len(up)) + 1

        def rank(replica: Replica) -> tuple[bool, bool, bytes]:
            hashed = hashlib.blake2b(f"{key} {replica.name}".encode(), digest_size=8).digest()
            return now < replica.busy_until, len(replica.calls) > most, hashed

        return sorted(up, key=rank)

    def failed(self, replica: Replica, fault: str, *, lasts: bool = False, probed: bool = False) -> None:
        """Leaves a replica alone until it answers a probe, which comes the later the more often it has failed. Of
        calls that fail together the first one counts; a probe always does.
        """
        with self.changed:
            if replica.fault is not None and not probed:
                return
            if replica.fault is None or replica.fault != fault:
                _log.warning("the server %s is left alone until it answers again: %s", replica.name, fault)
            if replica.fault is None:
                self.num_failures += 1
            replica.fault, replica.lasts = fault, lasts
            last = _LAST_PROBE if self.up else _LAST_PROBE_WITHOUT
            wait = min(last, _FIRST_PROBE * 2.0 ** min(replica.failures, 16))
            replica.failures += 1
            replica.probe_at = time.monotonic() + wait * (0.5 + _random.random() / 2)
            replica.close()
            self.changed.notify_all()

    def answered(self, replica: Replica) -> None:
        """A probe has found it good."""
        with self.changed:
            if replica.failures and replica.fault is not None:
                _log.info("the server %s is in use again", replica.name)
            replica.fault, replica.lasts = None, False
            self.changed.notify_all()

    def brought(self, replica: Replica, seconds: float) -> None:
        """A call has had its answer."""
        replica.failures = 0
        self.num_answers += 1
        self._seconds.append(seconds)
        if len(self._seconds) >= _ENOUGH:
            self._p95 = sorted(self._seconds)[int(0.95 * len(self._seconds))]

    @property
    def p95(self) -> float | None:
        """Seconds that 95 % of the last calls took at most; None before there were some."""
        return self._p95 or None

    def may_hedge(self) -> bool:
        """Whether one more call may be made twice; counts it."""
        with self.changed:
            if self.num_hedges + 1 > _HEDGED_SHARE * self.num_calls:
                return False
            self.num_hedges += 1
            return True

    def called(self, *, again: bool) -> int:
        """Counts a call, and numbers it; `again` if one for the same has failed."""
        with self.changed:
            self.num_retries += again
            self.num_calls += 1
            return self.num_calls

    def close(self) -> None:
        for replica in self.all:
            replica.close()

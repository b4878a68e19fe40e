"""What servers say to who looks at them, and asks no batch of them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from shardpipe.loading.served.access import Access
from shardpipe.loading.served.addresses import Server, hosts_of
from shardpipe.loading.served.connection import Broken, Connection, request_head
from shardpipe.loading.served.replicas import Replica
from shardpipe.runtime import pool

__all__ = ["Onlooker", "Seen"]

_SECONDS = 2.0
"""In which a replica must have answered."""
_BODY_MAX = 1 << 24
_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one replica has said: status and body by path, as far as `fault` has not put an end to it."""

    name: str
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    fault: str = ""


class Onlooker:
    """Asks all replicas of servers, given as a loader's are, with or without a dataset's name. Raises ConfigError."""

    def __init__(
        self,
        places: str | Iterable[str],
        *,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
    ) -> None:
        self._servers = hosts_of(places)
        self._access = Access(token_file, tls_ca)

    def look(self, *paths: str) -> list[Seen]:
        """What each of them says at these paths, in the order of their URLs; whoever is not found is one of them."""
        found: list[Seen | Replica] = []
        for server in self._servers:
            try:
                found += [Replica(server, address) for address in server.addresses()]
            except OSError as error:
                found.append(_unfound(server, error))
        with pool(min(_AT_ONCE, len(found)), "shardpipe") as threads:
            return list(threads.map(lambda one: one if isinstance(one, Seen) else self._seen(one, paths), found))

    def _seen(self, replica: Replica, paths: Iterable[str]) -> Seen:
        answers: dict[str, tuple[int, bytes]] = {}
        until = time.monotonic() + _SECONDS
        try:
            for path in paths:
                answers[path] = self._told(replica, path, until)
        except Broken as error:
            return Seen(name=replica.name, answers=answers, fault=str(error))
        return Seen(name=replica.name, answers=answers)

    def _told(self, replica: Replica, path: str, until: float) -> tuple[int, bytes]:
        connection = Connection(replica.server, replica.address, self._access.tls_for(replica.server))
        try:
            connection.ask(request_head("GET", replica.server, path, self._access.header, b"Connection: close\r\n"))
            while True:
                poll = select.poll()
                poll.register(connection, connection.events)
                if not poll.poll(1000 * max(0.0, until - time.monotonic())):
                    raise Broken("it is silent")
                if (head := connection.advance()) is not None:
                    break
            if head.length > _BODY_MAX:
                raise Broken("its answer is too long")
            return head.status, connection.body(head.length, seconds=_SECONDS, wanted=lambda: True).rest()
        finally:
            connection.close()


def _unfound(server: Server, error: OSError) -> Seen:
    name = f"{server.scheme}://{server.authority}{server.path}"
    return Seen(name=name, fault=str(error))

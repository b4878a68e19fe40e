"""How many connections there are, and how long one may idle: whoever only holds them open gives way to others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

__all__ = ["HANDSHAKE_SECONDS", "Connections"]

HANDSHAKE_SECONDS = 5.0
"""In which TLS must have been agreed on."""

_IDLE_SECONDS = 75.0
_LOOK = 1.0


class _Protocol(web.RequestHandler):
    """Nothing is unpacked that a client has packed, and whoever does not speak HTTP hears nothing of himself."""

    __slots__ = ("ended",)
    ended: Callable[[_Protocol], None]

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.ended(self)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)
        response = web.Response(status=status, headers={"Server": ""})
        response.force_close()
        return response


class _Turned(asyncio.Protocol):
    """One too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class Connections:
    """Makes the protocol of every new connection. Idle ones are closed after a while, and sooner where there are as
    many as may be: the longest idle first, before a new one is turned away.
    """

    def __init__(self, server: web.Server, limit: int) -> None:
        self._server = server
        self._limit = limit
        self._since: dict[Any, float] = {}
        """When a connection came, or its last request ended; those whose handshake goes on among them."""
        self._busy: set[Any] = set()

    def __call__(self) -> asyncio.BaseProtocol:
        if len(self._since) >= self._limit:
            self._forget()
        if len(self._since) >= self._limit:
            idle = [one for one in self._since if one not in self._busy and one.transport is not None]
            if not idle:
                return _Turned()
            self._cut(min(idle, key=self._since.__getitem__))
        loop = asyncio.get_running_loop()
        handler = _Protocol(self._server, loop=loop, access_log=None, auto_decompress=False)  # type: ignore[arg-type]
        handler.ended = self._ended
        self._since[handler] = time.monotonic()
        return handler

    def __len__(self) -> int:
        return len(self._since)

    def begin(self, request: web.BaseRequest) -> None:
        """A request's head is there."""
        self._busy.add(request.protocol)

    def end(self, request: web.BaseRequest) -> None:
        self._busy.discard(request.protocol)
        if request.protocol in self._since:
            self._since[request.protocol] = time.monotonic()

    def cut(self, request: web.BaseRequest) -> None:
        """Ends a request's connection at once."""
        self._cut(request.protocol)

    async def sweep(self) -> None:
        """Closes those that have been idle for too long, for ever."""
        while True:
            await asyncio.sleep(_LOOK)
            self._forget()
            before = time.monotonic() - _IDLE_SECONDS
            for one, since in list(self._since.items()):
                if one not in self._busy and since < before:
                    self._cut(one)

    def _ended(self, one: Any) -> None:
        self._since.pop(one, None)
        self._busy.discard(one)

    def _forget(self) -> None:
        """Those whose handshake came to nothing, and those that are about to end."""
        opening = time.monotonic() - HANDSHAKE_SECONDS
        for one in [one for one, since in self._since.items() if one.transport is None and since < opening]:
            del self._since[one]
        for one in [one for one in self._since if one.transport is not None and one.transport.is_closing()]:
            del self._since[one]

    def _cut(self, one: Any) -> None:
        self._since.pop(one, None)
        if one.transport is not None:
            one.transport.abort()

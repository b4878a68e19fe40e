"""HTTP/1.1 over a socket that a thread can wait for beside others, and that writes a body where it is to lie.

A body comes by as few calls as the kernel allows, for each may have to wait for the GIL while a training loop is busy
in Python: over plain sockets by one.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import NamedTuple

from shardpipe.loading.served.addresses import Address, Server
from shardpipe.runtime import abandoned

__all__ = ["Body", "Broken", "Connection", "Head", "request_head"]

_HEAD_MAX = 1 << 16
_CALL_MAX = 1 << 30
_LOOK = 0.1  # seconds between looks at whether anybody waits still


class Broken(Exception):
    """A connection that gives no answer, or none that can be read."""


class Head(NamedTuple):
    """What an answer begins with."""

    status: int
    length: int
    """Bytes of the body."""
    retry_after: float
    """Seconds; 0 if it does not say."""
    etag: str
    size: int
    """Bytes of the file of which it is a range; 0 if it is none."""
    digest: str
    """Of the body, as RFC 9530 has it; empty if there is none."""


def request_head(method: str, server: Server, path: str, *lines: bytes) -> bytes:
    """A request's head, of these further lines."""
    start = f"{method} {server.path}{path} HTTP/1.1\r\nHost: {server.authority}\r\nAccept-Encoding: identity\r\n"
    return start.encode() + b"".join(lines) + b"\r\n"


class Connection:
    """One request at a time, each as far as it goes without waiting. Raises Broken."""

    def __init__(self, server: Server, address: Address, tls: ssl.SSLContext | None) -> None:
        self.events = select.POLLOUT
        """What to wait for by `poll` before it is advanced."""
        self._shaken = tls is None
        self._connected = False
        self._unsent = memoryview(b"")
        self._came = bytearray()
        try:
            self._sock = sock = socket.socket(address.family, socket.SOCK_STREAM)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._sock = sock = tls.wrap_socket(sock, server_hostname=server.host, do_handshake_on_connect=False)
            sock.setblocking(False)
            status = sock.connect_ex(address.socket)
        except (OSError, ValueError) as error:
            raise Broken(_told(error)) from error
        if status not in (0, errno.EINPROGRESS):
            sock.close()
            raise Broken(os.strerror(status))

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def ask(self, request: bytes) -> None:
        """Begins a request, of head and body."""
        self._unsent = memoryview(request)
        self._came.clear()
        self.events = select.POLLOUT

    def advance(self) -> Head | None:
        """Goes on with it, once `events` have come; the answer's head when all of it is there."""
        try:
            if not self._connected and (error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                raise Broken(os.strerror(error))
            self._connected = True
            return self._advance(self._sock)
        except ssl.SSLWantReadError:
            self.events = select.POLLIN
        except ssl.SSLWantWriteError:
            self.events = select.POLLOUT
        except BlockingIOError:
            self.events = select.POLLOUT if self._unsent else select.POLLIN
        except (OSError, ValueError) as error:
            raise Broken(_told(error)) from error
        return None

    def _advance(self, sock: socket.socket) -> Head:
        if not self._shaken and isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
            self._shaken = True
        while self._unsent:
            self._unsent = self._unsent[sock.send(self._unsent) :]
        while (end := self._came.find(b"\r\n\r\n")) < 0:
            data = sock.recv(_HEAD_MAX)
            if not data or len(self._came) > _HEAD_MAX:
                raise Broken("it closed the connection without an answer" if not data else "its answer has no head")
            self._came += data
        head = _parsed(bytes(self._came[: end + 4]))
        del self._came[: end + 4]
        return head

    def body(self, length: int, *, seconds: float, wanted: Callable[[], bool]) -> Body:
        """What follows a head. It raises Broken unless all of it comes within so many seconds, and while `wanted`."""
        return Body(self._sock, self._came, length, seconds, wanted)


class Body:
    """The rest of an answer, written where it is to lie."""

    def __init__(
        self, sock: socket.socket, came: bytearray, length: int, seconds: float, wanted: Callable[[], bool]
    ) -> None:
        self.left = length
        self._sock = sock
        self._came = came
        self._until = time.monotonic() + seconds
        self._wanted = wanted
        self._flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL

    def fill(self, view: memoryview) -> None:
        """The next bytes, as many as the view has room for."""
        if len(view) > self.left:
            raise Broken("its answer ends too early")
        self.left -= len(view)
        if here := min(len(view), len(self._came)):
            view[:here] = self._came[:here]
            del self._came[:here]
            view = view[here:]
        if not view:
            return
        self._blocking(True)
        try:
            while view:
                view = view[self._received(view) :]
        finally:
            self._blocking(False)

    def rest(self) -> bytes:
        """All that is left of it."""
        data = bytearray(self.left)
        self.fill(memoryview(data))
        return bytes(data)

    def _received(self, view: memoryview) -> int:
        try:
            got = self._sock.recv_into(view, min(len(view), _CALL_MAX), self._flags)
        except (BlockingIOError, TimeoutError):
            got = -1
        except (OSError, ValueError) as error:
            raise Broken(_told(error)) from error
        if not got:
            raise Broken("its answer ends too early")
        if len(view) > max(0, got) and (abandoned() or not self._wanted() or time.monotonic() > self._until):
            raise Broken("its answer does not come to an end")
        return max(0, got)

    def _blocking(self, on: bool) -> None:
        """The kernel keeps the time: with Python's own a plain socket would bring what is there, again and again."""
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(_LOOK if on else 0)
            return
        self._sock.setblocking(on)
        wait = struct.pack("ll", 0, int(_LOOK * 1e6) if on else 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)


def _parsed(head: bytes) -> Head:
    line, _, rest = head.partition(b"\r\n")
    words = line.split(None, 2)
    try:
        if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
            raise ValueError("it does not speak HTTP/1.1")
        headers = parse_headers(BytesIO(rest))
        length = headers.get("Content-Length")
        if length is None or not length.isdecimal() or headers.get("Transfer-Encoding"):
            raise ValueError("it does not say how long it is, as a proxy on the way may have done")
        after = headers.get("Retry-After", "0")
        size = headers.get("Content-Range", "").rpartition("/")[2]
        return Head(
            status=int(words[1]),
            length=int(length),
            retry_after=float(after) if after.isdecimal() else 1.0,
            etag=headers.get("ETag", ""),
            size=int(size) if size.isdecimal() else 0,
            digest=headers.get("Content-Digest", ""),
        )
    except (ValueError, HTTPException) as error:
        raise Broken(f"its answer cannot be read: {error}") from error


def _told(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return str(error.args[-1] if isinstance(error, OSError) and error.args else error) or type(error).__name__

"""A proxy on the loopback that passes HTTP requests on, and spoils some of them the ways that networks do."""

from __future__ import annotations

import random
import re
import socket
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

__all__ = ["KINDS", "FaultyProxy", "running_proxy"]

KINDS = ("503", "reset", "truncated", "stall")

_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_EXPECT = re.compile(rb"^Expect: 100-continue\r\n", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^Content-Length: ([0-9]+)\r", re.IGNORECASE | re.MULTILINE)


class FaultyProxy:
    """Spoils a share of the requests: which ones and how is drawn, seeded, in the order in which they come.

    A fault is an answer of 503, a connection that is reset, a body that ends half way, or silence.
    """

    def __init__(self, target: str, *, share: float = 0.0, kinds: tuple[str, ...] = KINDS, seed: int = 0) -> None:
        self.share = share
        self.kinds = kinds
        self.together = 1
        """Requests are held until so many have been there at once, or for 20 seconds."""
        self.faults: Counter[str] = Counter()
        """What was done how often; "" for nothing."""
        self.most_at_once = 0
        self.stopping = threading.Event()
        self._at_once = 0
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        parts = urlsplit(target)
        self._target = (str(parts.hostname), int(parts.port or 80))

    def handle(self, client: socket.socket) -> None:
        """Serves the one request of a connection."""
        if not (head := _head(client)):
            return
        body = _body(client, head)
        with self._changed:
            kind = self._random.choice(self.kinds) if self._random.random() < self.share else ""
            self.faults[kind] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most_at_once >= self.together, 20)
        try:
            self._answer(client, head, body, kind)
        finally:
            with self._changed:
                self._at_once -= 1

    def _answer(self, client: socket.socket, head: bytes, body: bytes, kind: str) -> None:
        if kind == "503":
            length = 0 if head.startswith(b"HEAD") else len(_BUSY)
            client.sendall(
                b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % length + _BUSY[:length]
            )
        elif kind == "reset":
            # Closed with a linger of 0 seconds, a socket sends RST.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif kind == "stall":
            self.stopping.wait(10)
        else:
            answer = self._fetched(head, body)
            client.sendall(answer[: len(answer) // 2] if kind == "truncated" else answer)

    def _fetched(self, head: bytes, body: bytes) -> bytes:
        head = _EXPECT.sub(b"", head)
        with socket.create_connection(self._target) as server:
            server.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            return b"".join(iter(lambda: server.recv(1 << 16), b""))


def _head(client: socket.socket) -> bytes:
    """What comes before the body, read byte by byte, for that may follow at once; empty if the client has gone."""
    head = b""
    with client.makefile("rb", 0) as file:
        while not head.endswith(b"\r\n\r\n"):
            if not (more := file.read(1)):
                return b""
            head += more
    return head


def _body(client: socket.socket, head: bytes) -> bytes:
    if _EXPECT.search(head):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = _LENGTH.search(head)
    with client.makefile("rb") as file:
        return file.read(int(length[1])) if length else b""


@contextmanager
def running_proxy(
    target: str, *, share: float = 0.0, kinds: tuple[str, ...] = KINDS
) -> Iterator[tuple[FaultyProxy, str]]:
    """A proxy and its URL while it runs."""
    proxy = FaultyProxy(target, share=share, kinds=kinds)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):  # the client has given up, as it should
                proxy.handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            proxy.stopping.set()
            server.shutdown()
            thread.join()

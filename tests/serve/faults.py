"""Faults for the data service: a proxy that spoils the answers of a replica, and what happens to its process."""

from __future__ import annotations

import random
import re
import signal
import socket
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tests.serve.serving import Server

__all__ = ["ANSWER_FAULTS", "PROCESS_FAULTS", "Trouble", "spoiling"]

ANSWER_FAULTS = (
    "flip in the head",
    "flip in the header",
    "flip in the data",
    "cut",
    "reset",
    "stall",
    "delay",
    "429",
    "500",
    "503",
    "garbage",
    "twice",
    "another's",
)
PROCESS_FAULTS = ("killed", "frozen", "drained", "another dataset")

_LENGTH = re.compile(rb"^content-length: *([0-9]+)\r", re.IGNORECASE | re.MULTILINE)
_STALL = 1.0
_DELAY = 0.2
_FROZEN = 2.0


class _Proxy(socketserver.ThreadingTCPServer):
    """Spoils one of `every` answers about batches and the index, the kinds of faults in turn, in an order that is drawn
    anew each time; probes pass.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str, every: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        host, _, port = target.rpartition("/")[2].rpartition(":")
        self.target = (host, int(port))
        self.every = every
        self.faults: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.random = random.Random(seed)
        self._lock = threading.Lock()
        self._deck: list[str] = []
        self._answers = 0
        self._last: tuple[bytes, bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients leave, and so do replicas: that is what all of this is about."""

    def fault(self, request: bytes, answer: bytes) -> tuple[str, bytes]:
        """What to do to an answer, and one that somebody else got."""
        is_batch = request.startswith(b"POST /batch ")
        if not is_batch and not request.startswith(b"GET /index/"):
            return "", b""
        with self._lock:
            self._answers += 1
            other = self._last[1] if self._last and self._last[0] != request else b""
            if is_batch:
                self._last = (request, answer)
            if self._answers % self.every:
                return "", b""
            if not self._deck:
                self._deck = self.random.sample(ANSWER_FAULTS, len(ANSWER_FAULTS))
            # What cannot be done to this answer is done to a later one.
            can = [kind for kind in self._deck if (is_batch or "header" not in kind) and (other or kind != "another's")]
            if not can:
                return "", b""
            self._deck.remove(kind := can[-1])
            self.faults[kind] += 1
            return kind, other


class _Handler(socketserver.BaseRequestHandler):
    server: _Proxy
    request: socket.socket

    def handle(self) -> None:
        with self.request.makefile("rb") as file:
            while request := _message(file):
                with socket.create_connection(self.server.target) as replica, replica.makefile("rb") as its:
                    replica.sendall(request)
                    answer = _message(its)
                if not answer or not self._sent(*self.server.fault(request, answer), answer):
                    return

    def _sent(self, kind: str, other: bytes, answer: bytes) -> bool:
        """Whether the connection goes on."""
        client, wait, draw = self.request, self.server.stopping.wait, self.server.random
        head = answer.index(b"\r\n\r\n") + 4
        middle = draw.randrange(head, len(answer) + 1)
        if kind.isdecimal():
            client.sendall(b"HTTP/1.1 %s Fault\r\nRetry-After: 1\r\nContent-Length: 3\r\n\r\nno\n" % kind.encode())
        elif kind == "garbage":
            client.sendall(draw.randbytes(draw.randrange(1, 500)))
        elif kind in ("cut", "reset"):
            client.sendall(answer[: middle - 1])
            if kind == "reset":  # closed with a linger of 0 seconds, a socket sends RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        elif kind in ("stall", "delay"):
            client.sendall(answer[: middle if kind == "stall" else 0])
            wait(_STALL if kind == "stall" else _DELAY)
            client.sendall(answer[middle if kind == "stall" else 0 :])
        elif kind.startswith("flip"):
            client.sendall(_flipped(answer, draw, kind.rpartition(" ")[2], head))
        else:
            client.sendall({"twice": answer * 2, "another's": other}.get(kind, answer))
        return True


def _flipped(answer: bytes, draw: random.Random, where: str, head: int) -> bytes:
    """With one bit of it another one."""
    start, stop = 0, head
    if where != "head":
        middle = min(len(answer), head + 8 + int.from_bytes(answer[head : head + 8], "little"))
        start, stop = (head, middle) if where == "header" else (middle, len(answer))
        start, stop = (start, stop) if start < stop else (head, len(answer))
    place = draw.randrange(start, stop)
    return answer[:place] + bytes([answer[place] ^ 1 << draw.randrange(8)]) + answer[place + 1 :]


def _message(file: BinaryIO) -> bytes:
    """A request or an answer; empty if there comes no other, or not all of it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (line := file.readline()):
            return b""
        head += line
    length = int(found[1]) if (found := _LENGTH.search(head)) else 0
    body = file.read(length)
    return head + body if len(body) == length else b""


@contextmanager
def spoiling(target: str, *, every: int, seed: int) -> Iterator[_Proxy]:
    """A proxy before the replica at this URL, while it runs."""
    with _Proxy(target, every, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.stopping.set()
            proxy.shutdown()
            thread.join()


class Trouble:
    """Does things to one replica after the other, each of which is well again before the next one's turn, in a thread
    while the block lasts, or until each thing was done so many times.
    """

    def __init__(self, servers: list[Server], other: Callable[[Server], Server], *, seed: int, times: int) -> None:
        """`other` makes a server at the same place that has another dataset by the same name."""
        self.faults: Counter[str] = Counter()
        self._servers = servers
        self._other = other
        self._random = random.Random(seed)
        self._times = times
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for _ in range(self._times):
                for kind in self._random.sample(PROCESS_FAULTS, len(PROCESS_FAULTS)):
                    if self._stop.wait(self._random.random()):
                        return
                    self._do(kind, self._random.choice(self._servers))
                    self.faults[kind] += 1
        except BaseException as error:
            self._error = error

    def _do(self, kind: str, server: Server) -> None:
        if kind == "frozen":
            server.signal(signal.SIGSTOP)
            self._stop.wait(_FROZEN)
            server.signal(signal.SIGCONT)
        elif kind == "killed":
            server.kill()
            server.start()
        else:
            assert server.end() == 0
            if kind == "another dataset":
                other = self._other(server)
                try:
                    other.start()
                    self._stop.wait(_FROZEN)
                finally:
                    other.kill()
            server.start()

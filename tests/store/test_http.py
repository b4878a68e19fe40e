"""Files over HTTP, and servers that do not know their part."""

from __future__ import annotations

import gc
import http.server
import io
import socket
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shardpipe.errors import StoreError
from shardpipe.store import FsspecStore, Retry
from tests.forking import ended, forked, needs_fork


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that knows no ranges, and (path, Authorization) of what it was asked for."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x").write_bytes(b"0123456789")
    asked: list[tuple[str, str]] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append((self.path, self.headers.get("Authorization", "")))

        def send_head(self) -> Any:
            if self.path.rpartition("/")[2] in ("403", "503"):
                return self.send_error(int(self.path[-3:]))
            if "unsized" not in self.path:
                return super().send_head()
            self.send_response(200)
            self.end_headers()
            return io.BytesIO(b"0123456789")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}/set", asked
        server.shutdown()
        thread.join()


@needs_fork
def test_a_forked_process_leaves_its_parents_connections_alone(
    website: tuple[str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "protocol_version", "HTTP/1.1")  # it keeps them open
    place, _ = website
    store = FsspecStore(f"http://{place}", retry=Retry(attempts=1))
    assert store.read("x") == b"0123456789"

    def reads() -> None:
        store.read("x")
        gc.collect()

    assert ended(forked(reads)) == 0
    assert store.read("x") == b"0123456789"


def test_a_query_string_goes_with_every_file(website: tuple[str, list[tuple[str, str]]]) -> None:
    place, asked = website
    store = FsspecStore(f"http://me:hunter22@{place}?sig=abc")
    assert store.url == f"http://{place}"
    assert store.read("x") == b"0123456789"
    assert {path for path, _ in asked} == {"/set/x?sig=abc"}
    assert all(authorization.startswith("Basic ") for _, authorization in asked)


def test_a_server_that_ignores_ranges_is_told_of(website: tuple[str, list[tuple[str, str]]]) -> None:
    place, _ = website
    with pytest.raises(StoreError, match="asked for 3 bytes at 2, got 10.*ranges") as raised:
        FsspecStore(f"http://{place}").read("x", 2, 3)
    assert raised.value.attempts == 1


def test_a_server_that_tells_no_size_is_told_of(website: tuple[str, list[tuple[str, str]]]) -> None:
    place, _ = website
    with pytest.raises(StoreError, match="does not say how large"):
        FsspecStore(f"http://{place}").stat("unsized")


@pytest.mark.parametrize(
    ("name", "told", "attempts"),
    [("missing", "there is no such file", 1), ("403", "403.*Forbidden", 1), ("503", "503.*Unavailable", 2)],
)
def test_what_refuses_to_tell_a_size_is_not_called_missing(
    website: tuple[str, list[tuple[str, str]]], name: str, told: str, attempts: int
) -> None:
    place, _ = website
    store = FsspecStore(f"http://me:hunter22@{place}", retry=Retry(attempts=2, first_wait=0.0))
    with pytest.raises(StoreError, match=told) as raised:
        store.read(name)
    assert raised.value.attempts == attempts
    assert "hunter22" not in "".join(traceback.format_exception(raised.value))


def test_where_nobody_listens_files_are_not_called_missing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(StoreError, match=r"Cannot connect.*after 2 attempts.*network") as raised:
        FsspecStore(f"http://127.0.0.1:{port}/set", retry=Retry(attempts=2, first_wait=0.0)).read("x")
    assert raised.value.attempts == 2

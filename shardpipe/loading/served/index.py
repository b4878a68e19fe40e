"""A dataset's index, read through a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

from shardpipe.loading.served.asking import Client
from shardpipe.loading.served.connection import Body, Head
from shardpipe.loading.served.exchange import Question
from shardpipe.loading.wire import content_digest
from shardpipe.store import Stat

__all__ = ["ServedStore"]

_T = TypeVar("_T")


class ServedStore:
    """What a service gives of a dataset: manifest and parts, and no shard, for it makes the batches."""

    parallel = 16

    def __init__(self, client: Client) -> None:
        self._client = client
        self._server = client.replicas.servers[0]

    @property
    def url(self) -> str:
        return f"shardpipe+{self._server.url}"

    def stat(self, name: str) -> Stat:
        """Size and version of `name`. Raises StoreError."""

        def take(head: Head, body: Body) -> Stat:
            _received(head, body)
            if not head.size:
                raise ValueError("it does not say how large the file is")
            return Stat(head.size, head.etag)

        return self._asked(name, take, b"Range: bytes=0-0\r\n")

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As every store's. Raises StoreError."""

        def take(head: Head, body: Body) -> bytes:
            data = _received(head, body)
            if length is not None and len(data) != length:
                raise ValueError(f"{length} bytes at {offset} were asked for, and {len(data)} came")
            return data

        if length == 0:
            return b""
        last = "" if length is None else offset + length - 1
        whole = length is None and not offset
        return self._asked(name, take, b"" if whole else f"Range: bytes={offset}-{last}\r\n".encode())

    def _asked(self, name: str, take: Callable[[Head, Body], _T], line: bytes) -> _T:
        path = f"/index/{self._server.name}/{quote(name)}"
        question = Question(method="GET", path=path, key=path, take=take, lines=(line,))
        with self._client.using():
            return self._client.answer(question)


def _received(head: Head, body: Body) -> bytes:
    data = body.rest()
    if content_digest(data) != head.digest:
        raise ValueError("its checksum is not that of its bytes")
    return data

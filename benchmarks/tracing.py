"""A store that notes when each request on another one began and ended, so that round trips can be counted."""

from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from time import monotonic
from typing import NamedTuple, TypeAlias

from shardpipe.dataset import Index
from shardpipe.store import Over, Stat, Store

__all__ = ["Request", "TracingStore", "payload_overlap", "payloads_of", "round_trips"]

Payload: TypeAlias = tuple[str, int, int]
"""A shard's name, and the offset and size of a sample's audio in it."""


class Request(NamedTuple):
    name: str
    offset: int
    size: int
    begun: float
    ended: float


class TracingStore(Over):
    """Requests, a `stat` being one of 0 bytes, in the order in which they ended."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.requests: list[Request] = []

    def stat(self, name: str) -> Stat:
        begun = monotonic()
        found = self._inner.stat(name)
        self._note(name, 0, 0, begun)
        return found

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        begun = monotonic()
        data = self._inner.read(name, offset, length)
        self._note(name, offset, len(data), begun)
        return data

    def _note(self, name: str, offset: int, size: int, begun: float) -> None:
        with self._lock:
            self.requests.append(Request(name, offset, size, begun, monotonic()))


def round_trips(requests: Sequence[Request]) -> int:
    """Length of the longest chain of requests each of which began when the one before had ended."""
    trips, free = 0, float("-inf")
    for request in sorted(requests, key=lambda request: request.ended):
        if request.begun >= free:
            trips, free = trips + 1, request.ended
    return trips


def payloads_of(index: Index, keys: Container[str]) -> list[Payload]:
    """Where the audio of samples lies."""
    found = []
    for shard, info in enumerate(index.shards):
        rows = index.rows(shard)
        columns = [rows.column(name).to_pylist() for name in ("key", "audio_offset", "audio_size")]
        found += [(info.name, offset, size) for key, offset, size in zip(*columns) if key in keys]
    return found


def payload_overlap(requests: Sequence[Request], payloads: Sequence[Payload]) -> int:
    """Bytes of payloads that the requests read."""
    by_name: dict[str, list[tuple[int, int]]] = {}
    for name, offset, size in payloads:
        by_name.setdefault(name, []).append((offset, offset + size))
    return sum(
        max(0, min(end, request.offset + request.size) - max(start, request.offset))
        for request in requests
        for start, end in by_name.get(request.name, ())
    )

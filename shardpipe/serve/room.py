"""How much memory batches take, those that are being made, those on their way and those that are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Answer", "Full", "Room", "Shelf", "TooLarge"]


class Full(Exception):
    """There is no room now."""


class TooLarge(Exception):
    """There would never be room: `size` of `limit` bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size, self.limit = size, limit


@dataclass(eq=False)
class Answer:
    """A body in pieces, and how many hold it: while any does, it takes room."""

    pieces: list[bytes | memoryview]
    dataset: str
    samples: int
    users: int = 0

    def __post_init__(self) -> None:
        self.size = sum(len(piece) for piece in self.pieces)


class Room:
    """Bytes that may be in use at once. Safe for threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Raises Full, or TooLarge for what would not fit into all of it."""
        if size > self.limit:
            raise TooLarge(size, self.limit)
        with self._lock:
            if self.used + size > self.limit:
                raise Full
            self.used += size

    def give(self, size: int) -> None:
        """Takes back as much; a negative size is one that is larger than it was thought to be."""
        with self._lock:
            self.used -= size


class Shelf:
    """The answers used last, as long as their sizes sum to at most `limit`. Used by one thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def get(self, key: str) -> Answer | None:
        if (answer := self._answers.get(key)) is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: str, answer: Answer) -> None:
        if answer.size > self.limit or key in self._answers:
            return
        self._answers[key] = answer
        self.used += answer.size
        while self.used > self.limit:
            self.used -= self._answers.popitem(last=False)[1].size

"""Files to which whole pieces are appended, or nothing; and how to read one from its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shardpipe.store import writing

__all__ = ["WholeAppends", "backwards"]

_BLOCK = 1 << 16


class WholeAppends:
    """Each piece is handed to the system at once, so that a killed process loses none.

    Where there is no room for all of it, none of it stays: a part would become part of the next one. Raises StoreError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)

    def write(self, piece: bytes) -> None:
        """Appends a piece."""
        with writing(self._path):
            before = os.fstat(self._file.fileno()).st_size
            rest = memoryview(piece)
            try:
                while rest:  # a disk that is all but full takes as much as it has room for
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(before)
                raise

    def flush(self) -> None:
        """Brings all pieces to the disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines from the last one on, each with the size of the file up to its end."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start = end = file.seek(0, os.SEEK_END)
        held, last = b"", 0  # what is read from `start` on, and how much of that is still to be given
        while end:
            while (newline := held.rfind(b"\n", 0, max(0, last - 1))) < 0 and start:
                size = min(start, max(_BLOCK, last))  # doubled, for a line may be long
                start -= size
                file.seek(start)
                held, last = file.read(size) + held[:last], size + last
            yield end, held[newline + 1 : last]
            end -= last - newline - 1
            last = newline + 1

"""Files to which whole pieces are appended, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from shardpipe.store import writing

__all__ = ["WholeAppends"]


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

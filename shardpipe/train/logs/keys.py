"""The key log: which samples a process had in every step, so that an audit can prove that each came once.

A line is a JSON object with `consumed_samples`, the count after its step, and ends in a checksum that is chained to the
line before, so that none can be removed, doubled or changed unseen. The log of a run is that of its one past: a resume
cuts it back to its checkpoint and continues it, byte for byte as a run that nothing stopped would have.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from isal.isal_zlib import crc32  # zlib's, several times as fast

from shardpipe.store import Count, parsed, writing
from shardpipe.train.logs.whole import WholeAppends, backwards

__all__ = [
    "Basis",
    "KeyLine",
    "KeyLog",
    "chain_of",
    "cut_back_keys",
    "follows",
    "key_logs",
    "last_basis",
    "last_count",
]

_CHAIN = re.compile(rb',"chain":"([0-9a-f]{8})"\}')
_CHAIN_LENGTH = len(',"chain":"00000000"}')


class Basis(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the lines from a count on mean: the dataset, and its samples. `since` and `why` are there if the log holds
    nothing of what was consumed between `since` and that count.
    """

    dataset: str
    num_samples: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    logged: bool = True
    """False where a start was told to keep no log."""
    since: Count | None = None
    why: str | None = None


class KeyLine(msgspec.Struct, kw_only=True):
    """One line: a batch, what else is to be said of a step, or the basis of all that follow."""

    consumed_samples: Count
    epoch: Count | None = None
    samples: list[Count] = []
    """Of a batch: ordinals of what was decoded, in its order."""
    unreadable: list[Count] = []
    """Ordinals of what could not be."""
    left_out: list[Count] = []
    """Those of `samples` that were too short for their text, and taught nothing."""
    excluded: Count = 0
    """Samples that the count went by in this step, for they lie outside the limits of seconds."""
    not_finite: bool = False
    """Whether the step left the model as it was, for its gradient was not finite."""
    basis: Basis | None = None


def chain_of(line: bytes) -> int | None:
    """The checksum that a line, with or without its end, says it has; None in those of versions that wrote none."""
    match = _CHAIN.fullmatch(line.rstrip(b"\n")[-_CHAIN_LENGTH:])
    return int(match[1], 16) if match else None


def follows(line: bytes, before: int) -> bool:
    """Whether a line's checksum is that of its text after a line with the checksum `before` (0: none)."""
    return chain_of(line) == crc32(line.rstrip(b"\n")[:-_CHAIN_LENGTH], before)


def key_logs(folder: Path) -> dict[int, Path]:
    """The key logs in a run's folder by rank, ascending."""
    found = {
        path: re.fullmatch(r"keys-rank(0|[1-9][0-9]{0,8})\.jsonl", path.name) for path in folder.glob("keys-rank*")
    }
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


class KeyLog:
    """The key log of one process, which continues what is there. Raises StoreError."""

    def __init__(self, folder: Path, rank: int) -> None:
        path = folder / f"keys-rank{rank}.jsonl"
        self._file = WholeAppends(path)
        self._last = chain_of(_last_line(path)) or 0

    def write(self, consumed_samples: int, record: Mapping[str, Any]) -> None:
        """Appends a line about the step that ends at a count."""
        line = json.dumps({"consumed_samples": consumed_samples, **record}, ensure_ascii=False, separators=(",", ":"))
        body = line.encode()[:-1]
        chain = crc32(body, self._last)
        self._file.write(b'%s,"chain":"%08x"}\n' % (body, chain))
        self._last = chain

    def flush(self) -> None:
        """Brings all lines to the disk."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Line(msgspec.Struct):
    consumed_samples: Count


def cut_back_keys(path: Path, consumed_samples: int) -> int:
    """Drops the lines beyond a count, which are the last ones, and what a crash has cut short; says how many.

    Raises StoreError.
    """
    dropped = kept = 0
    for end, line in backwards(path):
        with suppress(ValueError):
            if line.endswith(b"\n") and parsed(line, _Line).consumed_samples <= consumed_samples:
                kept = end
                break
        dropped += 1
    if dropped:
        with writing(path):
            os.truncate(path, kept)
    return dropped


def last_count(path: Path) -> int | None:
    """The count of the last line, if it has a checksum; None if there is none such."""
    with suppress(ValueError):
        if chain_of(line := _last_line(path)) is not None:
            return parsed(line, _Line).consumed_samples
    return None


def last_basis(path: Path) -> Basis | None:
    """What the last lines of a log mean; None if that is not said."""
    if not path.exists() or not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = len(data)
        while (found := data.rfind(b'"basis":{', 0, end)) >= 0:
            end = data.rfind(b"\n", 0, found) + 1
            stop = data.find(b"\n", found)
            with suppress(ValueError):
                if (basis := parsed(data[end : None if stop < 0 else stop], KeyLine).basis) is not None:
                    return basis
    return None


def _last_line(path: Path) -> bytes:
    return next((line for _, line in backwards(path)), b"")

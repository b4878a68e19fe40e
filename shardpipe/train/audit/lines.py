"""The lines of all processes' key logs, by their counts, and whether one was removed, doubled or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import msgspec

from shardpipe.store import Count, parsed
from shardpipe.train.logs import KeyLine, chain_of, follows, key_logs

__all__ = ["Lines", "Logged", "steps_of"]


@dataclass(frozen=True, slots=True)
class Logged:
    """A line, and where it stands."""

    count: int
    rank: int
    number: int
    line: KeyLine

    @property
    def where(self) -> str:
        """For messages."""
        return f"keys-rank{self.rank}.jsonl, line {self.number}"


@dataclass
class Lines:
    """What is read of the logs in a folder; `fault` is told of every line that is not as it was written."""

    folder: Path
    fault: Callable[[str], None]
    bytes: int = 0

    def read(self) -> Iterator[Logged]:
        """Those of all processes, ascending by count; the main process's first."""
        logs = key_logs(self.folder)
        yield from merge(*(self._of(rank, path) for rank, path in logs.items()), key=attrgetter("count"))

    def _of(self, rank: int, path: Path) -> Iterator[Logged]:
        chain, chained, count = 0, False, 0
        with ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("rb"))
            except OSError as error:
                self.fault(f"{path.name}: it cannot be read ({error.strerror})")
                return
            for number, text in enumerate(file, 1):
                where = f"{path.name}, line {number}"
                if not text.endswith(b"\n"):
                    return  # of a run that is under way, or was killed
                if not chained and _is_old(text):
                    continue
                if not follows(text, chain):
                    self.fault(f"{where}: it does not follow on the line before: one was removed, doubled or changed")
                chain, chained = chain_of(text) or 0, True
                self.bytes += len(text)
                try:
                    line = parsed(text, KeyLine)
                except ValueError as error:
                    self.fault(f"{where}: it is no line of a key log ({error})")
                    continue
                if line.consumed_samples < count:
                    self.fault(f"{where}: its count, {line.consumed_samples}, lies before that of the line before")
                    continue
                count = line.consumed_samples
                yield Logged(count, rank, number, line)


class _OldLine(msgspec.Struct, forbid_unknown_fields=True):
    """Of a version that wrote neither numbers of samples nor checksums."""

    consumed_samples: Count
    epoch: Count
    keys: list[str]


def _is_old(text: bytes) -> bool:
    try:
        parsed(text, _OldLine)
    except ValueError:
        return False
    return True


def steps_of(lines: Iterator[Logged]) -> Iterator[tuple[int, list[Logged]]]:
    """The lines with the same count: what all processes say of a step."""
    for count, together in groupby(lines, key=attrgetter("count")):
        yield count, list(together)

"""What a run's time has gone into since it began, over all its starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from shardpipe.store import Count, parsed
from shardpipe.train.logs import JsonLines, cut_back, duration

__all__ = ["Goodput"]

_FILE = "times.jsonl"
_SHOWN = {
    "start": "starting",
    "data": "waiting for data",
    "checkpoints": "checkpoints",
    "validation": "validation",
    "lost": "lost work",
    "down": "down",
}
_ALL = 1 << 62
_NOTED_AFTER = 10.0
"""Seconds that a kill may take from the record; they count as down."""


_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class _Line(msgspec.Struct, kw_only=True):
    """What a start has spent so far, in seconds by kind; the first one of each has `began`."""

    consumed_samples: Count
    time: _Seconds
    began: _Seconds | None = None
    spent: dict[str, _Seconds] = {}


class Goodput:
    """Seconds by kind: `steps` that counted, and what else the time went into. The main process's clock counts.

    RUN/times.jsonl is never cut back, for what a resume does again has been spent as well: steps beyond the checkpoint
    at which a later start goes on, and those without a finite gradient, are lost. `began` is the monotonic clock's time
    at which this start did.
    """

    def __init__(self, folder: Path | None, consumed_samples: int, *, began: float) -> None:
        self._before: dict[str, float] = {}
        self._spent = dict.fromkeys(("steps", *_SHOWN), 0.0)
        self._began = began
        self._began_time = time.time() - self._elapsed  # people and services set the clock
        if folder is not None:
            cut_back(folder / _FILE, _ALL)
            self._before = _history(folder / _FILE, consumed_samples, now=self._began_time)
        self._file = None if folder is None else JsonLines(folder / _FILE)
        self._opened = False
        self._aside = 0.0
        self._noted = -_NOTED_AFTER
        self._write(consumed_samples, began=self._began_time)

    def opened(self) -> None:
        """The start ends here, and training begins."""
        self._spent["start"] = self._aside = self._elapsed
        self._opened = True

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Around what is not training."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spend(kind, time.monotonic() - began)

    def spend(self, kind: str, seconds: float) -> None:
        """Time that went into something else than steps that count."""
        self._spent[kind] += seconds
        self._aside += seconds

    def note(self, consumed_samples: int, *, now: bool = True) -> None:
        """Writes down what has been spent up to a count; if not `now`, only when that was last done 10 s ago."""
        if now or time.monotonic() - self._noted >= _NOTED_AFTER:
            self._write(consumed_samples)

    @property
    def seconds(self) -> dict[str, float]:
        """All that has passed since the run began, by kind."""
        spent = self._so_far()
        return {kind: round(self._before.get(kind, 0.0) + seconds, 3) for kind, seconds in spent.items()}

    @property
    def share(self) -> float:
        """Of the steps that counted in all time."""
        seconds = self.seconds
        return seconds["steps"] / max(sum(seconds.values()), 1e-9)

    def __str__(self) -> str:
        seconds = self.seconds
        total = max(sum(seconds.values()), 1e-9)
        rest = ", ".join(f"{text} {seconds[kind] / total:.1%}" for kind, text in _SHOWN.items() if seconds[kind])
        return f"goodput {seconds['steps'] / total:.1%} of {duration(total)} since the run began; {rest}"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def _elapsed(self) -> float:
        """Since this start began."""
        return time.monotonic() - self._began

    def _so_far(self) -> dict[str, float]:
        """What this start has spent: steps are what nothing else was."""
        rest = "steps" if self._opened else "start"
        return self._spent | {rest: max(0.0, self._elapsed - self._aside)}

    def _write(self, consumed_samples: int, **more: float) -> None:
        self._noted = time.monotonic()
        if self._file is None:
            return
        # What no time has gone into is not worth its bytes.
        known = {kind: round(seconds, 3) for kind, seconds in self._so_far().items() if seconds}
        line = {"consumed_samples": consumed_samples, "time": round(self._began_time + self._elapsed, 3), **more}
        self._file.write({**line, "spent": known})


def _history(path: Path, consumed_samples: int, *, now: float) -> dict[str, float]:
    """What the starts up to `now` have spent, the next one of which goes on at a count."""
    spent: dict[str, float] = {}
    counted: list[tuple[int, float]] = []  # (up to which count, seconds of steps)
    last_time, last = now, dict[str, float]()
    lines = path.read_bytes().splitlines() if path.exists() else []
    for text in lines:
        with suppress(ValueError):
            line = parsed(text, _Line)
            if line.began is not None or sum(line.spent.values()) < sum(last.values()):
                began = line.time if line.began is None else line.began
                _lose(counted, spent, beyond=line.consumed_samples)
                spent["down"] = spent.get("down", 0.0) + max(0.0, began - last_time)
                last = {}
            for kind, seconds in line.spent.items():
                if kind == "steps":
                    counted.append((line.consumed_samples, seconds - last.get(kind, 0.0)))
                elif kind in _SHOWN:
                    spent[kind] = spent.get(kind, 0.0) + seconds - last.get(kind, 0.0)
            last, last_time = line.spent, line.time
    _lose(counted, spent, beyond=consumed_samples)
    spent["down"] = spent.get("down", 0.0) + max(0.0, now - last_time)
    return spent | {"steps": sum(seconds for _, seconds in counted)}


def _lose(counted: list[tuple[int, float]], spent: dict[str, float], *, beyond: int) -> None:
    """Takes steps beyond a count for lost."""
    spent["lost"] = spent.get("lost", 0.0) + sum(seconds for count, seconds in counted if count > beyond)
    counted[:] = [(count, seconds) for count, seconds in counted if count <= beyond]

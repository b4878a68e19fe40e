"""What was done in how long, and all that was found of a dataset."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from shardpipe.errors import AudioError, ShardpipeError
from shardpipe.runtime import abandon_when

__all__ = ["Feed", "Measured", "Rate", "each_within"]

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What was done in how long."""

    samples: int
    audio_seconds: float
    size: int
    """Bytes that were read, or filled with float32."""
    elapsed: float
    """Seconds by the clock."""

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.elapsed

    @property
    def bytes_per_second(self) -> float:
        return self.size / self.elapsed

    @property
    def times_real_time(self) -> float:
        """Hours of audio an hour."""
        return self.audio_seconds / self.elapsed


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a ShardLoader did by its defaults, with these settings."""

    batch_size: int
    sample_rate: int | None
    """To which samples of several rates were resampled."""
    rate: Rate | None
    fault: str
    """What put an end to it."""


@dataclass(kw_only=True)
class Measured:
    """What was found."""

    decoding: dict[str, Rate] = field(default_factory=dict)
    """On one core, by codec: as the loader does it, to mono, and resampled where that is needed."""
    read: Counter[str] = field(default_factory=Counter)
    """Samples that were read, by codec."""
    channels: Counter[int] = field(default_factory=Counter)
    """And by number of channels."""
    reading: Rate | None = None
    at_once: int = 1
    """Reads that were under way together: many over a network, where each takes a round trip."""
    feed: Feed | None = None
    bad: list[ShardpipeError] = field(default_factory=list)
    """Samples that cannot be read or decoded, and rows of shards that cannot be read."""

    @property
    def remote(self) -> bool:
        return self.at_once > 1

    @property
    def looked_at(self) -> int:
        """Samples that were read, or could not be."""
        return self.read.total() + sum(not isinstance(error, AudioError) for error in self.bad)

    @property
    def decoding_all(self) -> Rate | None:
        """One pass over what was read, on one core."""
        passes = [(self.read[codec] / rate.samples, rate) for codec, rate in self.decoding.items()]
        if not passes:
            return None
        return Rate(
            samples=sum(self.read[codec] for codec in self.decoding),
            audio_seconds=sum(share * rate.audio_seconds for share, rate in passes),
            size=round(sum(share * rate.size for share, rate in passes)),
            elapsed=sum(share * rate.elapsed for share, rate in passes),
        )


def each_within(
    act: Callable[[_T], _R],
    items: Iterable[_T],
    *,
    threads: int,
    seconds: float,
    stopped: threading.Event | None = None,
) -> tuple[list[tuple[_T, _R | ShardpipeError]], float]:
    """What `act` made of each item, or its error, and how long it took: of as many as `seconds` are enough for.

    What is being read of a store by then is given up. `stopped` is set in the end, and may be set before.
    """
    stopped = stopped or threading.Event()
    waiting = deque(items)
    done: list[tuple[_T, _R | ShardpipeError]] = []

    def share() -> None:
        while not stopped.is_set():
            try:
                item = waiting.popleft()
            except IndexError:
                return
            result: _R | ShardpipeError
            try:
                result = act(item)
            except ShardpipeError as error:
                result = error
            if not stopped.is_set():
                done.append((item, result))

    with ThreadPoolExecutor(threads, "shardpipe", abandon_when, (stopped,)) as pool:
        begun = perf_counter()
        running = [pool.submit(share) for _ in range(threads)]
        try:
            wait(running, timeout=seconds)
            elapsed = perf_counter() - begun
        finally:
            stopped.set()
    for thread in running:
        thread.result()
    return done, elapsed

"""The next window of every lane, fetched into the local cache while the present one is in use.

A window is a contiguous stretch of shards, whatever the order of its samples, so a few large reads bring what thousands
of small ones would. Nothing depends on it: what it has not brought in time is read sample by sample.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from shardpipe.errors import ShardpipeError
from shardpipe.loading.read import Reader
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import Step
from shardpipe.runtime import abandon_when, after_fork

__all__ = ["WindowPrefetch", "has_room"]

_PIECE = 4 << 20
"""Bytes of a read: a round trip is then short beside it."""
_THREADS = 4
_RANKS = 8
"""As many as share a node's cache, at most."""


def has_room(sequence: BatchSequence, world_size: int, cache_bytes: int | None) -> bool:
    """Whether every rank keeps to lanes of its own, and the cache holds the present and the next window of all ranks on
    a node. If not, windows fetched ahead would be read twice, or be gone before they are used.
    """
    lanes, window = sequence.order.lanes, sequence.order.window
    if lanes % world_size or sequence.step_size(world_size) % world_size:
        return False
    totals = sequence.index.totals
    share = lanes // world_size * min(world_size, _RANKS) * window * totals.size / totals.samples
    return cache_bytes is None or 2 * share <= cache_bytes


class WindowPrefetch:
    """Watches a rank's steps as they are planned, and as they are made. Close it when done."""

    def __init__(self, sequence: BatchSequence, reader: Reader, rank: int, world_size: int) -> None:
        self._sequence = sequence
        self._reader = reader
        self._rank, self._world_size = rank, world_size
        self._planned: set[tuple[int, int]] = set()
        self._reached: set[tuple[int, int]] = set()
        self._starts: deque[tuple[int, tuple[int, int]]] = deque()
        self._due: deque[tuple[int, tuple[int, int], list[tuple[int, int, int]]]] = deque()
        self._start()
        after_fork(self, WindowPrefetch._start)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._threads = ThreadPoolExecutor(_THREADS, "shardpipe", abandon_when, (self._closed,))

    def watch(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The same steps, of one epoch; notes what is to be fetched once the first of each window is made."""
        order = self._sequence.order
        for step in steps:
            for share in step.of_rank(self._rank, self._world_size):
                last = int(share.batch.positions[-1])
                lane, window = last % order.lanes, last // order.lanes // order.window
                if (lane, window) not in self._planned:
                    self._planned.add((lane, window))
                    epoch = (step.count - 1) // self._sequence.num_samples
                    end = share.batch.count
                    self._starts.append((end, (lane, window)))
                    self._due.append((end, (lane, window), order.stretch(lane, window + 1, epoch)))
            yield step

    def begun(self, end: int) -> None:
        """From the batch that ends at this count on, samples are read one by one if they are not there yet: what is
        left of their windows is theirs to read.
        """
        while self._starts and self._starts[0][0] <= end:
            self._reached.add(self._starts.popleft()[1])

    def made(self, end: int) -> None:
        """Begins to fetch what is due: no earlier, so that the first batches have the line to themselves."""
        with self._lock:
            while self._due and self._due[0][0] <= end:
                _, (lane, window), stretch = self._due.popleft()
                for shard, first, stop in stretch:
                    self._threads.submit(self._fetch, (lane, window + 1), shard, first, stop)

    def close(self) -> None:
        """Ends all threads; a read that is under way is given up."""
        self._closed.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, window: tuple[int, int], shard: int, first: int, stop: int) -> None:
        # Whoever wants the samples will read them, and meet the fault as well.
        with suppress(ShardpipeError):
            rows = self._sequence.index.rows(shard)
            offsets, sizes = rows.column("audio_offset"), rows.column("audio_size")
            end = offsets[stop - 1].as_py() + sizes[stop - 1].as_py()
            for offset in range(offsets[first].as_py(), end, _PIECE):
                if window in self._reached or self._closed.is_set():
                    return
                self._reader.keep(shard, offset, min(_PIECE, end - offset))

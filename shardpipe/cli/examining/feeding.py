"""A sample of a dataset is read and decoded, and a loader feeds from all of it."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from shardpipe.cli.examining.decoding import Clip, decode_clips
from shardpipe.cli.examining.rates import Feed, Measured, Rate, each_within
from shardpipe.dataset import Index
from shardpipe.errors import ShardError, ShardpipeError
from shardpipe.loading import Form, Reader, SampleRow, coalesce, rows_of
from shardpipe.runtime import abandon_when
from shardpipe.store import Over, Stat, Store, open_store

__all__ = ["measure_dataset"]

# The sample: of few shards, for the rows of a shard are read as a whole.
_SHARDS = 16
_SAMPLES = 400
_SAMPLE_BYTES = 64 << 20

_BATCH_SIZE = 16
_BATCH_BYTES = 1 << 28
"""Of long recordings, fewer make a batch."""
_PATIENCE = 3.0
"""Seconds that what is not measured may take: rows of the index, and the first batch."""
_LEAST = 1 / 30
"""Of a measurement's seconds: a sample that is read in less is read again, for it comes from memory anyway."""


def measure_dataset(index: Index, data: str | Store, *, seconds: float, schemes: Iterable[str] = ()) -> Measured:
    """Reads, decodes and feeds, each for `seconds`, from a dataset that has samples; `index` was loaded from `data`."""
    found = Measured()
    rates = index.totals.sample_rates
    rate = max(rates, key=lambda rate: rates[rate]) if len(rates) > 1 else None
    rows = _chosen(found, index, seconds)
    form = Form(channels="mix", sample_rate=rate)
    decode_clips(found, _read(found, index, rows, seconds), seconds, form)
    longest = max(map(form.frames, rows), default=1)
    batch_size = min(_BATCH_SIZE, max(1, _BATCH_BYTES // (4 * longest)))
    found.feed = _feed(open_store(data), batch_size, rate, seconds, tuple(schemes))
    return found


def _chosen(found: Measured, index: Index, seconds: float) -> list[SampleRow]:
    """Rows spread evenly over the dataset, in random order: wherever time ends, those before are spread as well."""
    spread = np.linspace(0, index.num_samples - 1, _SHARDS).astype(np.int64)
    shards = np.unique(np.searchsorted(np.cumsum(index.counts), spread, side="right"))
    ends = np.cumsum(index.counts[shards])
    ordinals = np.unique(np.linspace(0, ends[-1] - 1, min(_SAMPLES, int(ends[-1]))).astype(np.int64))
    owners = np.searchsorted(ends, ordinals, side="right")
    places = ordinals - (ends - index.counts[shards])[owners]

    def load(number: int) -> list[SampleRow]:
        here = places[owners == number]
        return rows_of(index, np.full(len(here), shards[number]), here)

    loaded, _ = each_within(load, range(len(shards)), threads=index.store.parallel, seconds=_PATIENCE + seconds)
    found.bad += [error for _, error in loaded if isinstance(error, ShardpipeError)]
    rows = [row for _, some in loaded if not isinstance(some, ShardpipeError) for row in some]
    random.Random(0).shuffle(rows)
    sizes = np.cumsum([row.audio_size for row in rows])
    return rows[: max(1, int(np.searchsorted(sizes, _SAMPLE_BYTES, side="right")))]


def _read(found: Measured, index: Index, rows: list[SampleRow], seconds: float) -> list[Clip]:
    """Reads the rows' audio as a loader does: many at a time over a network, from a folder one after another."""
    store = index.store
    reader = Reader(store, index.shards)

    def payload(row: SampleRow) -> bytes | memoryview:
        (piece,) = coalesce([row], [0])
        data = reader.fetch(piece, [row])[0]
        if isinstance(data, ShardError):
            raise data
        return data

    def passing(row: SampleRow) -> None:
        payload(row)  # not kept: fresh memory for each takes longer than a read from memory

    remote = store.parallel > 1
    done, elapsed = each_within(payload if remote else passing, rows, threads=store.parallel, seconds=seconds)
    found.bad += [error for _, error in done if isinstance(error, ShardpipeError)]
    good = [row for row, data in done if not isinstance(data, ShardpipeError)]
    times = 1
    while good and elapsed < _LEAST * seconds:
        elapsed += each_within(passing, good, threads=store.parallel, seconds=seconds)[1]
        times += 1
    if good:
        found.reading = Rate(
            samples=times * len(good),
            audio_seconds=times * math.fsum(row.frames / row.sample_rate for row in good),
            size=times * sum(row.audio_size for row in good),
            elapsed=elapsed,
        )
    found.at_once = store.parallel
    found.read.update(row.codec for row in good)
    found.channels.update(row.channels for row in good)
    kept = done if remote else each_within(payload, good, threads=1, seconds=seconds)[0]
    return [Clip(row, data) for row, data in kept if data is not None and not isinstance(data, ShardpipeError)]


class _Until(Over):
    """Another store, whose reads are given up once `stopped` is set, whichever thread they are of."""

    def __init__(self, inner: Store, stopped: threading.Event) -> None:
        super().__init__(inner)
        self._stopped = stopped

    def stat(self, name: str) -> Stat:
        abandon_when(self._stopped)
        return self._inner.stat(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        abandon_when(self._stopped)
        return self._inner.read(name, offset, length)


class _Fed(NamedTuple):
    """What is kept of a batch: not its audio, whose memory is used again."""

    time: float
    lengths: Any
    weights: Any
    sample_rate: int
    size: int


def _feed(store: Store, batch_size: int, rate: int | None, seconds: float, schemes: tuple[str, ...]) -> Feed:
    """Iterates over a loader, epoch after epoch; the clock begins with the first batch, which is not counted."""
    stopped = threading.Event()
    fed: list[_Fed] = []

    def run(store: Store) -> None:
        try:
            from shardpipe import ShardLoader
        except (ImportError, OSError) as error:
            raise ShardpipeError(f"torch cannot be imported ({error})", fix="Install it again.") from error
        loader = ShardLoader(
            store,
            batch_size=batch_size,
            channels="mix",
            sample_rate=rate,
            on_error="skip",
            schemes=schemes,
        )
        while not stopped.is_set():
            for batch in loader:
                size = 4 * batch.audio.numel()
                fed.append(_Fed(perf_counter(), batch.lengths, batch.weights, batch.sample_rate, size))
                if len(fed) > 1 and fed[-1].time - fed[0].time >= seconds:
                    stopped.set()  # before the loop is left, for that waits for reads
                if stopped.is_set():
                    break

    bounded = store if store.parallel == 1 else _Until(store, stopped)
    done, _ = each_within(run, [bounded], threads=1, seconds=_PATIENCE + seconds, stopped=stopped)
    fault = "".join(str(error) for _, error in done if isinstance(error, ShardpipeError))
    heard = [(batch.lengths[batch.weights > 0], batch) for batch in fed[1:]]
    measured = None
    if heard:
        measured = Rate(
            samples=sum(len(lengths) for lengths, _ in heard),
            audio_seconds=math.fsum(int(lengths.sum()) / batch.sample_rate for lengths, batch in heard),
            size=sum(batch.size for _, batch in heard),
            elapsed=fed[-1].time - fed[0].time,
        )
    elif not fault:
        fault = f"no second batch came within {_PATIENCE + seconds:g} s"
    return Feed(batch_size=batch_size, sample_rate=rate, rate=measured, fault=fault)

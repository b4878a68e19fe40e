"""ShardLoader: the sequence of batches, read, decoded and padded by threads, delivered in order.

The only state is `consumed_samples`. Every `for` starts its pipeline from that count and counts what it hands over, so
nothing that was merely prefetched is ever part of a state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch

from shardpipe.cache import ShardCache
from shardpipe.dataset import Index
from shardpipe.errors import ConfigError
from shardpipe.loading.batch import Collate, Maker, Skipped, Transform, finished
from shardpipe.loading.buffers import Arena
from shardpipe.loading.device import CudaCopier, cuda_device, pinned
from shardpipe.loading.pipeline import Pipeline
from shardpipe.loading.prefetch import WindowPrefetch, has_room
from shardpipe.loading.read import Payload, Reader, coalesce
from shardpipe.loading.sequence import BatchSequence
from shardpipe.loading.work import Work, works
from shardpipe.loading.workers import Workers, check_picklable
from shardpipe.order import DEFAULT_WINDOW, Batching, Step
from shardpipe.runtime import Ending, cores
from shardpipe.settings import check, integer, number
from shardpipe.store import Store, close, open_store

__all__ = ["ShardLoader"]

# More rarely decode faster than one process trains, and there is a process for every GPU.
_THREADS_MAX = 8


class ShardLoader:
    """Batches of a packed dataset, for one rank, from any count of consumed samples on.

    `for batch in loader` delivers the rest of the current sub-epoch; the next `for` goes on with the next one, into
    the next epoch and so on without end. `epoch`, `sub_epoch` and `consumed_samples` say where the run is.

    data: a directory or URL that holds an index, or a Store rooted there.
    batch_size | batch_seconds: samples of a batch, or the most padded seconds of one; exactly one of them.
    seed, shuffle, window, lanes: the order; see `shardpipe.order.Order`. They are fixed for a run.
    sub_epochs: into how many shares an epoch is cut.
    rank, world_size: which of how many processes this is. They may change at every start.
    resume_samples: samples that the run has consumed already.
    min_seconds, max_seconds: samples outside are left out, but count as consumed; `num_excluded` counts them.
    transform: called with (Sample, numpy Generator), the generator being keyed by (seed, epoch, sample).
    collate: called with a list of Sample, makes what the loop gets instead of a Batch.
    dtype: "float32" in [-1, 1], or "int16", which is half the bytes to move.
    threads: that read and decode; if None, as many as the cores that this process may use, up to 8.
    workers: processes that make batches instead of threads, for transforms that hold the GIL (they must pickle), or for
        PCM audio in plenty. They are kept as long as the loader, and so is the memory of their batches.
    prefetch, prefetch_bytes: batches made ahead, at least one for every thread; and bytes of payloads and padded audio
        that may lie ahead of the loop, reads over a network among them. One batch is made however large it is.
    on_error: "raise", or "skip" for samples that are damaged or cannot be decoded: they become silence of weight 0,
        listed in `skipped`, and their position counts as consumed. A failing storage always raises.
    cache_dir, cache_bytes: a local folder for what was read of the shards, and the most that it may take of the disk;
        processes and runs may share it. Without a limit it grows to the size of the dataset.
    schemes: kinds of URLs (such as "hdfs") by which the dataset may name shards, besides its own kind and plain ones
        (s3, gs, abfs, https and the like). Allow what you trust: fsspec's may lead to any file of this machine.
    device: "cuda" has the audio of batches copied there ahead of the loop, from page-locked memory on a stream of its
        own. Lengths and weights stay where a loop can count by them without waiting for the device.

    Raises ConfigError, and StoreError or CorruptIndex for a dataset or a cache folder that cannot be opened; while
    iterating StoreError, CorruptIndex, ShardError, AudioError, ConfigError for samples that make no batch together, and
    ShardpipeError if a worker dies.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Store,
        *,
        batch_size: int | None = None,
        batch_seconds: float | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window: int = DEFAULT_WINDOW,
        lanes: int | None = None,
        sub_epochs: int = 1,
        rank: int = 0,
        world_size: int = 1,
        resume_samples: int = 0,
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        transform: Transform | None = None,
        collate: Collate | None = None,
        dtype: Literal["float32", "int16"] = "float32",
        threads: int | None = None,
        workers: int = 0,
        prefetch: int = 4,
        prefetch_bytes: int = 1 << 28,
        on_error: Literal["raise", "skip"] = "raise",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        schemes: Sequence[str] = (),
        device: str | torch.device | None = None,
    ) -> None:
        sub_epochs = integer("sub_epochs", sub_epochs, least=1)
        world_size = integer("world_size", world_size, least=1)
        rank = integer("rank", rank, least=0)
        check("rank", rank, rank < world_size, f"it must be below world_size, which is {world_size}")
        resume_samples = integer("resume_samples", resume_samples, least=0)
        check("dtype", dtype, dtype in ("float32", "int16"), 'it must be "float32" or "int16"')
        threads = None if threads is None else integer("threads", threads, least=1)
        workers = integer("workers", workers, least=0)
        prefetch = integer("prefetch", prefetch, least=1)
        prefetch_bytes = integer("prefetch_bytes", prefetch_bytes, least=1)
        check("cache_bytes", cache_bytes, cache_bytes is None or cache_dir is not None, "it needs a cache_dir")
        check("device", device, device is None or collate is None, "it moves a Batch, and collate makes something else")
        check("schemes", schemes, not isinstance(schemes, str), "it must be a list of them")
        check("on_error", on_error, on_error in ("raise", "skip"), 'it must be "raise" or "skip"')
        if workers:
            for name, value in (("data", data), ("transform", transform), ("collate", collate)):
                check_picklable(name, value)
        batching = Batching(
            batch_size=None if batch_size is None else integer("batch_size", batch_size),
            batch_seconds=None if batch_seconds is None else number("batch_seconds", batch_seconds),
            min_seconds=None if min_seconds is None else number("min_seconds", min_seconds),
            max_seconds=None if max_seconds is None else number("max_seconds", max_seconds),
        )
        index = Index.load(open_store(data), schemes=schemes)
        self._sequence = BatchSequence(
            index,
            batching,
            seed=integer("seed", seed),
            shuffle=shuffle,
            window=integer("window", window),
            lanes=None if lanes is None else integer("lanes", lanes),
        )
        self._device = cuda_device(device)
        self._sub_epochs = sub_epochs
        self._rank = rank
        self._world_size = world_size
        self._threads = workers or threads or min(_THREADS_MAX, cores())
        self._prefetch = max(prefetch, self._threads)
        self._prefetch_bytes = prefetch_bytes
        self._cache = None if cache_dir is None else ShardCache(cache_dir, cache_bytes)
        self._reader = Reader(index.store, index.shards, self._cache)
        self._make = Maker(
            reader=self._reader,
            seed=self._sequence.order.seed,
            transform=transform,
            collate=collate,
            dtype=dtype,
            skip_errors=on_error == "skip",
        )
        self._workers = Workers(workers, self._make, prefetch_bytes) if workers else None
        self._consumed = resume_samples
        self._iteration: object = None
        self.num_excluded = 0
        """Samples left out for their length, by all ranks together, since the loader was made or a state was loaded."""
        self.skipped: list[Skipped] = []
        """Samples that this rank could not decode since then."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return self._sequence.num_samples

    @property
    def consumed_samples(self) -> int:
        """Samples handed over since the run began, all ranks and epochs together."""
        return self._consumed

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, from 0."""
        return self._consumed // self.num_samples

    @property
    def sub_epoch(self) -> int:
        """The sub-epoch of the next batch within its epoch, from 0."""
        return self._consumed % self.num_samples * self._sub_epochs // self.num_samples

    @property
    def sample_rate(self) -> int:
        """The dataset's sample rate in Hz; ConfigError if it has several."""
        rates = sorted(self._sequence.index.totals.sample_rates)
        check("data", rates, len(rates) == 1, "its samples must have one sample rate: pack with --sample-rate")
        return rates[0]

    def texts(self) -> Iterator[str]:
        """The text of every sample of the dataset, in the shards' order: read from the index, whatever the epoch."""
        index = self._sequence.index
        for shard in range(len(index.counts)):
            if index.counts[shard]:
                column: Any = index.rows(shard).column("text")
                yield from column.to_pylist()

    def __len__(self) -> int:
        """Steps left in the current sub-epoch. It plans them all, which takes a while for a long epoch by seconds."""
        return sum(1 for _ in self._steps())

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current sub-epoch. A later `for` on the same loader puts an end to an earlier one."""
        mine = self._iteration = object()
        began, end = self._consumed, self._sequence.sub_epoch_end(self._consumed, self._sub_epochs)
        copier = CudaCopier(self._device) if self._device else None
        with Ending() as stack:
            pipeline = self._pipeline(stack, copier)
            for work, (batch, skipped) in pipeline:
                if self._iteration is not mine:
                    raise RuntimeError("another `for` over this loader has begun, or a state was loaded")
                self._consume(work.consumed, delivered=work.delivered)
                self.skipped += skipped
                yield copier.receive(batch) if copier else batch
        if self._iteration is mine and self._consumed < end:
            self._consume_excluded(began)

    def _steps(self) -> Iterator[Step]:
        return self._sequence.steps(self._consumed, world_size=self._world_size, sub_epochs=self._sub_epochs)

    def _pipeline(
        self, stack: ExitStack, copier: CudaCopier | None
    ) -> Pipeline[Work, dict[int, Payload], tuple[Any, list[Skipped]]]:
        """What reads, decodes and copies ahead, until `stack` is unwound."""
        # Memory of its own for every loop: what one has lent is never another's, in a forked process least of all.
        make = self._workers or replace(self._make, empty=pinned if self._device else Arena(self._prefetch_bytes).empty)
        parallel = self._reader.store.parallel
        stack.callback(close, self._reader.store)
        steps = self._steps()
        prefetch = None
        if self._cache is not None:
            stack.enter_context(closing(self._cache))
            if parallel > 1 and has_room(self._sequence, self._world_size, self._cache.limit_bytes):
                prefetch = WindowPrefetch(self._sequence, self._reader, self._rank)
                steps = stack.enter_context(closing(prefetch)).watch(steps)

        def made(work: Work, fetched: list[dict[int, Payload]]) -> tuple[Any, list[Skipped]]:
            result, skipped = make(work, {i: payload for some in fetched for i, payload in some.items()})
            batch = finished(work, result)
            if prefetch is not None:
                prefetch.made(work.consumed)
            return copier.send(batch) if copier else batch, skipped

        def reads(work: Work) -> list[Callable[[], dict[int, Payload]]]:
            """Those of a batch that are worth beginning ahead of its decoding: where each takes a round trip."""
            if parallel == 1:
                return []
            if prefetch is not None:
                prefetch.begun(work.consumed)
            pieces = coalesce(work.rows, self._reader.missing(work.rows))
            return [partial(self._reader.fetch, piece, work.rows) for piece in pieces]

        pipeline = Pipeline(
            works(self._sequence, steps, self._rank),
            reads=reads,
            make=made,
            size=self._make.size,
            threads=self._threads,
            parallel=parallel,
            most_made=self._prefetch,
            most_bytes=self._prefetch_bytes,
        )
        return stack.enter_context(closing(pipeline))

    def _consume(self, count: int, *, delivered: int) -> None:
        self.num_excluded += count - self._consumed - delivered
        self._consumed = count

    def _consume_excluded(self, began: int) -> None:
        """Nothing but excluded samples is left of the epoch."""
        if self._consumed == began == self.epoch * self.num_samples:
            batching = self._sequence.batching
            limits = (batching.min_seconds, batching.max_seconds)
            raise ConfigError("(min_seconds, max_seconds)", limits, "some sample must lie between them, and none does")
        self._consume((self.epoch + 1) * self.num_samples, delivered=0)

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, JSON-able; taking it changes nothing."""
        return self._sequence.state(self._consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any topology. Raises ResumeMismatch for another dataset, seed or order,
        ConfigError for what is no state.

        Another batching takes over at the end of the current rung or super-window.
        """
        self._consumed = self._sequence.restore(state)
        self._iteration = None
        self.num_excluded, self.skipped = 0, []

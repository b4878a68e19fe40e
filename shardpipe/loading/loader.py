"""ShardLoader: the sequence of batches, made ahead and delivered in order.

The only state is a count. Every `for` begins there and counts what it hands over, never what was merely prefetched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch

from shardpipe.errors import ConfigError
from shardpipe.loading.callers import NoDataLoader, check_caller, check_process, watched
from shardpipe.loading.cursor import Cursor
from shardpipe.loading.feeding import Setup
from shardpipe.loading.making import Channels, Collate, Skipped, Transform
from shardpipe.loading.ranks import Rank, finder
from shardpipe.loading.sequence import BatchSequence
from shardpipe.loading.served import Digests, ServiceCounts
from shardpipe.order import DEFAULT_WINDOW, Batching
from shardpipe.runtime import Ending
from shardpipe.settings import integer, number, optional
from shardpipe.store import Store

__all__ = ["ShardLoader"]


class ShardLoader(NoDataLoader):
    """Batches of a packed dataset, for one rank, from any count of consumed samples on.

    `for batch in loader` delivers the rest of the current sub-epoch, the next `for` the next one, without end.

    data: a directory or URL that holds an index, a Store rooted there, or a service: shardpipe+https://host/NAME.
    batch_size | batch_seconds: samples of a batch, or the most padded seconds of one; exactly one of them.
    seed, shuffle, window, lanes: the order; see `shardpipe.order.Order`. They are fixed for a run.
    sub_epochs, sub_epoch_samples: into how many shares an epoch is cut, or of at most how many samples, all alike.
    rank, world_size: which of how many processes this is. They may change at every start. rank="auto" takes both from
        torch.distributed when a loop begins, and rank=mesh["dp"] from a dimension of a DeviceMesh: ranks that share a
        model share its batches. Without them this process is alone, and torch.distributed may know of no other.
    batches_per_step: batches of an optimizer step, all ranks together, so that a step is the same on any number of
        them. A rank takes every world_size-th; one that has fewer gets a repeat of weight 0. Count and state move with
        the last, which has `ends_step`: a resume begins a step that was stopped anew, the next `for` goes on with it.
        Without batches_per_step a step is one batch for every rank.
    resume_samples: samples that the run has consumed already.
    repeat: False makes every `for` one whole pass from the start, for validation; a `break` leaves no trace.
    min_seconds, max_seconds: samples outside are left out, but count as consumed; `num_excluded` counts them.
    transform: called with (Sample, numpy Generator), the generator being keyed by (seed, epoch, sample).
    collate: called with a list of Sample, makes what the loop gets instead of a Batch. If it has a parameter `place`,
        or needs a second argument, that is the batch's Place: its epoch, consumed_samples, state, ends_step and seed.
    dtype: "float32" in [-1, 1], or "int16", which is half the bytes to move.
    channels: of samples that have several: "error" refuses them, a number takes that one (from 0), "mix" the mean of
        all (audio of opposite phase cancels out), "keep" all of them, as audio [B, C, T].
    sample_rate: Hz to resample to, by soxr; T frames become T * sample_rate / rate, rounded half up. Without it all
        samples must have one rate, unless a transform or collate sees to that.
    threads: that read and decode; by default as many as the cores that this process may use, up to 8.
    workers: processes that make batches instead of threads, where the loop or a transform is busy in Python (transforms
        must pickle), or for PCM audio in plenty. "auto" has as many as `threads` take over when the loop waits because
        these wait for the GIL. They are kept as long as the loader, and so is the memory of their batches.
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
    servers, local: URLs such as "https://{a,b}:7070/name" of a data service (`shardpipe serve`) that makes the batches,
        the very same; with local=True this process makes some too, and all that no server makes. Transforms and
        collates are named in the servers' configuration, and here by that name, or given as the functions named there.
    token_file, tls_ca: files with the token that the servers want, and with the certificates that are trusted.
    digests: "same" refuses servers on which decoding gives other floats than here; "any" takes them.

    Raises ConfigError, and StoreError or CorruptIndex for a dataset or a cache folder that cannot be opened; in a loop
    StoreError, CorruptIndex, ShardError, AudioError, ConfigError for samples that make no batch together, and
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
        sub_epoch_samples: int | None = None,
        rank: Rank = None,
        world_size: int | None = None,
        resume_samples: int = 0,
        repeat: bool = True,
        batches_per_step: int | None = None,
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        transform: Transform | str | None = None,
        collate: Collate | str | None = None,
        dtype: Literal["float32", "int16"] = "float32",
        channels: Channels = "error",
        sample_rate: int | None = None,
        threads: int | None = None,
        workers: int | Literal["auto"] = 0,
        prefetch: int = 4,
        prefetch_bytes: int = 1 << 28,
        on_error: Literal["raise", "skip"] = "raise",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        schemes: Sequence[str] = (),
        device: str | torch.device | None = None,
        servers: str | Iterable[str] | None = None,
        local: bool = False,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        digests: Digests = "same",
    ) -> None:
        setup = Setup(
            data=data,
            transform=transform,
            collate=collate,
            dtype=dtype,
            channels=channels,
            sample_rate=sample_rate,
            threads=threads,
            workers=workers,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            on_error=on_error,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            schemes=schemes,
            device=device,
            servers=servers,
            local=local,
            token_file=token_file,
            tls_ca=tls_ca,
            digests=digests,
        )
        batching = Batching(
            batch_size=optional(integer, "batch_size", batch_size),
            batch_seconds=optional(number, "batch_seconds", batch_seconds),
            min_seconds=optional(number, "min_seconds", min_seconds),
            max_seconds=optional(number, "max_seconds", max_seconds),
        )
        self._sequence = BatchSequence(
            setup.open(),
            batching,
            seed=integer("seed", seed),
            shuffle=shuffle,
            window=integer("window", window),
            lanes=optional(integer, "lanes", lanes),
            batches_per_step=optional(integer, "batches_per_step", batches_per_step, least=1),
        )
        self._cursor = Cursor(self._sequence, sub_epochs, sub_epoch_samples, consumed=resume_samples, repeat=repeat)
        self._feed, self._service = setup.feed(self._sequence), setup.service
        if transform is None and collate is None:
            _ = self.sample_rate
        self._ranks = finder(rank, world_size)
        self._ranks_given = rank is not None or world_size is not None
        self._iteration: object = None
        self.skipped: list[Skipped] = []
        """Samples that this rank could not decode since then."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return self._sequence.num_samples

    @property
    def repeat(self) -> bool:
        """Whether a `for` goes on where the last one has ended, as training does."""
        return self._cursor.repeat

    @property
    def consumed_samples(self) -> int:
        """Samples of the steps handed over since the run began, all ranks and epochs together."""
        return self._cursor.consumed

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, from 0."""
        return self._cursor.epoch

    @property
    def sub_epoch(self) -> int:
        """The sub-epoch of the next batch within its epoch, from 0."""
        return self._cursor.sub_epoch

    @property
    def sub_epochs(self) -> int:
        """Into how many shares an epoch is cut."""
        return self._cursor.sub_epochs

    @property
    def num_excluded(self) -> int:
        """Samples left out for their length, by all ranks together, since the loader was made or a state was loaded;
        with repeat=False, since the pass began."""
        return self._cursor.num_excluded

    @property
    def sample_rate(self) -> int:
        """That of batches in Hz, unless a transform changes it; ConfigError if samples have several."""
        rates = sorted(self._sequence.index.totals.sample_rates)
        fix = "Resample them: sample_rate=16000, for instance, or pack with --sample-rate."
        if self._feed.maker.form.sample_rate is None and len(rates) != 1:
            raise ConfigError("data", rates, "its samples must have one sample rate", fix=fix)
        return self._feed.maker.form.sample_rate or rates[0]

    @property
    def servers(self) -> list[str]:
        """The URLs of the servers that make batches; empty without any. They may be set to others at any time."""
        return [] if self._service is None else self._service.urls

    @servers.setter
    def servers(self, urls: str | Iterable[str]) -> None:
        if self._service is None:
            raise ConfigError("servers", urls, "this loader was made without any")
        self._service.urls = urls

    @property
    def service(self) -> ServiceCounts | None:
        """What has come of asking the servers; None without any."""
        return None if self._service is None else self._service.counts()

    def texts(self) -> Iterator[str]:
        """The text of every sample of the dataset, in the shards' order: read from the index, whatever the epoch."""
        return self._sequence.index.texts()

    def __len__(self) -> int:
        """Batches that a `for` over the whole current sub-epoch yields, from where a run on these ranks that is never
        stopped begins it, however much is consumed. Plans them all, which takes a while for a long epoch by seconds."""
        return self._cursor.length(self._ranks()[1])

    def batches_left(self) -> int:
        """Batches that the next `for` yields: those left in the current sub-epoch. Plans them all."""
        return next(self.lengths())

    def lengths(self) -> Iterator[int]:
        """Batches that the next `for` yields, the one after it, and so on without end: epochs by seconds differ."""
        return self._cursor.lengths(self._ranks()[1])

    def default_ranks(self, rank: int, world_size: int) -> tuple[int, int]:
        """Takes these for loops to come, unless others were given when the loader was made; returns those in force."""
        if not self._ranks_given:
            self._ranks = finder(rank, world_size)
        return self._ranks()

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current sub-epoch. A later `for` on the same loader puts an end to an earlier one."""
        if not self.repeat:
            return self.batches()
        check_caller(sys._getframe(1))
        return watched(self.batches())

    def batches(self) -> Generator[Any, None, None]:
        """What a `for` gives, to who passes it on to a loop of others and answers for what that makes of it."""
        check_process()
        rank, world_size = self._ranks()
        mine = self._iteration = object()
        cursor = self._cursor
        if not self.repeat:
            cursor.rewind()
            self.skipped = []
        began, end = cursor.consumed, cursor.end
        try:
            with Ending() as stack:
                steps, given = cursor.steps(world_size), cursor.given(world_size)
                for work, batch, skipped in self._feed.batches(
                    steps, rank=rank, world_size=world_size, given=given, stack=stack
                ):
                    if self._iteration is not mine:
                        raise RuntimeError("another `for` over this loader has begun, or a state was loaded")
                    cursor.take(work, world_size)
                    self.skipped += skipped
                    yield batch
            if self._iteration is mine and cursor.consumed < end:
                cursor.exclude_the_rest(began)
        finally:
            if self._iteration is mine and not self.repeat:
                cursor.consumed = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, JSON-able; taking it changes nothing."""
        return self._sequence.state(self.consumed_samples)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any topology. Raises ResumeMismatch for another dataset, seed or order,
        ConfigError for what is no state.

        Another batching takes over at the end of the current rung or super-window.
        """
        self._cursor.restore(state)
        self._iteration = None
        self.skipped = []

"""How a loader makes its batches, checked before anything begins; none of it decides which sample comes when."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from shardpipe.cache import ShardCache
from shardpipe.dataset import Index
from shardpipe.errors import ConfigError
from shardpipe.loading.feeding.feed import Feed
from shardpipe.loading.feeding.pace import Pace
from shardpipe.loading.feeding.sharing import CALLS
from shardpipe.loading.making import (
    Channels,
    Collate,
    Form,
    Maker,
    Transform,
    Workers,
    asking,
    check_picklable,
    cuda_device,
)
from shardpipe.loading.read import Reader
from shardpipe.loading.sequence import BatchSequence
from shardpipe.loading.served import Digests, Service, is_served
from shardpipe.runtime import cores
from shardpipe.settings import check, integer, optional
from shardpipe.store import Store, open_store

__all__ = ["Setup"]

# More rarely decode faster than one process trains, and there is a process for every GPU.
_THREADS_MAX = 8


@dataclass(kw_only=True)
class Setup:
    """The parameters of ShardLoader that say how. Raises ConfigError."""

    data: str | os.PathLike[str] | Store
    transform: Transform | str | None
    collate: Collate | str | None
    dtype: Literal["float32", "int16"]
    channels: Channels
    sample_rate: int | None
    threads: int | None
    workers: int | Literal["auto"]
    prefetch: int
    prefetch_bytes: int
    on_error: Literal["raise", "skip"]
    cache_dir: str | os.PathLike[str] | None
    cache_bytes: int | None
    schemes: Sequence[str]
    device: str | torch.device | None
    servers: str | Iterable[str] | None
    local: bool
    token_file: str | os.PathLike[str] | None
    tls_ca: str | os.PathLike[str] | None
    digests: Digests

    def __post_init__(self) -> None:
        self.form = Form(dtype=self.dtype, channels=self.channels, sample_rate=self.sample_rate)
        self.threads = optional(integer, "threads", self.threads, least=1)
        self._processes = 0 if self.workers == "auto" else integer("workers", self.workers, least=0)
        self.prefetch = integer("prefetch", self.prefetch, least=1)
        self.prefetch_bytes = integer("prefetch_bytes", self.prefetch_bytes, least=1)
        bounded = self.cache_bytes is None or self.cache_dir is not None
        check("cache_bytes", self.cache_bytes, bounded, "it needs a cache_dir")
        moved = self.device is None or self.collate is None
        check("device", self.device, moved, "it moves a Batch, and collate makes something else")
        check("schemes", self.schemes, not isinstance(self.schemes, str), "it must be a list of them")
        check("on_error", self.on_error, self.on_error in ("raise", "skip"), 'it must be "raise" or "skip"')
        self._check_servers()
        if self.workers:
            check_picklable(data=self.data, transform=self.transform, collate=self.collate)
        self.service = None
        """The servers, if there are any."""
        if self.servers is not None:
            self.service = Service(self.servers, token_file=self.token_file, tls_ca=self.tls_ca, digests=self.digests)

    def _check_servers(self) -> None:
        data = is_served(self.data)
        if data:
            check("servers", self.servers, self.servers is None, "data names the servers already")
            check("local", self.local, not self.local, "data is a service: give the place of the shards, and servers")
            self.servers = [str(self.data)]
        served = self.servers is not None
        self._makes = not served or self.local
        check("local", self.local, served or not self.local, "it goes with servers, and none is named")
        for name in ("workers", "cache_dir"):
            rule = "servers make all batches; local=True has this process make some as well"
            check(name, getattr(self, name), self._makes or not getattr(self, name), rule)
        for name in ("transform", "collate"):
            function, rule = getattr(self, name), "it must be a function: a name is of one that servers have"
            check(name, function, not isinstance(function, str) or not self._makes, rule)

    def open(self) -> Index:
        """The dataset's index. Raises CorruptIndex and StoreError."""
        if self.service is not None and is_served(self.data):
            return self.service.index()
        return Index.load(open_store(self.data), schemes=self.schemes)

    def feed(self, sequence: BatchSequence) -> Feed:
        """What makes the batches of a sequence. Raises ConfigError and StoreError."""
        index = sequence.index
        cache = None if self.cache_dir is None else ShardCache(self.cache_dir, self.cache_bytes)
        reader = Reader(index.store, index.shards, cache)
        maker = Maker(
            reader=reader,
            seed=sequence.order.seed,
            transform=None if isinstance(self.transform, str) else self.transform,
            collate=None if self.collate is None or isinstance(self.collate, str) else asking(self.collate),
            form=self.form,
            skip_errors=self.on_error == "skip",
        )
        makers = self._processes or self.threads or min(_THREADS_MAX, cores())
        workers = Workers(makers, maker, self.prefetch_bytes) if self.workers else None
        served, threads = None, makers
        if self.service is not None:
            served = self.service.maker(
                index,
                maker,
                transform=_reference("transform", self.transform),
                collate=_reference("collate", self.collate),
            )
            threads = CALLS + (2 * makers if self._makes else 0)
        # What cannot be had is refused here, and not in the middle of an epoch.
        self.form.check_channels(index.totals.channels)
        return Feed(
            sequence=sequence,
            reader=reader,
            cache=cache,
            maker=maker,
            pace=Pace(workers, makers, wait=self.workers == "auto"),
            served=served,
            makers=makers if self._makes else 0,
            device=cuda_device(self.device),
            threads=threads,
            prefetch=max(self.prefetch, threads),
            prefetch_bytes=self.prefetch_bytes,
        )


def _reference(setting: str, function: Any) -> str | None:
    """What servers know a function by: its name there, or where it lies. Raises ConfigError if it has no such place."""
    if function is None or isinstance(function, str):
        return function
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or not module or not name or module == "__main__" or "<" in name:
        rule = "servers can only run what lies in a module by a name"
        raise ConfigError(setting, function, rule, fix="Move it into a module, and name it in their configuration.")
    return f"{module}:{name}"

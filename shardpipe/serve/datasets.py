"""A server's datasets: their indexes as clients get them, their samples, and the functions that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from shardpipe.cache import ShardCache
from shardpipe.dataset import MANIFEST, Index
from shardpipe.errors import ShardError
from shardpipe.loading import AboutCollate, AboutDataset, Payload, Reader, SampleRow, asking, coalesce, rows_of
from shardpipe.runtime import pool
from shardpipe.serve.config import DatasetConfig, function_at
from shardpipe.settings import check
from shardpipe.store import Stat

__all__ = ["OpenDataset"]


@dataclass(frozen=True)
class _Function:
    reference: str
    call: Any


class OpenDataset:
    """One dataset: what its rows say, the bytes of its samples, its functions by name or reference. Safe for threads.

    Raises ConfigError, StoreError and CorruptIndex.
    """

    def __init__(self, name: str, config: DatasetConfig, cache: ShardCache | None) -> None:
        self.name = name
        self.index = Index.load(config.data, schemes=config.schemes)
        self.reader = Reader(self.index.store, self.index.shards, cache)
        self.transforms = _functions("transforms", config.transforms)
        collates = _functions("collates", config.collates)
        self.collates = {name: _Function(one.reference, asking(one.call)) for name, one in collates.items()}
        self._readers = pool(self.index.store.parallel, "shardpipe")
        self._stats: dict[str, Stat] = {}
        self._ends = np.cumsum(self.index.counts)
        self._manifest = self.index.manifest([_shown(shard.name) for shard in self.index.shards])

    def about(self) -> AboutDataset:
        return AboutDataset(
            fingerprint=self.index.fingerprint,
            transforms={name: function.reference for name, function in self.transforms.items()},
            collates={
                name: AboutCollate(function=function.reference, place=function.call.how != "no")
                for name, function in self.collates.items()
            },
        )

    def stat(self, file: str) -> Stat | None:
        """Of a file of the index; None if it has no such file."""
        if file == MANIFEST:
            return Stat(len(self._manifest), self.index.fingerprint[:32])
        if file not in self.index.part_names:
            return None
        if file not in self._stats:  # asked for with every range of it that is read
            self._stats[file] = self.index.store.stat(file)
        return self._stats[file]

    def read(self, file: str, offset: int, length: int) -> bytes:
        """A range of one that it has. Shards' names say nothing of where they lie."""
        if file == MANIFEST:
            return self._manifest[offset : offset + length]
        return self.index.store.read(file, offset, length)

    def rows(self, ordinals: Iterable[int]) -> list[SampleRow]:
        """Those of samples by their places in the whole dataset. Raises ValueError for one that it does not have."""
        wanted = np.fromiter(ordinals, np.int64)
        if len(wanted) and wanted.max() >= self.index.num_samples:
            raise ValueError(f"{self.name} has {self.index.num_samples} samples, and no number {wanted.max()}")
        shards = np.searchsorted(self._ends, wanted, side="right")
        places = wanted - (self._ends - self.index.counts)[shards]
        return [row._replace(shard_name=_shown(row.shard_name)) for row in rows_of(self.index, shards, places)]

    def payloads(self, rows: list[SampleRow]) -> Mapping[int, Payload]:
        """The bytes of their audio, read many at a time where the store takes a while to answer."""
        reader = self.reader
        found: dict[int, Payload] = {}
        if reader.store.parallel > 1 and (pieces := coalesce(rows, reader.missing(rows))):
            for some in self._readers.map(lambda piece: reader.fetch(piece, rows), pieces):
                found |= some
        return {i: _told(payload) for i, payload in reader.payloads(rows, found)}


def _functions(setting: str, references: Mapping[str, str]) -> dict[str, _Function]:
    found = {}
    for name, reference in references.items():
        check(setting, name, 0 < len(name) <= 200 and name.isprintable(), "a name must be short, and printable")
        found[name] = _Function(reference, function_at(f"{setting}.{name}", reference))
    return found


def _shown(name: str) -> str:
    """A shard's name as clients may know it: without the place of one that lies elsewhere."""
    return PurePosixPath(name).name if "://" in name or name.startswith("/") or ".." in name.split("/") else name


def _told(payload: Payload) -> Payload:
    if not isinstance(payload, ShardError):
        return payload
    return ShardError(
        payload.what, shard=_shown(payload.shard), key=payload.key, offset=payload.offset, fix=payload.fix
    )

"""Payloads of samples: which byte ranges to read, reading them, and seeing that they are what the index says.

A sample costs one read of its audio payload; its text and the rest come from the index. Samples that lie next to each
other in a shard and are wanted together are read together. No byte goes further unless its CRC-32 is that of the index,
wherever it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from isal.isal_zlib import crc32  # zlib's, by the carry-less multiplication of the processor: seven times as fast

from shardpipe.cache import ShardCache
from shardpipe.dataset import Index, ShardInfo
from shardpipe.errors import CorruptIndex, ShardError, StoreError
from shardpipe.order import Ints, by_shard
from shardpipe.store import Stat, Store, shown_in

__all__ = ["ByteRange", "Payload", "Reader", "SampleRow", "coalesce", "extras_of", "rows_of"]

# Headers and texts between neighbours are far smaller; what is larger is another member of a foreign tar.
_GAP = 1 << 16

_NUMBERS = ("audio_offset", "audio_size", "crc32", "frames", "sample_rate", "channels")
_STRINGS = ("key", "codec", "text", "extras")


class SampleRow(NamedTuple):
    """A sample's row of the index; `shard` and `place` say where it stands in the dataset."""

    shard: int
    place: int
    shard_name: str
    audio_offset: int
    audio_size: int
    crc32: int
    frames: int
    sample_rate: int
    channels: int
    key: str
    codec: str
    text: str
    extras: str | None
    """A JSON object."""


class ByteRange(NamedTuple):
    """One read: `size` bytes of a shard from `offset` on, which hold the payloads of rows[i] for i in `rows`."""

    shard: int
    offset: int
    size: int
    rows: tuple[int, ...]


Payload: TypeAlias = bytes | memoryview | ShardError
"""The bytes of a sample's audio, or why they cannot be had."""


def rows_of(index: Index, shards: Ints, places: Ints) -> list[SampleRow]:
    """The rows of samples given by shard number and index in the shard."""
    found = by_shard(shards)
    table = index.rows_at({shard: places[here] for shard, here in found.items()})
    order = np.concatenate(list(found.values()))  # in which they come from there
    owners = shards[order].tolist()
    names = [index.shards[shard].name for shard in owners]
    numbers = [table.column(field).to_numpy().tolist() for field in _NUMBERS]
    strings = [table.column(field).to_pylist() for field in _STRINGS]
    columns = (owners, places[order].tolist(), names, *numbers, *strings)
    rows = dict(zip(order.tolist(), map(SampleRow._make, zip(*columns))))
    return [rows[i] for i in range(len(rows))]


def coalesce(rows: Sequence[SampleRow], wanted: Iterable[int]) -> list[ByteRange]:
    """The reads that fetch the payloads of rows[i] for i in `wanted`. Pure.

    Only neighbours in a shard share a read: between them lie headers and a text, never the audio of a third sample.
    """
    ranges: list[ByteRange] = []
    last: SampleRow | None = None
    for i in sorted(wanted, key=lambda i: rows[i][:2]):
        row = rows[i]
        if last is not None and _adjoin(last, row):
            before = ranges.pop()
            size = row.audio_offset + row.audio_size - before.offset
            ranges.append(ByteRange(row.shard, before.offset, size, (*before.rows, i)))
        else:
            ranges.append(ByteRange(row.shard, row.audio_offset, row.audio_size, (i,)))
        last = row
    return ranges


def _adjoin(last: SampleRow, row: SampleRow) -> bool:
    gap = row.audio_offset - (last.audio_offset + last.audio_size)
    return row.shard == last.shard and row.place - last.place == 1 and 0 <= gap <= _GAP


class Reader:
    """Payloads from a store, by way of a local cache if there is one. Safe for threads; pickles.

    A shard whose size is not that of the manifest, or which changes while it is being read, raises StoreError.
    """

    def __init__(self, store: Store, shards: Sequence[ShardInfo], cache: ShardCache | None = None) -> None:
        self.store = store
        self._shards = shards
        self._cache = cache
        self._opened: dict[int, Stat] = {}

    def missing(self, rows: Sequence[SampleRow]) -> list[int]:
        """The rows that the cache does not seem to have."""
        cache, shards = self._cache, self._shards
        if cache is None:
            return list(range(len(rows)))
        return [i for i, row in enumerate(rows) if not cache.holds(shards[row.shard], row.audio_offset, row.audio_size)]

    def payloads(self, rows: Sequence[SampleRow], fetched: Mapping[int, Payload]) -> Iterator[tuple[int, Payload]]:
        """(i, payload of rows[i]) in no particular order: those `fetched` before, those in the cache, and the others
        one read at a time, so that the bytes are decoded while the processor still has them at hand.
        """
        yield from fetched.items()
        missing = []
        for i, row in enumerate(rows):
            if i not in fetched:
                if (payload := self._cached(row)) is None:
                    missing.append(i)
                else:
                    yield i, payload
        for piece in coalesce(rows, missing):
            yield from self.fetch(piece, rows).items()

    def fetch(self, piece: ByteRange, rows: Sequence[SampleRow]) -> dict[int, Payload]:
        """The payloads of a range's rows, read from the store and kept in the cache. Raises StoreError."""
        data = memoryview(self._read(piece.shard, piece.offset, piece.size))
        payloads: dict[int, Payload] = {}
        for i in piece.rows:
            row = rows[i]
            start = row.audio_offset - piece.offset
            payload = data[start : start + row.audio_size]
            payloads[i] = found = payload if crc32(payload) == row.crc32 else self._again(row)
            if self._cache is not None and not isinstance(found, ShardError):
                self._cache.write(self._shards[row.shard], row.audio_offset, found)
        return payloads

    def keep(self, shard: int, offset: int, size: int) -> None:
        """Has the cache hold a range of a shard, unchecked: its samples are checked when they are used."""
        assert self._cache is not None
        if not self._cache.holds(self._shards[shard], offset, size):
            self._cache.write(self._shards[shard], offset, self._read(shard, offset, size))

    def _cached(self, row: SampleRow) -> bytes | None:
        if self._cache is None:
            return None
        data = self._cache.read(self._shards[row.shard], row.audio_offset, row.audio_size)
        return data if data is not None and crc32(data) == row.crc32 else None

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        info = self._shards[shard]
        if shard not in self._opened:
            stat = self.store.stat(info.name)
            if stat.size != info.size:
                raise StoreError(
                    f"{stat.size} bytes, but the index was made of {info.size}",
                    url=shown_in(self.store, info.name),
                    fix="The shard has been replaced or cut: restore it, or index the dataset again.",
                )
            self._opened[shard] = stat
        return self.store.read(info.name, offset, size)

    def _again(self, row: SampleRow) -> Payload:
        """Reads once more what came with a wrong checksum: it may have been damaged on its way."""
        info = self._shards[row.shard]
        stat, opened = self.store.stat(info.name), self._opened[row.shard]
        if stat != opened:
            raise StoreError(
                f"changed while it was being read: {opened.size} bytes, version {opened.version!r}, then {stat.size} "
                f"bytes, version {stat.version!r}",
                url=shown_in(self.store, info.name),
                fix="A dataset must not change under a run: restore the shard, or index the dataset again.",
            )
        payload = self._read(row.shard, row.audio_offset, row.audio_size)
        if (crc := crc32(payload)) == row.crc32:
            return payload
        return ShardError(
            f"the audio's CRC-32 is {crc:08x}, the index says {row.crc32:08x}",
            shard=info.name,
            key=row.key,
            offset=row.audio_offset,
            fix="The shard has changed since it was indexed: run `shardpipe verify`, then restore or pack it again.",
        )


def extras_of(row: SampleRow) -> dict[str, Any]:
    """A sample's extra fields; a new dict at every call. Raises CorruptIndex."""
    if not row.extras:
        return {}
    try:
        extras = json.loads(row.extras)  # not more strictly: what older versions took may hold NaN
        if not isinstance(extras, dict):
            raise ValueError(f"found {type(extras).__name__}")
    except (ValueError, RecursionError) as error:
        fix = "Index the dataset again, from shards that you trust."
        what = f"its further fields are no JSON object ({error})"
        raise CorruptIndex(what, file=f"{row.shard_name}, sample {row.key!r}", fix=fix) from error
    return extras

"""From samples to waveforms: which byte ranges to read, reading them, checking them, decoding them.

A sample costs one read of its audio payload; its text and the rest come from the index. Samples that lie next to each
other in a shard and are wanted together are read together.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardpipe.audio import decode, to_mono
from shardpipe.errors import AudioError, ShardError, ShardpipeError
from shardpipe.index import Index
from shardpipe.store import Store

__all__ = ["ByteRange", "SampleRow", "coalesce", "decode_row", "read_ranges", "rows_of"]

# Headers and texts between neighbours are far smaller; what is larger is another member of a foreign tar.
_GAP = 1 << 16

_COLUMNS = ("key", "audio_offset", "audio_size", "crc32", "codec", "frames", "sample_rate", "text", "extras")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRow:
    """A sample's row of the index; `shard_number` and `place` say where it stands in the dataset."""

    shard_number: int
    place: int
    shard: str
    key: str
    audio_offset: int
    audio_size: int
    crc32: int
    codec: str
    frames: int
    sample_rate: int
    text: str
    extras: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """One read: `size` bytes of a shard from `offset` on, which hold the payloads of rows[i] for i in `rows`."""

    shard: str
    offset: int
    size: int
    rows: tuple[int, ...]


def rows_of(index: Index, shards: Sequence[int], places: Sequence[int]) -> list[SampleRow]:
    """The rows of samples given by shard number and index in the shard."""
    rows = []
    for number, place in zip(shards, places):
        columns = index.rows(number)
        values = {name: columns.column(name)[place].as_py() for name in _COLUMNS}
        values["extras"] = json.loads(values["extras"]) if values["extras"] else {}
        rows.append(SampleRow(shard_number=number, place=place, shard=index.shards[number].name, **values))
    return rows


def coalesce(rows: Sequence[SampleRow]) -> list[ByteRange]:
    """The reads that fetch these rows' payloads. Pure.

    Only neighbours in a shard share a read: between them lie headers and a text, never the audio of a third sample.
    """
    ranges: list[ByteRange] = []
    last: SampleRow | None = None
    for i in sorted(range(len(rows)), key=lambda i: (rows[i].shard_number, rows[i].place)):
        row = rows[i]
        if last is not None and _adjoin(last, row):
            before = ranges.pop()
            size = row.audio_offset + row.audio_size - before.offset
            ranges.append(ByteRange(shard=row.shard, offset=before.offset, size=size, rows=(*before.rows, i)))
        else:
            ranges.append(ByteRange(shard=row.shard, offset=row.audio_offset, size=row.audio_size, rows=(i,)))
        last = row
    return ranges


def _adjoin(last: SampleRow, row: SampleRow) -> bool:
    gap = row.audio_offset - (last.audio_offset + last.audio_size)
    return row.shard_number == last.shard_number and row.place - last.place == 1 and 0 <= gap <= _GAP


def read_ranges(store: Store, ranges: Sequence[ByteRange], rows: Sequence[SampleRow]) -> list[memoryview]:
    """The rows' payloads, in the rows' order. Raises StoreError."""
    payloads: list[memoryview] = [memoryview(b"")] * len(rows)
    for piece in ranges:
        data = memoryview(store.read(piece.shard, piece.offset, piece.size))
        for i in piece.rows:
            start = rows[i].audio_offset - piece.offset
            payloads[i] = data[start : start + rows[i].audio_size]
    return payloads


def decode_row(row: SampleRow, payload: memoryview, dtype: str) -> npt.NDArray[Any]:
    """Mono samples [frames], float32 in [-1, 1] or int16. Raises ShardError if the bytes are not those of the index,
    AudioError if they cannot be decoded.
    """
    if (crc := zlib.crc32(payload)) != row.crc32:
        raise ShardError(
            f"the audio's CRC-32 is {crc:08x}, the index says {row.crc32:08x}",
            shard=row.shard,
            key=row.key,
            offset=row.audio_offset,
            fix="The shard has changed since it was indexed: run `shardpipe verify`, then restore or pack it again.",
        )
    try:
        audio = to_mono(decode(payload, row.codec, dtype))
    except ShardpipeError as error:
        raise AudioError(error.what, key=row.key, codec=row.codec, where=row.shard, fix=error.fix) from error
    if len(audio) != row.frames:
        raise AudioError(
            f"{len(audio)} frames decoded, the index says {row.frames}",
            key=row.key,
            codec=row.codec,
            where=row.shard,
            fix="The decoder of this machine disagrees with the one that packed: pack again here, or align versions.",
        )
    return np.ascontiguousarray(audio)

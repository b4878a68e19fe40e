"""The rows of an index: one for every sample, in Parquet parts with one row group a shard.

Parts are read through a store, by byte ranges, so they may lie anywhere; docs/format.md specifies the columns.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardpipe.audio import CHANNELS_MAX, FRAMES_PER_BYTE_MAX, SAMPLE_RATE_MAX
from shardpipe.errors import CorruptIndex
from shardpipe.store import Store, writing

__all__ = ["SCHEMA", "PartReader", "Row", "check_rows", "rows_batch", "rows_checksum", "write_part"]

_FIELDS: list[pa.Field[Any]] = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("shard", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("audio_offset", pa.int64(), nullable=False),
    pa.field("audio_size", pa.int64(), nullable=False),
    pa.field("crc32", pa.uint32(), nullable=False),
    pa.field("codec", pa.string(), nullable=False),
    pa.field("frames", pa.int64(), nullable=False),
    pa.field("sample_rate", pa.int32(), nullable=False),
    pa.field("channels", pa.int16(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("extras", pa.string(), nullable=True),
]
SCHEMA = pa.schema(_FIELDS)
_BOUNDS: dict[str, tuple[int, int | None]] = {
    "offset": (0, None),
    "size": (1, None),
    "audio_offset": (0, None),
    "audio_size": (1, None),
    "frames": (1, 2**48),
    "sample_rate": (1, SAMPLE_RATE_MAX),
    "channels": (1, CHANNELS_MAX),
}
"""Least and most of a column's values; None is the size of the tar."""


class Row(NamedTuple):
    """One sample, fields in SCHEMA's order: offsets and sizes in bytes of the tar, frames per channel."""

    key: str
    shard: int
    offset: int
    size: int
    audio_offset: int
    audio_size: int
    crc32: int
    codec: str
    frames: int
    sample_rate: int
    channels: int
    text: str
    extras: str | None


def rows_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """The rows as one record batch, columns as SCHEMA has them."""
    columns = list(zip(*rows)) or [()] * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def check_rows(rows: pa.RecordBatch, size: int) -> None:
    """Raises ValueError unless all rows, or what there is of their columns, can be those of a tar of `size` bytes.

    What follows counts on it: memory is taken for as many frames as a row says, and bytes are read where it says.
    """
    numbers = {name: rows.column(name).to_numpy() for name in rows.schema.names if name in _BOUNDS}
    bounds = {name: (low, size if high is None else high) for name, (low, high) in _BOUNDS.items()}
    if "audio_size" in numbers:
        bounds["frames"] = (1, numbers["audio_size"].clip(0, size) * FRAMES_PER_BYTE_MAX)
        bounds["audio_offset"] = (0, size - numbers["audio_size"])
        bounds["offset"] = (0, size - numbers["size"])
    for name, values in numbers.items():
        low, high = bounds[name]
        wrong = np.flatnonzero((values < low) | (values > high))
        if len(wrong):
            most = np.broadcast_to(high, values.shape)[wrong[0]]
            raise ValueError(f"in row {wrong[0]} {name} is {values[wrong[0]]}, but must be from {low} to {most}")


def rows_checksum(batch: pa.RecordBatch) -> str:
    """sha256 (hex) of a shard's rows in canonical form, whatever library wrote or read them.

    Column by column in SCHEMA's order, `shard` left out (it tells the place in the dataset, not the content): integers
    as little-endian int64; strings as all their UTF-8 lengths (little-endian int64, -1 for null), then all their bytes.
    """
    digest = hashlib.sha256()
    for field in SCHEMA:
        column: Any = batch.column(field.name)
        if field.name == "shard":
            continue
        if pa.types.is_string(field.type):
            digest.update(pc.binary_length(column).fill_null(-1).to_numpy().astype("<i8").tobytes())
            digest.update(_joined(column.fill_null("")))
        else:
            digest.update(column.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _joined(strings: Any) -> bytes:
    """The UTF-8 bytes of all strings, one after another."""
    _, offsets, data = strings.buffers()
    if not len(strings) or data is None:
        return b""
    ends = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return bytes(data[int(ends[0]) : int(ends[-1])])


def write_part(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes one row group for every batch that has rows. No date and no statistics go in; every page has a CRC."""
    with (
        writing(path),
        pq.ParquetWriter(
            path, SCHEMA, compression="zstd", write_statistics=False, write_page_checksum=True, store_schema=False
        ) as writer,
    ):
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch, row_group_size=batch.num_rows)


class PartReader:
    """One part, its footer read once; every read of a row group is one read of the store, from any thread.

    Raises CorruptIndex and StoreError.
    """

    def __init__(self, store: Store, name: str, row_groups: int) -> None:
        self._where = f"{store.url}/{name}"
        self._store = store
        self._name = name
        self._size = store.stat(name).size
        try:
            self._metadata = _opened(_Window(self._size, self._read_range)).metadata
        # A ValueError is one of names: pyarrow decodes those of a damaged footer as they are.
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._corrupt(f"not a readable Parquet file ({error})") from error
        schema = self._metadata.schema.to_arrow_schema()
        if not schema.equals(SCHEMA):
            raise self._corrupt(f"the columns are {schema.names}, not {SCHEMA.names}")
        if self._metadata.num_row_groups != row_groups:
            raise self._corrupt(f"{self._metadata.num_row_groups} row groups, but the manifest counts {row_groups}")

    def read(self, row_group: int, rows: int, columns: list[str] | None = None) -> pa.RecordBatch:
        """One row group of so many rows as one batch: all columns in SCHEMA's order, or those named."""
        if (found := self._metadata.row_group(row_group).num_rows) != rows:
            raise self._corrupt(f"row group {row_group} has {found} rows, but the manifest counts {rows}")
        try:
            start, end = self._range(row_group, columns)
            window = _Window(self._size, self._read_range, held=(start, self._read_range(start, end)))
            table = _opened(window, self._metadata).read_row_group(row_group, columns=columns, use_threads=False)
            table.validate(full=True)  # that strings are UTF-8, above all
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._corrupt(f"row group {row_group} cannot be read ({error})") from error
        if table.num_rows != rows:
            raise self._corrupt(f"row group {row_group} gives {table.num_rows} rows, and not {rows}")
        return table.combine_chunks().to_batches()[0]

    def _range(self, row_group: int, columns: list[str] | None) -> tuple[int, int]:
        """(first byte, end) of the columns' chunks."""
        group = self._metadata.row_group(row_group)
        chunks = [group.column(i) for i in range(group.num_columns)]
        wanted = [chunk for chunk in chunks if columns is None or chunk.path_in_schema in columns]
        starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in wanted]
        return min(starts), max(start + chunk.total_compressed_size for start, chunk in zip(starts, wanted))

    def _read_range(self, start: int, end: int) -> bytes:
        """As much of a range as lies in the file."""
        start, end = max(0, start), min(end, self._size)
        return self._store.read(self._name, start, end - start) if start < end else b""

    def _corrupt(self, what: str) -> CorruptIndex:
        return CorruptIndex(what, file=self._where, fix="Index the shards again with `shardpipe index`.")


def _opened(window: _Window, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    file: Any = window
    # Without pre_buffer: it reads in Arrow's own threads, and one that still holds a Python object when the interpreter
    # ends aborts the process.
    return pq.ParquetFile(file, metadata=metadata, pre_buffer=False, page_checksum_verification=True)


class _Window(io.RawIOBase):
    """A file of `size` bytes as the seekable file that pyarrow reads; a range that is `held` is not read again."""

    def __init__(self, size: int, read: Callable[[int, int], bytes], *, held: tuple[int, bytes] = (0, b"")) -> None:
        self._size = size
        self._read = read
        self._held = held
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        start, held = self._held
        if start <= self._at and self._at + wanted <= start + len(held):
            buffer[:wanted] = held[self._at - start :][:wanted]
        else:
            buffer[:wanted] = self._read(self._at, self._at + wanted)
        self._at += wanted
        return wanted

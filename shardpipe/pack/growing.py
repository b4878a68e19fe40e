"""A dataset's shards while they are written one after another: where one ends, what is finished, what was left out."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from shardpipe.dataset import END_BYTES, SCHEMA, Row, ShardInfo, ShardWriter, rows_batch
from shardpipe.errors import ShardpipeError
from shardpipe.pack.contents import shard_name
from shardpipe.pack.destination import Destination
from shardpipe.runtime import abandon_when
from shardpipe.store import Count, Stat, parsed, write_file

__all__ = ["GrowingShards", "Rejection"]

_METADATA = b"shardpipe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """An utterance that was left out, where it is listed and why."""

    key: str
    where: str
    reason: str


class _Finished(msgspec.Struct, kw_only=True):
    """What the commit marker of a shard says besides its rows."""

    size: Count
    version: str
    md5: str
    stop: Count
    rejected: list[Rejection]


class GrowingShards:
    """The shards of a dataset that grows.

    One is finished once its tar is where the destination keeps it and its rows lie in staging: shard-000000.parquet.
    That is done in the background while the next one grows, which then waits for it: two at most take room.

    A sample starts a new shard where it would not fit into `max_bytes` of tar, or would be sample max_samples + 1.
    """

    def __init__(self, destination: Destination, *, max_bytes: int | None, max_samples: int | None) -> None:
        self._destination = destination
        self._max_bytes = max_bytes
        self._max_samples = max_samples
        self._finished: list[_Finished] = []
        self._finished_bytes = 0
        self.kept = 0
        """Shards that were finished before."""
        self._rows: list[Row] = []
        self._rejected: list[Rejection] = []
        self._writer: ShardWriter | None = None
        self._abandoned = threading.Event()
        self._background = ThreadPoolExecutor(1, "shardpipe-pack", abandon_when, (self._abandoned,))
        self._leaving: Future[_Finished] | None = None

    def recover(self, *, with_rejections: bool) -> int:
        """Takes up the finished shards, up to the first that has come to harm since, and returns the number of
        utterances they cover.

        Those from the first one with rejections on are taken up only if wanted.
        """
        kept = self._destination.kept()
        while finished := self._finished_earlier(kept):
            if finished.rejected and not with_rejections:
                break
            self._finished.append(finished)
            self._finished_bytes += finished.size
        self.kept = self.count
        return self._finished[-1].stop if self._finished else 0

    @property
    def count(self) -> int:
        """Shards that are complete, finished or about to be."""
        return len(self._finished) + (self._leaving is not None)

    @property
    def written(self) -> int:
        """Bytes of all shards so far."""
        return self._finished_bytes + (self._writer.size if self._writer else 0)

    def add(self, row: Row, data: bytes, position: int) -> None:
        """Appends a sample, utterance `position` of the list; offsets of the row count from the sample's start."""
        if self._writer and self._is_full(len(data)):
            self._complete(position)
        if self._writer is None:
            self._writer = ShardWriter(self._path("tar.new", self.count))
        offset = self._writer.append(data)
        self._rows.append(row._replace(shard=self.count, offset=offset, audio_offset=offset + row.audio_offset))

    def reject(self, rejection: Rejection) -> None:
        """Notes that an utterance was left out."""
        self._rejected.append(rejection)

    def finish(self, stop: int) -> None:
        """Ends the current shard, if any, and waits until all are finished; the utterances before `stop` are dealt
        with.
        """
        if self._writer:
            self._complete(stop)
        self._settle()

    def abandon(self) -> None:
        """Lets nobody wait for the shard in the background: it is given up, to be made again, unless all but done."""
        self._abandoned.set()

    def close(self) -> None:
        """Closes an unfinished shard's file, once the shard before it is finished, if it can be."""
        self._background.shutdown()
        with suppress(ShardpipeError):  # it is made again; what went wrong first is being told
            self._settle()
        if self._writer:
            self._writer.close()

    def _complete(self, stop: int) -> None:
        assert self._writer is not None
        self._writer.finish()
        self._settle()
        self._finished_bytes += self._writer.size
        self._leaving = self._background.submit(
            self._commit, self.count, self._writer.md5, stop, self._rejected, rows_batch(self._rows)
        )
        self._rows, self._rejected, self._writer = [], [], None

    def _settle(self) -> None:
        """Waits for the shard in the background. Raises StoreError if it could not be kept."""
        if self._leaving:
            leaving, self._leaving = self._leaving, None
            self._finished.append(leaving.result())

    def _commit(self, number: int, md5: str, stop: int, rejected: list[Rejection], rows: pa.RecordBatch) -> _Finished:
        size, version = self._destination.keep(self._path("tar.new", number), shard_name(number))
        finished = _Finished(size=size, version=version, md5=md5, stop=stop, rejected=rejected)
        metadata = {_METADATA: msgspec.json.encode(finished)}
        table = pa.Table.from_batches([rows]).replace_schema_metadata(metadata)
        data = io.BytesIO()
        pq.write_table(table, data, compression="zstd", write_page_checksum=True)
        write_file(self._path("parquet", number), data.getvalue())
        return finished

    def shards(self) -> Iterator[tuple[ShardInfo, pa.RecordBatch]]:
        """The finished shards with their rows."""
        for number, finished in enumerate(self._finished):
            table = self._table(number)
            rows = table.replace_schema_metadata(None).cast(SCHEMA).combine_chunks().to_batches()[0]
            yield ShardInfo.of(rows, name=shard_name(number), size=finished.size, md5=finished.md5), rows

    def rejections(self) -> Iterator[Rejection]:
        """What was left out so far."""
        for rejected in (*(finished.rejected for finished in self._finished), self._rejected):
            yield from rejected

    def _table(self, number: int) -> pa.Table:
        return pq.read_table(self._path("parquet", number), use_threads=False, page_checksum_verification=True)

    def _finished_earlier(self, kept: dict[str, Stat]) -> _Finished | None:
        """The next shard, if an earlier run finished it and both of its files are as it left them."""
        try:
            table = self._table(self.count)
            finished = parsed(table.schema.metadata[_METADATA], _Finished)
        except (pa.ArrowException, OSError, ValueError, KeyError):
            return None
        name = shard_name(self.count)
        found = kept.get(name)
        if found is None or found.size != finished.size:
            return None
        # Some file systems tell a version in one way in listings and in another one of a single file.
        same = found.version == finished.version or self._destination.store.stat(name).version == finished.version
        return finished if same else None

    def _is_full(self, more: int) -> bool:
        assert self._writer is not None
        if self._max_samples is not None and len(self._rows) >= self._max_samples:
            return True
        return self._max_bytes is not None and self._writer.size + more + END_BYTES > self._max_bytes

    def _path(self, suffix: str, number: int) -> Path:
        return self._destination.staging / shard_name(number).replace("tar", suffix)

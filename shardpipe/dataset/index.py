"""The index of a dataset: a small manifest that opens at once, and a row for every sample in Parquet parts.

docs/format.md specifies both. The manifest is the commit marker of a dataset and is written last; all the rest can be
checked against it: a shard's rows against their checksum, the whole against the fingerprint.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shardpipe.dataset.listing import SHARD_LIST, write_list
from shardpipe.dataset.lru import LoadingCache
from shardpipe.dataset.manifest import (
    MANIFEST,
    PART_SHARDS,
    Manifest,
    ShardInfo,
    Totals,
    fingerprint,
    format_manifest,
    parse_manifest,
)
from shardpipe.dataset.parts import PartReader, check_rows, rows_batch, rows_checksum, write_part
from shardpipe.dataset.scan import Members
from shardpipe.errors import CorruptIndex
from shardpipe.runtime import cores, pool
from shardpipe.store import Store, is_utf8, open_store, resolving, write_file, writing

__all__ = ["Index", "stage_index"]

# A parsed footer of 512 row groups takes about 6 MB, and one that is parsed again and again leaves the heap in holes:
# walking through 20,000 shards with room for too few, a process grows without end.
_OPEN_PARTS = 64
_SEARCHED_AT_ONCE = 256


class Index:
    """A dataset's manifest, and its rows on demand. Safe to share between threads; pickles without its caches."""

    def __init__(self, store: Store, manifest: Manifest, *, cache_bytes: int) -> None:
        self.store = store
        self.shards, self.totals, self.part_names, self.members = manifest
        self.counts = np.array([shard.samples for shard in self.shards], np.int64)
        self.num_samples = self.totals.samples
        self.fingerprint = fingerprint(self.shards)
        self._cache_bytes = cache_bytes
        self._start_caches()

    @classmethod
    def load(cls, data: str | Store, *, schemes: Iterable[str] = (), cache_bytes: int = 1 << 28) -> Index:
        """Reads the manifest of a directory, URL or store, and nothing else. Raises CorruptIndex and StoreError.

        Rows are cached up to `cache_bytes`. `schemes` are those that shards may be named by besides the store's own and
        plain ones; see `resolving`.
        """
        store = open_store(data)
        manifest = parse_manifest(store.read(MANIFEST), f"{store.url}/{MANIFEST}")
        store = resolving(store, (shard.name for shard in manifest.shards), schemes)
        return cls(store, manifest, cache_bytes=cache_bytes)

    def manifest(self, names: Sequence[str]) -> bytes:
        """The manifest's bytes, the shards by other names: the same dataset."""
        shards = [replace(shard, name=name) for shard, name in zip(self.shards, names, strict=True)]
        return format_manifest(shards, self.totals, list(self.part_names), self.members)

    def rows(self, shard: int) -> pa.RecordBatch:
        """All columns of a shard's rows, checked against the manifest."""

        def load() -> pa.RecordBatch:
            rows = self._read(shard, None)
            if rows_checksum(rows) != self.shards[shard].checksum:
                raise self._mismatch(shard, "the rows differ from the checksum in the manifest")
            return rows

        rows: pa.RecordBatch = self._cache.get((shard, "rows"), load, lambda rows: rows.nbytes)
        return rows

    def rows_at(self, places: Mapping[int, npt.NDArray[np.int64]]) -> pa.Table:
        """The rows at these places of each shard, one shard after another."""
        self.load_ahead(places)
        return pa.Table.from_batches([self.rows(shard).take(pa.array(here)) for shard, here in places.items()])

    def texts(self) -> Iterator[str]:
        """The text of every sample, in the shards' order."""
        for shard, count in enumerate(self.counts):
            if count:
                yield from self.rows(shard).column("text").to_pylist()

    def find(self, key: str) -> tuple[int, int] | None:
        """(shard, index in the shard) of the first sample that has the key; None if none has.

        The keys are in no order, so their column is read shard after shard; the rows of the one found are checked.
        """

        def place_in(shard: int) -> int:
            place: int = pc.index(self._read(shard, ["key"]).column("key"), key).as_py()
            return place

        if not is_utf8(key):  # an argument of a command may be any bytes
            return None
        with pool(max(self.store.parallel, cores()), "shardpipe") as threads:
            shards = iter(range(len(self.shards)))
            while some := list(islice(shards, _SEARCHED_AT_ONCE)):
                for shard, place in zip(some, threads.map(place_in, some)):
                    if place >= 0:
                        self.rows(shard)
                        return shard, place
        return None

    def seconds(self, shard: int) -> np.ndarray:
        """Length of each of a shard's samples in seconds, float64 [samples]; reads those two columns only."""

        def load() -> np.ndarray:
            rows = self._read(shard, ["frames", "sample_rate"])
            frames = rows.column("frames").to_numpy()
            if frames.sum() != self.shards[shard].frames:
                raise self._mismatch(shard, f"the rows sum to {frames.sum()} frames, the manifest to another number")
            seconds: np.ndarray = frames / rows.column("sample_rate").to_numpy()
            seconds.flags.writeable = False
            return seconds

        seconds: np.ndarray = self._cache.get((shard, "seconds"), load, lambda seconds: seconds.nbytes)
        return seconds

    def load_ahead(self, shards: Iterable[int], *, seconds: bool = False) -> None:
        """Loads the shards' rows, or their `seconds`, many at a time where the store takes a while to answer."""
        load: Callable[[int], object] = self.seconds if seconds else self.rows
        missing = [shard for shard in shards if (shard, "seconds" if seconds else "rows") not in self._cache]
        if self.store.parallel > 1 and len(missing) > 1:
            with pool(min(self.store.parallel, len(missing)), "shardpipe") as threads:
                for _ in threads.map(load, missing):
                    pass

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_cache", "_parts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_caches()

    def _start_caches(self) -> None:
        self._cache = LoadingCache(self._cache_bytes)
        self._parts = LoadingCache(_OPEN_PARTS)

    def _read(self, shard: int, columns: list[str] | None) -> pa.RecordBatch:
        """A row group of the part that holds the shard."""
        if not self.counts[shard]:
            empty = rows_batch([])
            return empty if columns is None else empty.select(columns)
        part, place = divmod(shard, PART_SHARDS)
        filled = self.counts[part * PART_SHARDS : (part + 1) * PART_SHARDS] > 0

        def load() -> PartReader:
            return PartReader(self.store, self.part_names[part], int(filled.sum()))

        reader = self._parts.get(part, load, lambda _: 1)
        rows = reader.read(int(filled[:place].sum()), int(self.counts[shard]), columns)
        try:
            check_rows(rows, self.shards[shard].size)
        except ValueError as error:
            raise self._mismatch(shard, str(error)) from error
        return rows

    def _mismatch(self, shard: int, what: str) -> CorruptIndex:
        file = f"{self.store.url}/{self.part_names[shard // PART_SHARDS]}"
        return CorruptIndex(
            f"{self.shards[shard].name}: {what}",
            file=file,
            fix="The parts and the manifest are not of one dataset: index the shards again with `shardpipe index`.",
        )


def stage_index(
    staging: Path,
    shards: Iterable[tuple[ShardInfo, pa.RecordBatch]],
    *,
    place: str | None = None,
    rejected: Sized = (),
    members: Members | None = None,
) -> tuple[Totals, list[str]]:
    """Writes parts, shards.list and manifest of a dataset under `staging`; `shards` come in order, with their rows.

    `place` is the path or URL where the dataset will lie, for shards.list to name the shards by; without it they have
    the manifest's names there. `rejected` holds what was left out, once the last shard has come; `members` says as
    which the tars' members were taken.

    Returns the totals and the names to publish, in that order: the manifest last. Raises StoreError.
    """
    infos: list[ShardInfo] = []
    codecs: Counter[Any] = Counter()
    rates: Counter[Any] = Counter()
    channels: Counter[Any] = Counter()

    def noted(some: Iterable[tuple[ShardInfo, pa.RecordBatch]]) -> Iterable[pa.RecordBatch]:
        for info, rows in some:
            infos.append(info)
            codecs.update(rows.column("codec").to_pylist())
            rates.update(rows.column("sample_rate").to_pylist())
            channels.update(rows.column("channels").to_pylist())
            yield rows

    with writing(staging):
        (staging / "index").mkdir(exist_ok=True)
    rest = iter(shards)
    parts: list[str] = []
    while first := next(rest, None):
        parts.append(f"index/part-{len(parts):05d}.parquet")
        write_part(staging / parts[-1], noted(chain([first], islice(rest, PART_SHARDS - 1))))
    totals = Totals(
        samples=sum(info.samples for info in infos),
        size=sum(info.size for info in infos),
        frames=sum(info.frames for info in infos),
        seconds=round(math.fsum(info.seconds for info in infos), 6),
        codecs=dict(sorted(codecs.items())),
        sample_rates=dict(sorted(rates.items())),
        channels=dict(sorted(channels.items())),
        rejected=len(rejected),
    )
    listed = write_list(staging / SHARD_LIST, [info.name for info in infos], place)
    write_file(staging / MANIFEST, format_manifest(infos, totals, parts, members or Members()))
    return totals, [*parts, *([SHARD_LIST] if listed else []), MANIFEST]

"""Re-reads every byte of a dataset and checks it against its index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from shardpipe.audio import AudioInfo
from shardpipe.dataset.index import Index
from shardpipe.dataset.listing import check_list
from shardpipe.dataset.manifest import ShardInfo
from shardpipe.dataset.parts import Row
from shardpipe.dataset.scan import Members, Scan
from shardpipe.dataset.shard import ShardReader
from shardpipe.errors import ShardError, ShardpipeError
from shardpipe.runtime import in_order
from shardpipe.store import Store, open_store

__all__ = ["VerifyReport", "verify"]

_MOST = 20  # problems told of one shard: where one row is off, most are
_FIX = "Restore the shard from its source, or, if it was changed on purpose, index the shards again."
_NOT_LOOKED_AT = AudioInfo(codec="", frames=0, sample_rate=0, channels=0)


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was read, and what is wrong with it."""

    samples: int
    """Found in the shards as their rows say."""
    shards: int
    size: int
    """Bytes read of shards."""
    problems: tuple[ShardpipeError, ...]

    @property
    def ok(self) -> bool:
        """Whether the dataset is whole."""
        return not self.problems


class _Task(NamedTuple):
    store: Store
    shard: ShardInfo
    number: int
    rows: pa.RecordBatch
    members: Members


class _Checked(NamedTuple):
    samples: int
    size: int
    problems: list[ShardpipeError]


def verify(
    data: str | os.PathLike[str] | Store,
    *,
    jobs: int = 1,
    schemes: Iterable[str] = (),
    progress: Callable[[int, int, int], None] | None = None,
) -> VerifyReport:
    """Checks every row against the manifest, that no key comes twice, and every shard against its rows and manifest
    entry: size, MD5, headers, and each sample's place, text, extra fields and audio (CRC-32); and shards.list.

    All problems are collected; only a manifest that cannot be read raises (CorruptIndex, StoreError). `progress` is
    called with (shards done, shards in all, bytes read).
    """
    index = Index.load(open_store(data), schemes=schemes)
    wrong_list = check_list(index.store, [shard.name for shard in index.shards])
    problems: list[ShardpipeError] = [wrong_list] if wrong_list else []
    samples = size = 0
    for done, checked in enumerate(in_order(_check, _tasks(index, problems), jobs=jobs), 1):
        samples += checked.samples
        size += checked.size
        problems += checked.problems
        if progress:
            progress(done, len(index.shards), size)
    return VerifyReport(samples=samples, shards=len(index.shards), size=size, problems=tuple(problems))


def _tasks(index: Index, problems: list[ShardpipeError]) -> Iterator[list[_Task]]:
    """The shards whose rows can be read; what is wrong with rows is added to `problems`."""
    first: dict[str, str] = {}
    for number, shard in enumerate(index.shards):
        try:
            rows = index.rows(number)
        except ShardpipeError as error:
            problems.append(error)
            continue
        key: Any
        for key in rows.column("key").to_pylist():
            if key in first:
                problems.append(
                    ShardError(f"this key is also in {first[key]}", shard=shard.name, key=key, fix="Pack it again.")
                )
            first[key] = shard.name
        yield [_Task(index.store, shard, number, rows, index.members)]


def _check(tasks: list[_Task]) -> list[_Checked]:
    (task,) = tasks
    shard = task.shard
    rows: dict[Any, dict[str, Any]] = {row["key"]: row for row in task.rows.to_pylist()}
    problems: list[ShardpipeError] = []
    samples = members = size = 0
    try:
        reader = ShardReader(task.store, shard.name)
        size = reader.size
        scan = Scan(reader, task.number, lambda _: _NOT_LOOKED_AT, task.members, lenient=True)
        for found in scan:
            key = found.key if isinstance(found, ShardError) else found.row.key
            if (row := rows.pop(key, None)) is None:
                continue  # counted below, as members outside the index
            if isinstance(found, ShardError):
                problems.append(found)
                continue
            members += found.members
            if difference := _difference(found.row, row):
                problems.append(ShardError(difference, shard=shard.name, key=key, offset=found.row.offset, fix=_FIX))
            else:
                samples += 1
    except ShardpipeError as error:
        return [_Checked(samples, size, [*problems[:_MOST], error])]
    if rows:
        lacking = f"{len(rows)} samples of the index are not in the shard, this one is the first"
        problems.append(ShardError(lacking, shard=shard.name, key=next(iter(rows)), fix=_FIX))
    for what, found_value, stated in (
        ("bytes", size, shard.size),
        ("MD5", reader.md5, shard.md5),
        ("members outside the index", scan.members - members, shard.ignored),
    ):
        if found_value != stated:
            line = f"{what}: {found_value} in the shard, {stated} in the manifest"
            problems.insert(0, ShardError(line, shard=shard.name, fix=_FIX))
    return [_Checked(samples, size, problems[:_MOST])]


def _difference(found: Row, row: dict[str, Any]) -> str:
    """What of a sample is not as its row says; empty if all is."""
    for name in ("offset", "size", "audio_offset", "audio_size", "crc32", "text", "extras"):
        if (value := getattr(found, name)) != row[name]:
            return f"{name}: {value!r:.60} in the shard, {row[name]!r:.60} in the index"
    return ""

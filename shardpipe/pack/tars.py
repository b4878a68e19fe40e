"""An index for tars that are there already, WebDataset's or WeNet's, indexed where they lie."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from braceexpand import braceexpand

from shardpipe.dataset import (
    SHARD_LIST,
    TORN,
    Index,
    Members,
    Scan,
    ShardInfo,
    ShardReader,
    inspect,
    is_list_of,
    list_place,
    rows_batch,
    stage_index,
)
from shardpipe.errors import ConfigError, ShardError, ShardpipeError, StoreError
from shardpipe.pack.contents import REJECTED, Contents, unfinished
from shardpipe.pack.destination import Destination, destination_at
from shardpipe.pack.growing import Rejection
from shardpipe.pack.packing import Progress
from shardpipe.pack.staging import Staging
from shardpipe.runtime import in_order, leave_if_imported
from shardpipe.settings import check
from shardpipe.store import LocalStore, Store, find_urls, is_url, is_utf8, local_path, open_store, scheme_of, write_file

__all__ = ["IndexReport", "index_tars"]


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What an index holds, and what of the tars it does not."""

    out: str
    """Folder or URL."""
    samples: int
    shards: int
    size: int
    """Bytes of all tars."""
    seconds: float
    """Of audio."""
    ignored: int
    """Members that tell the index nothing: directories, links, names without a dot, unknown extensions, and all members
    of rejected samples."""
    without_text: int
    """Samples with no or an empty .txt member; their text is empty."""
    rejected: int
    """Samples left out and listed in rejected.jsonl."""
    fingerprint: str


class _Task(NamedTuple):
    number: int
    path: str
    name: str
    members: Members


class _Result(NamedTuple):
    info: ShardInfo
    rows: pa.RecordBatch
    faults: list[ShardError]
    incomplete: frozenset[str]
    """Keys of those that have no audio at all."""


def index_tars(
    patterns: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    audio: str | None = None,
    text: str | None = None,
    skip_incomplete: bool = False,
    relative: bool = False,
    on_error: str = "fail",
    overwrite: bool = False,
    staging: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> IndexReport:
    """Writes the index of existing tars into the folder or to the URL `out`; the tars stay as they are and where they
    are. For a URL it is made in a folder of its own in `staging`, as by `pack`. `audio` is the extension of the audio
    where samples have several, `text` the field of KEY.json that holds the text, if KEY.txt does not. Samples without
    audio are an error, or with `skip_incomplete` left out and listed. shards.list names the tars where they lie, with
    `relative` as the manifest does.

    `patterns` are paths or URLs with wildcards or braces ("DIR/*.tar", "s3://bucket/{a,b}-{00..99}.tar"). The manifest
    names paths, and URLs under `out`, relative to `out`, so that both can be moved together; other URLs it names as
    they are. Samples that cannot be used raise ShardError or, with
    on_error="skip", are left out and listed in rejected.jsonl; a damaged tar always raises. Raises StoreError where
    nothing matches, or `out` holds an index and `overwrite` is not set, or cannot be written.
    """
    if jobs > 1:
        leave_if_imported()
    if on_error not in ("fail", "skip"):
        raise ConfigError("on_error", on_error, "it must be fail or skip")
    destination = destination_at(out, staging)
    paths = _expand([patterns] if isinstance(patterns, str) else patterns)
    members = Members(audio=None if audio is None else audio.lower().removeprefix("."), text=text)
    indexing = _Indexing(
        paths,
        destination.url,
        members,
        jobs=jobs,
        skip=on_error == "skip",
        incomplete=skip_incomplete,
        progress=progress,
    )
    place = list_place(destination.url, relative=relative)
    with Staging.open(destination) as folder:
        contents = Contents(destination)
        if folder.job is not None:
            raise unfinished(destination.url)
        contents.check_index_free(overwrite=overwrite)
        rejected = indexing.rejections
        totals, names = stage_index(folder.path, indexing.shards(), place=place, rejected=rejected, members=members)
        if not totals.samples:
            raise ShardError("no sample in any of the tars", shard=paths[0], fix="Check that these are the right tars.")
        if indexing.rejections:
            lines = [json.dumps(asdict(rejection), ensure_ascii=False) + "\n" for rejection in indexing.rejections]
            write_file(folder.path / REJECTED, "".join(lines).encode())
            names.insert(0, REJECTED)
        if SHARD_LIST in contents.index and SHARD_LIST in names and not _is_ours(destination, paths):
            names.remove(SHARD_LIST)  # WeNet's users have one of their own
        folder.publish(names, stale=contents.index - {SHARD_LIST})
    index = Index.load(destination.store, schemes=map(scheme_of, paths))
    return IndexReport(
        out=destination.url,
        samples=totals.samples,
        shards=len(index.shards),
        size=totals.size,
        seconds=totals.seconds,
        ignored=sum(shard.ignored for shard in index.shards),
        without_text=indexing.without_text,
        rejected=totals.rejected,
        fingerprint=index.fingerprint,
    )


def _is_ours(destination: Destination, paths: list[str]) -> bool:
    """Whether the list of shards that lies there is that of the dataset there."""
    try:
        names = [shard.name for shard in Index.load(destination.store, schemes=map(scheme_of, paths)).shards]
        return is_list_of(destination.store, names)
    except ShardpipeError:
        return False


class _Indexing:
    """The tars' shards and rows, and what was noticed of those that `shards` has given so far."""

    def __init__(
        self,
        paths: list[str],
        out: str,
        members: Members,
        *,
        jobs: int,
        skip: bool,
        incomplete: bool,
        progress: Progress | None,
    ) -> None:
        self._paths = paths
        self._tasks = [[_Task(i, path, _name(path, out), members)] for i, path in enumerate(paths)]
        self._jobs = jobs
        self._skip = skip
        self._skip_incomplete = incomplete
        self._progress = progress
        self.rejections: list[Rejection] = []
        self.without_text = 0

    def shards(self) -> Iterator[tuple[ShardInfo, pa.RecordBatch]]:
        keys: dict[str, int] = {}
        read = 0
        for number, result in enumerate(in_order(_index, self._tasks, jobs=self._jobs)):
            for fault in result.faults:
                if not (self._skip or (self._skip_incomplete and fault.key in result.incomplete)):
                    raise fault
            self.rejections.extend(_rejection(fault) for fault in result.faults)
            _check_keys(result, number, keys, self._paths)
            self.without_text += result.rows.column("text").to_pylist().count("")
            read += result.info.size
            if self._progress:
                self._progress(number + 1, len(self._tasks), read)
            yield result.info, result.rows


def _expand(patterns: Iterable[str]) -> list[str]:
    """The real paths and the URLs of all files that match, in the patterns' order, each one's sorted, none twice."""
    found: dict[str, None] = {}
    for pattern in patterns:
        for path in braceexpand(pattern):
            found.update((match, None) for match in (find_urls(path) if is_url(path) else _find(path)))
    return list(found)


def _find(pattern: str) -> list[str]:
    path = local_path(pattern)
    matches = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]  # noqa: PTH207
    if not matches:
        raise StoreError("no file matches", url=pattern, fix="Check the pattern, and quote it for the shell.")
    return [os.path.realpath(match) for match in matches]


def _name(path: str, out: str) -> str:
    """How the manifest of a dataset at `out` names a tar."""
    if is_url(path):
        return path.removeprefix(f"{out}/")
    if is_url(out):
        fix = "Upload the tars first, or put the index into a folder of this machine."
        raise ConfigError("tars", path, f"{out} cannot name what lies on this machine", fix=fix)
    name = os.path.relpath(path, os.path.realpath(out))
    check("tars", name, is_utf8(name), "the manifest is to name it, and can hold UTF-8 alone: rename it")
    return name


def _index(tasks: list[_Task]) -> list[_Result]:
    (task,) = tasks
    reader = ShardReader(_store_of(task.path), task.path)
    scan = Scan(reader, task.number, inspect, task.members)
    found = list(scan)
    samples = [sample for sample in found if not isinstance(sample, ShardError)]
    rows = rows_batch([sample.row for sample in samples])
    ignored = scan.members - sum(sample.members for sample in samples)
    info = ShardInfo.of(rows, name=task.name, size=reader.size, md5=reader.md5, ignored=ignored)
    faults = [sample for sample in found if isinstance(sample, ShardError)]
    # What comes first of such a sample may be all but its audio, which is told to be missing until the rest comes.
    told = [_torn(fault) if fault.key in scan.torn else fault for fault in faults]
    return [_Result(info, rows, told, frozenset(scan.incomplete))]


def _torn(fault: ShardError) -> ShardError:
    return ShardError(TORN, shard=fault.shard, key=fault.key, offset=fault.offset, fix=fault.fix)


def _store_of(path: str) -> Store:
    return open_store(path.rpartition("/")[0]) if is_url(path) else LocalStore("/")


def _check_keys(result: _Result, number: int, keys: dict[str, int], paths: list[str]) -> None:
    key: Any
    for key in result.rows.column("key").to_pylist():
        if (first := keys.setdefault(key, number)) != number:
            raise ShardError(
                f"this key is also in {paths[first]}",
                shard=paths[number],
                key=key,
                fix="Keys must differ over all tars: leave one of the two out, or rename its samples.",
            )


def _rejection(fault: ShardError) -> Rejection:
    return Rejection(key=fault.key, where=f"{fault.shard}:{fault.offset}", reason=fault.what)

"""A list of utterances becomes a dataset: shards of a wanted size, their index, and the manifest last.

Worker processes read and encode; this process alone writes, in the list's order, so the bytes are the same for any
number of jobs. Finished shards wait at their destination until all are there: killed at any moment and run again,
packing goes on after the last of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from shardpipe.audio import FLAC_LEVEL, RESAMPLER, SAMPLE_RATE_MAX
from shardpipe.dataset import SHARD_LIST, Index, is_list_of, list_place, stage_index, write_list
from shardpipe.errors import ConfigError, ListError
from shardpipe.lists import Utterance, check_key, read_list
from shardpipe.pack.contents import REJECTED, Contents, another_unfinished, shard_name
from shardpipe.pack.destination import JOB, Destination, destination_at
from shardpipe.pack.growing import GrowingShards, Rejection
from shardpipe.pack.prepare import FORMATS, Prepared, prepare
from shardpipe.pack.staging import Staging
from shardpipe.runtime import in_order, leave_if_imported
from shardpipe.settings import check, integer
from shardpipe.store import write_file

__all__ = ["PackOptions", "PackReport", "Progress", "pack"]

Progress = Callable[[int, int, int], None]
"""Called with (done, total, bytes): utterances dealt with, utterances in all, bytes of shards written."""

_JOB_VERSION = 1
_FLAC_LEVEL_BEFORE = 5  # which all packs had that name none
_CHUNK = 16
_CHUNK_OF_RECORDING = 256


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack. Shards end by bytes (`shard_size`, 512 MiB by default) or by samples (`shard_samples`)."""

    shard_size: int | None = None
    shard_samples: int | None = None
    format: str = "keep"
    """keep: the bytes as they are; or flac, wav, opus: encode what is of another codec."""
    sample_rate: int | None = None
    """Hz to resample to; None keeps each utterance's own."""
    flac_level: int = FLAC_LEVEL
    """0 to 8, of FLAC that is written: by default the one that decodes fastest; a higher one takes less room."""
    jobs: int = 1
    shuffle_seed: int | None = None
    """Packs in an order drawn from this seed; None keeps the list's.

    A training run shuffles for itself. Segments of long MP3, Ogg or Opus recordings are slow to pack this way, for each
    of them has its whole recording decoded.
    """
    on_error: str = "fail"
    """fail: the first bad utterance ends packing; skip: it is left out and listed in rejected.jsonl."""
    overwrite: bool = False
    relative: bool = False
    """shards.list names the shards relative to its folder, for a dataset that is to be moved; else where they lie."""
    fix_keys: bool = False
    """Maps characters that a key must not hold, instead of refusing them."""

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.shard_samples is not None:
            raise ConfigError(
                "shard_samples", self.shard_samples, "shard_size is given as well", fix="Give one of them."
            )
        if self.format not in FORMATS:
            raise ConfigError("format", self.format, f"it must be one of {', '.join(FORMATS)}")
        if self.on_error not in ("fail", "skip"):
            raise ConfigError("on_error", self.on_error, "it must be fail or skip")
        for name in ("shard_size", "shard_samples", "sample_rate", "jobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, value, "it must be 1 or more")
        level = integer("flac_level", self.flac_level, least=0)
        check("flac_level", level, level <= 8, "it must be 8 or less")
        if self.sample_rate is not None and self.sample_rate > SAMPLE_RATE_MAX:
            raise ConfigError("sample_rate", self.sample_rate, f"it must be {SAMPLE_RATE_MAX} Hz or less")


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack left at its destination, this run's work and that of earlier, interrupted ones."""

    out: str
    """Folder or URL."""
    samples: int
    shards: int
    size: int
    """Bytes of all shards."""
    seconds: float
    """Of audio."""
    rejected: int
    """Utterances left out and listed in rejected.jsonl."""
    shards_kept: int
    """Shards that an earlier run had finished and this one did not touch."""
    fingerprint: str


def pack(
    source: str | os.PathLike[str] | Sequence[Utterance],
    out: str | os.PathLike[str],
    *,
    options: PackOptions | None = None,
    staging: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PackReport:
    """Packs a list (a file, a Kaldi directory, or utterances) into the folder `out`, or to such a URL.

    For a URL the shards grow in a folder of their own in `staging` (default: ~/.cache/shardpipe/packing), each is
    uploaded when it is finished, and a further run must find that folder to go on. A folder needs no `staging`.

    Raises ListError for a bad list and AudioError for bad audio, unless on_error="skip" and something is left;
    StoreError where `out` holds something else or cannot be written. An error leaves finished shards for the next try,
    and no other trace.
    """
    options = options or PackOptions()
    if options.jobs > 1:
        leave_if_imported()
    utterances, rejections = _read(source, options)
    digest = _digest(utterances, options)
    if options.shuffle_seed is not None:
        utterances.sort(key=partial(_shuffle_key, options.shuffle_seed))
    destination = destination_at(out, staging)
    place = list_place(destination.url, relative=options.relative)
    with Staging.open(destination) as folder:
        contents = Contents(destination)
        if contents.packed == digest and (folder.has_finished_earlier or not options.overwrite):
            if folder.job == digest:
                folder.remove()
            _renew_list(destination, folder.path, place)
            return _report(destination)
        contents.check_free(digest, overwrite=options.overwrite)
        if folder.job not in (None, digest) and not options.overwrite:
            raise another_unfinished(destination.url)
        folder.begin(digest)
        shards = _grow(destination, utterances, options, progress)
        if not shards.count:
            raise _nothing_left([*rejections, *shards.rejections()])
        names = _stage_index(folder.path, shards, rejections, digest, place)
        folder.publish(names, stale=contents.index | contents.shards)
        return _report(destination, kept=shards.kept)


def _read(
    source: str | os.PathLike[str] | Sequence[Utterance], options: PackOptions
) -> tuple[list[Utterance], list[Rejection]]:
    """The utterances, and the lines of a list that hold none."""
    if not isinstance(source, (str, os.PathLike)):
        return _checked(source), []
    rejections: list[Rejection] = []

    def reject(error: ListError) -> None:
        rejections.append(Rejection(key=error.key, where=error.where, reason=error.what))

    skip = reject if options.on_error == "skip" else None
    utterances = list(read_list(source, fix_keys=options.fix_keys, on_reject=skip))
    if not utterances:
        raise _nothing_left(rejections)
    return utterances, rejections


def _checked(utterances: Sequence[Utterance]) -> list[Utterance]:
    """What reading a list would have checked."""
    if not utterances:
        raise ListError("the list is empty", file="utterances", fix="Give at least one utterance.")
    seen: dict[str, str] = {}
    for utterance in utterances:
        fault = check_key(utterance.key)
        if utterance.key in seen:
            fault = f"is already that of {seen[utterance.key]}"
        if fault:
            raise ListError(f"the key {utterance.key!r} {fault}", file=utterance.where, fix="Rename it.")
        seen[utterance.key] = utterance.where
    return list(utterances)


def _nothing_left(rejections: Sequence[Rejection]) -> ListError:
    return ListError(
        f"nothing to pack: all {len(rejections)} utterances were rejected, the first because {rejections[0].reason}",
        file=rejections[0].where,
        fix="Correct the list or the audio.",
    )


def _digest(utterances: Sequence[Utterance], options: PackOptions) -> str:
    """Of all that decides which bytes a pack writes, except the audio itself."""
    job = [_JOB_VERSION, options.shard_size, options.shard_samples, options.format, options.sample_rate]
    # What came later is named, and only where it matters: packs begun before it go on.
    later: list[object] = [RESAMPLER] if options.sample_rate else []
    if options.flac_level != _FLAC_LEVEL_BEFORE and _may_write_flac(utterances, options):
        later.append({"flac_level": options.flac_level})
    digest = hashlib.sha256(json.dumps([*job, options.shuffle_seed, *later]).encode())
    for u in utterances:
        fields = [u.key, u.audio, u.text, u.start, u.end, u.extras, *([] if u.channel is None else [u.channel])]
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()


def _may_write_flac(utterances: Sequence[Utterance], options: PackOptions) -> bool:
    """Not where all bytes stay as they are, or another format is asked for."""
    if options.format != "keep" or options.sample_rate:
        return options.format in ("keep", "flac")
    return any((u.start, u.end, u.channel) != (None, None, None) for u in utterances)


def _shuffle_key(seed: int, utterance: Utterance) -> bytes:
    # A library's shuffle may change between versions; sorting by a hash never does.
    return hashlib.blake2b(f"{seed} {utterance.key}".encode(), digest_size=16).digest()


def _grow(
    destination: Destination, utterances: Sequence[Utterance], options: PackOptions, progress: Progress | None
) -> GrowingShards:
    """Writes the shards that are not finished yet."""
    max_bytes = options.shard_size or (None if options.shard_samples else 512 << 20)
    shards = GrowingShards(destination, max_bytes=max_bytes, max_samples=options.shard_samples)
    skip = options.on_error == "skip"
    done = shards.recover(with_rejections=skip)
    work = partial(prepare, target=options.format, sample_rate=options.sample_rate, flac_level=options.flac_level)
    try:
        for position, result in enumerate(in_order(work, _chunks(utterances[done:]), jobs=options.jobs), done):
            utterance = utterances[position]
            if isinstance(result, Prepared):
                shards.add(result.row, result.data, position)
            elif skip:
                shards.reject(Rejection(key=utterance.key, where=utterance.where, reason=str(result)))
            else:
                raise result
            if progress:
                progress(position + 1, len(utterances), shards.written)
        shards.finish(len(utterances))
    except KeyboardInterrupt:
        shards.abandon()
        raise
    finally:
        shards.close()
    return shards


def _chunks(utterances: Sequence[Utterance]) -> Iterator[list[Utterance]]:
    """Neighbours cut from one recording stay together, so that few workers have to decode it."""
    chunk: list[Utterance] = []
    for utterance in utterances:
        limit = _CHUNK_OF_RECORDING if chunk and chunk[-1].audio == utterance.audio else _CHUNK
        if len(chunk) >= limit:
            yield chunk
            chunk = []
        chunk.append(utterance)
    yield chunk


def _stage_index(
    folder: Path, shards: GrowingShards, of_list: list[Rejection], digest: str, place: str | None
) -> list[str]:
    """Writes all that is not a shard; returns the names to publish, in that order."""
    rejections = [*of_list, *shards.rejections()]
    _, index = stage_index(folder, shards.shards(), place=place, rejected=rejections)
    write_file(folder / JOB, json.dumps({"digest": digest, "shards": shards.count}).encode())
    names = [*(shard_name(number) for number in range(shards.count)), JOB]
    if rejections:
        lines = [json.dumps(asdict(rejection), ensure_ascii=False) + "\n" for rejection in rejections]
        write_file(folder / REJECTED, "".join(lines).encode())
        names.append(REJECTED)
    return [*names, *index]


def _renew_list(destination: Destination, staging: Path, place: str | None) -> None:
    """Of a dataset that is packed already: it may have been copied since, or its lines are wanted otherwise."""
    store = destination.store
    names = [shard.name for shard in Index.load(store).shards]
    written = write_list(staging / SHARD_LIST, names, place)
    if written and SHARD_LIST in destination.listing():
        written = is_list_of(store, names) and store.read(SHARD_LIST) != (staging / SHARD_LIST).read_bytes()
    if written:
        destination.place(staging / SHARD_LIST, SHARD_LIST)


def _report(destination: Destination, *, kept: int | None = None) -> PackReport:
    index = Index.load(destination.store)
    totals = index.totals
    return PackReport(
        out=destination.url,
        samples=totals.samples,
        shards=len(index.shards),
        size=totals.size,
        seconds=totals.seconds,
        rejected=totals.rejected,
        shards_kept=len(index.shards) if kept is None else kept,
        fingerprint=index.fingerprint,
    )

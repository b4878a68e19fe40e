"""The manifest of a dataset: its shards, its totals and its fingerprint, in JSON that a wids reader takes as well."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import msgspec
import pyarrow as pa

from shardpipe.audio import CHANNELS_MAX, SAMPLE_RATE_MAX
from shardpipe.dataset.parts import rows_checksum
from shardpipe.dataset.scan import Members
from shardpipe.errors import CorruptIndex
from shardpipe.store import Count, parsed

__all__ = [
    "FORMAT",
    "MANIFEST",
    "PART_SHARDS",
    "Manifest",
    "ShardInfo",
    "Totals",
    "fingerprint",
    "format_manifest",
    "parse_manifest",
]

MANIFEST = "shardindex.json"
FORMAT = 1
PART_SHARDS = 512
"""Every part but the last covers so many shards."""

_MEMBERS = Members()
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard as the manifest describes it; `name` is relative to the dataset's folder, or absolute."""

    name: str
    samples: int
    size: int
    """Bytes of the tar."""
    md5: str
    frames: int
    seconds: float
    checksum: str
    """`rows_checksum` of the shard's rows."""
    ignored: int = 0
    """Members of the tar that no row covers; always 0 where shardpipe wrote it."""

    @property
    def content(self) -> str:
        """32 hex digits that tell the content: its MD5, or where a manifest has none, a hash of what tells the rows."""
        if isinstance(self.md5, str) and _MD5.fullmatch(self.md5):
            return self.md5
        return hashlib.md5(repr((self.md5, self.checksum)).encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def of(cls, rows: pa.RecordBatch, *, name: str, size: int, md5: str, ignored: int = 0) -> ShardInfo:
        """The description of a shard with these rows."""
        frames = rows.column("frames").to_numpy()
        seconds = math.fsum(frames / rows.column("sample_rate").to_numpy())
        return cls(
            name=name,
            samples=rows.num_rows,
            size=size,
            md5=md5,
            frames=int(frames.sum()),
            seconds=round(seconds, 6),
            checksum=rows_checksum(rows),
            ignored=ignored,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over a dataset: `codecs`, `sample_rates` (Hz) and `channels` count samples."""

    samples: int
    size: int
    frames: int
    seconds: float
    codecs: dict[str, int]
    sample_rates: dict[int, int]
    rejected: int
    """Utterances left out when the dataset was made; rejected.jsonl lists them."""
    channels: dict[int, int] = field(default_factory=dict)
    """Samples by their number of channels; empty if the manifest does not say, as those of version 0.1 do not."""


def fingerprint(shards: Iterable[ShardInfo]) -> str:
    """sha256 (hex) of what the dataset is, wherever it lies: format version, then each shard's samples and checksum."""
    digest = hashlib.sha256(f"shardpipe {FORMAT}\n".encode())
    for shard in shards:
        digest.update(f"{shard.samples} {shard.checksum}\n".encode())
    return digest.hexdigest()


class Manifest(NamedTuple):
    """What a manifest says."""

    shards: tuple[ShardInfo, ...]
    totals: Totals
    parts: tuple[str, ...]
    members: Members
    """As which the shards' members were taken when they were indexed."""


def format_manifest(shards: list[ShardInfo], totals: Totals, parts: list[str], members: Members = _MEMBERS) -> bytes:
    """The manifest's bytes: the same dataset gives the same bytes anywhere."""
    chosen = msgspec.to_builtins(members)
    fields = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardpipe": {
            "format": FORMAT,
            "fingerprint": fingerprint(shards),
            "samples": totals.samples,
            "size": totals.size,
            "frames": totals.frames,
            "seconds": totals.seconds,
            "codecs": totals.codecs,
            "sample_rates": {str(rate): samples for rate, samples in totals.sample_rates.items()},
            **({"channels": {str(n): samples for n, samples in totals.channels.items()}} if totals.channels else {}),
            "rejected": totals.rejected,
            "parts": parts,
            **({"members": chosen} if chosen else {}),
        },
        "shardlist": [
            {
                "url": shard.name,
                "nsamples": shard.samples,
                "md5sum": shard.md5,
                "filesize": shard.size,
                "frames": shard.frames,
                "seconds": shard.seconds,
                "checksum": shard.checksum,
                "ignored": shard.ignored,
            }
            for shard in shards
        ],
    }
    return (json.dumps(fields, ensure_ascii=False, indent=1) + "\n").encode()


class _Shard(msgspec.Struct):
    url: str
    nsamples: Count
    md5sum: str
    filesize: Count
    frames: Count
    seconds: float
    checksum: str
    ignored: Count


class _Own(msgspec.Struct):
    fingerprint: str
    samples: Count
    size: Count
    frames: Count
    seconds: float
    codecs: dict[str, Count]
    sample_rates: dict[Annotated[int, msgspec.Meta(ge=1, le=SAMPLE_RATE_MAX)], Count]
    rejected: Count
    parts: list[str]
    channels: dict[Annotated[int, msgspec.Meta(ge=1, le=CHANNELS_MAX)], Count] = {}
    members: Members = _MEMBERS


class _Manifest(msgspec.Struct):
    shardpipe: _Own
    shardlist: list[_Shard]


class _Version(msgspec.Struct):
    format: Any


class _OfAnyVersion(msgspec.Struct):
    shardpipe: _Version


def parse_manifest(data: bytes, file: str) -> Manifest:
    """What a manifest's bytes say. Raises CorruptIndex."""
    again = "Make it again with `shardpipe index`, or pack the dataset again."
    try:
        version = parsed(data, _OfAnyVersion).shardpipe.format
        if version != FORMAT:
            raise CorruptIndex(
                f"format version {version!r}, but this shardpipe reads {FORMAT}",
                file=file,
                fix="Read it with the version of shardpipe that wrote it, or index the shards again.",
            )
        manifest = parsed(data, _Manifest)
    except ValueError as error:
        raise CorruptIndex(f"not a manifest ({error})", file=file, fix=again) from error
    own = manifest.shardpipe
    shards = tuple(
        ShardInfo(
            name=shard.url,
            samples=shard.nsamples,
            size=shard.filesize,
            md5=shard.md5sum,
            frames=shard.frames,
            seconds=shard.seconds,
            checksum=shard.checksum,
            ignored=shard.ignored,
        )
        for shard in manifest.shardlist
    )
    for what, found, said in (
        ("samples", sum(shard.samples for shard in shards), own.samples),
        ("bytes", sum(shard.size for shard in shards), own.size),
        ("frames", sum(shard.frames for shard in shards), own.frames),
        ("samples by codec", own.samples, sum(own.codecs.values())),
        ("samples by sample rate", own.samples, sum(own.sample_rates.values())),
        ("samples by number of channels", own.samples, sum(own.channels.values()) if own.channels else own.samples),
        ("fingerprint", fingerprint(shards), own.fingerprint),
        ("number of parts", -(-len(shards) // PART_SHARDS), len(own.parts)),
    ):
        if found != said:
            raise CorruptIndex(f"{what}: it says {said}, but its shards give {found}", file=file, fix=again)
    for name in own.parts:
        if "://" in name or name.startswith("/") or ".." in name.split("/") or not name:
            raise CorruptIndex(f"the part {name!r} does not lie in its folder", file=file, fix=again)
    totals = Totals(
        samples=own.samples,
        size=own.size,
        frames=own.frames,
        seconds=own.seconds,
        codecs=own.codecs,
        sample_rates=own.sample_rates,
        rejected=own.rejected,
        channels=own.channels,
    )
    return Manifest(shards, totals, tuple(own.parts), own.members)

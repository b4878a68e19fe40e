"""checkpoint.json: what a checkpoint says of itself. It is written last, and makes a folder into a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from isal.isal_zlib import crc32  # zlib's, several times as fast

from shardpipe.errors import ResumeMismatch, StoreError
from shardpipe.store import Count, Store, parsed, shallow
from shardpipe.train.engines import Scale
from shardpipe.train.schedule import Plateau
from shardpipe.train.validation import ONLY, named

__all__ = [
    "FIX",
    "FORMAT",
    "MARKER",
    "Checkpoint",
    "Identity",
    "Progress",
    "Sum",
    "count_of",
    "damaged",
    "marker_of",
    "name_of",
    "parse_marker",
]

MARKER = "checkpoint.json"
FORMAT: Literal[2] = 2
"""Of checkpoints that are written; those of 1 are read."""
FIX = "Choose another checkpoint; --resume auto takes the newest that is whole."
_FILE = re.compile(r"(?!checkpoint\.json$)[\w.-]*\w[\w.-]*", re.ASCII)
_DIGITS = 12


class Progress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a run has counted so far, all processes together; the loader counts the samples."""

    steps: Count = 0
    """Optimizer steps, those that were skipped among them."""
    skipped_steps: Count = 0
    """Steps that left the model as it was, for their gradient was not finite."""
    skipped_in_a_row: Count = 0
    left_out: Count = 0
    """Utterances too short for their text, which taught nothing."""
    unreadable: Count = 0
    """Samples that could not be decoded."""
    excluded: Count = 0
    """Samples left out for their length."""
    failed_evaluations: Count = 0
    """On one set each, whose data could not be had."""
    unknown_units: Count = 0
    """Characters that the units do not have."""
    sub_epochs: Count | None = None
    """Sub-epochs that have ended, of whatever length; None where they were not counted yet."""
    sub_epoch_ends: tuple[Count, ...] = ()
    """The counts of consumed samples at which the last two ended, as far as that was noted."""
    plateau: Plateau | None = None
    evaluated: bool = True
    """False if a sub-epoch has ended and its evaluation is still to come."""


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint and the run that loads it must have in common, the data apart."""

    model: str
    units: tuple[str, ...]
    sample_rate: Count

    def check(self, saved: Identity, where: str) -> None:
        """Raises ResumeMismatch for the fields of `saved` that differ, all of which it names."""
        differ = [
            ResumeMismatch(name, was, current, where=where, fix=fix)
            for name, fix in _FIXES.items()
            if (was := getattr(saved, name)) != (current := getattr(self, name))
        ]
        if differ:
            raise ResumeMismatch.of_all(differ)


_FIXES = {
    "model": "Give the same --model, or a new --out.",
    "units": "Give the --units of that run (units.txt in its folder), or a new --out.",
    "sample_rate": "Have the audio resampled to that rate, with --sample-rate, or give a new --out.",
}


class Sum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file was when it was written."""

    size: Count
    crc32: Count

    @classmethod
    def of(cls, blocks: Iterable[bytes]) -> Sum:
        """That of a file, which comes in blocks."""
        size = crc = 0
        for block in blocks:
            size, crc = size + len(block), crc32(block, crc)
        return cls(size, crc)


class _Marker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """checkpoint.json as it is written. `checksum` is that of all the rest; versions up to 0.1.0 wrote none.

    Format 1 has neither `epoch` nor `sub_epoch` nor `valid`.
    """

    format: Literal[1, 2]
    consumed_samples: Count
    epoch: Count | None = None
    sub_epoch: Count | None = None
    progress: Progress
    identity: Identity
    loader: dict[str, Any]
    files: dict[str, Sum]
    scale: Scale | None = None
    valid: dict[str, float | None] | None = None
    checksum: str | None = None


_FIELDS = [name for name in _Marker.__struct_fields__ if name != "checksum"]
_COUNTED_LATER = {"sub_epochs": None, "sub_epoch_ends": (), "plateau": None, "failed_evaluations": 0}
_OPTIONAL = ("epoch", "sub_epoch", "scale", "valid")


class _Format(msgspec.Struct):
    format: Any


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a complete checkpoint says. `files` are all others in its folder, which `store` reads."""

    store: Store | None = field(default=None, compare=False)
    """None of one that is still to be written."""
    consumed_samples: int
    progress: Progress
    identity: Identity
    loader: dict[str, Any]
    scale: Scale | None = None
    """Of fp16's gradients."""
    epoch: int | None = None
    """In which the run goes on; None in format 1, as `sub_epoch`."""
    sub_epoch: int | None = None
    valid: Mapping[str, float | None] | None = None
    """Figures like dev/loss, once it has been evaluated on the sets; None for what is not finite."""
    files: Mapping[str, Sum] = field(default_factory=dict)
    format: Literal[1, 2] = FORMAT

    @property
    def where(self) -> str:
        return "" if self.store is None else self.store.url

    @property
    def size(self) -> int:
        """Of its files, in bytes."""
        return sum(written.size for written in self.files.values())


def parse_marker(data: bytes, where: str) -> Checkpoint:
    """What a checkpoint.json says, as it was written. Raises StoreError; `where` is the checkpoint's place."""
    try:
        version = parsed(data, _Format).format
        if version not in (1, FORMAT) or isinstance(version, bool | float):
            found = f"has format {version!r}, this version reads 1 and {FORMAT}"
            raise StoreError(found, url=where, fix="Resume with the version of shardpipe that wrote it.")
        marker = parsed(data, _Marker)
        shallow(marker.loader)
    except ValueError as error:
        raise damaged(where, f"{MARKER} cannot be read ({error})") from error
    if marker.checksum is not None and marker.checksum != _checksum(parsed(data, dict[str, Any])):
        raise damaged(where, f"{MARKER} is not what was written, by its checksum")
    if marker.checksum is None and marker.format == FORMAT:
        raise damaged(where, f"{MARKER} has no checksum")
    counts = [marker.consumed_samples, marker.loader.get("consumed_samples")]
    if (by_name := count_of(where.rstrip("/").rpartition("/")[2])) is not None:
        counts.append(by_name)
    if any(type(count) is not int or count != counts[0] for count in counts):
        what = f"{MARKER} and the folder's name have different counts of consumed samples"
        raise damaged(where, f"{what}: {', '.join(map(repr, counts))}")
    size = marker.loader.get("batches_per_step")
    if size is not None and not (type(size) is int and 1 <= size < 2**63):
        raise damaged(where, f"{MARKER} says {size!r} where batches of a step are counted")
    for name in marker.files:
        if not _FILE.fullmatch(name):
            raise damaged(where, f"{MARKER} cannot be read (it names {name!r}, which cannot be a file of it)")
    fields = {name: getattr(marker, name) for name in _FIELDS}
    if marker.valid is not None:  # there was one set without a name
        fields["valid"] = {name if "/" in name else named(ONLY, name): value for name, value in marker.valid.items()}
    return Checkpoint(**fields)


def marker_of(checkpoint: Checkpoint) -> bytes:
    """The checkpoint.json of a checkpoint."""
    fields = msgspec.to_builtins(_Marker(**{name: getattr(checkpoint, name) for name in _FIELDS}))
    # Left out where there is none, so that one of format 1 stays what versions up to 0.1 read.
    for name in _OPTIONAL:
        if fields[name] is None:
            del fields[name]
    for name, none in _COUNTED_LATER.items():
        if fields["progress"][name] == none:
            del fields["progress"][name]
    fields["checksum"] = _checksum(fields)
    return json.dumps(fields, ensure_ascii=False).encode()


def name_of(consumed_samples: int) -> str:
    """The name of a checkpoint's folder."""
    return f"{consumed_samples:0{_DIGITS}d}"


def count_of(name: str) -> int | None:
    """The count of consumed samples of which a name is; None if it is no checkpoint's."""
    count = int(name) if name.isascii() and name.isdecimal() and len(name) < 20 else None
    return count if count is not None and name_of(count) == name else None


def damaged(where: str, what: str) -> StoreError:
    """An error about a checkpoint that is not as it was written."""
    return StoreError(f"is damaged: {what}", url=where, fix=FIX)


def _checksum(fields: dict[str, Any]) -> str:
    """sha256 (hex) of all fields but the checksum, in canonical form."""
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

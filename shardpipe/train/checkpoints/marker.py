"""checkpoint.json: what a checkpoint says of itself, and whether its files are as they were written."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shardpipe.errors import ResumeMismatch, StoreError
from shardpipe.store import Count, parsed, write_file
from shardpipe.train.engines import Scale

__all__ = [
    "MARKER",
    "Checkpoint",
    "Identity",
    "Progress",
    "looks_whole",
    "mark_evaluated",
    "read_checkpoint",
    "write_marker",
]

MARKER = "checkpoint.json"
_FORMAT = 1
_FIX = "Choose another checkpoint, or let --resume auto choose."


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
    unknown_units: Count = 0
    """Characters that the units do not have."""
    evaluated: bool = True
    """False if a sub-epoch has ended and its evaluation is still to come."""


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint and the run that loads it must have in common, the data apart."""

    model: str
    units: tuple[str, ...]
    sample_rate: Count

    def check(self, saved: Identity, where: Path) -> None:
        """Raises ResumeMismatch for the first field of `saved` that differs."""
        for field, fix in _FIXES.items():
            if (was := getattr(saved, field)) != (current := getattr(self, field)):
                raise ResumeMismatch(field, was, current, where=str(where), fix=fix)


_FIXES = {
    "model": "Give the same --model, or a new --out.",
    "units": "Give the --units of that run (units.txt in its folder), or a new --out.",
    "sample_rate": "Pack the data at that rate (`shardpipe pack --sample-rate`), or give a new --out.",
}


class _Sum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: Count
    crc32: Count


class _Marker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """checkpoint.json as it is written. `checksum` is that of all the rest; versions up to 0.1.0 wrote none."""

    format: int
    consumed_samples: Count
    progress: Progress
    identity: Identity
    loader: dict[str, Any]
    files: dict[str, _Sum]
    scale: Scale | None = None
    checksum: str | None = None


class _Format(msgspec.Struct):
    format: Any


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, its files checked against their checksums."""

    path: Path
    consumed_samples: int
    progress: Progress
    identity: Identity
    loader: dict[str, Any]
    scale: Scale | None = None
    """Of fp16's gradients."""
    files: frozenset[str] = frozenset()
    """Names of the other files in its folder."""


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises StoreError if it is not one, or not as it was written."""
    marker = _read_marker(path)
    for name, written in marker.files.items():
        try:
            found = _sum_of(path / name)
        except OSError as error:
            raise _damaged(path, f"{name} cannot be read ({error})") from error
        if found != written:
            what = f"{name} has {found.size} bytes and checksum {found.crc32:08x}"
            raise _damaged(path, f"{what}, not the {written.size} and {written.crc32:08x} that were written")
    return Checkpoint(
        path=path,
        consumed_samples=marker.consumed_samples,
        progress=marker.progress,
        identity=marker.identity,
        loader=marker.loader,
        scale=marker.scale,
        files=frozenset(marker.files),
    )


def looks_whole(path: Path) -> bool:
    """Whether a checkpoint's files are all there, of their size: what can be told of it without reading it all."""
    try:
        return all((path / name).stat().st_size == written.size for name, written in _read_marker(path).files.items())
    except (StoreError, OSError):
        return False


def _read_marker(path: Path) -> _Marker:
    try:
        if not (path / MARKER).is_file():
            raise FileNotFoundError
        data = (path / MARKER).read_bytes()
        version = parsed(data, _Format).format
        if version != _FORMAT:
            found = f"has format {version!r}, this version reads {_FORMAT}"
            raise StoreError(found, url=str(path), fix="Resume with the version of shardpipe that wrote it.")
        marker = parsed(data, _Marker)
    except FileNotFoundError as error:
        raise StoreError("is no complete checkpoint", url=str(path), fix=_FIX) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{MARKER} cannot be read ({error})") from error
    if marker.checksum is not None and marker.checksum != _checksum(parsed(data, dict[str, Any])):
        raise _damaged(path, f"{MARKER} is not what was written, by its checksum")
    counts = {marker.consumed_samples, marker.loader.get("consumed_samples")}
    if path.name.isdecimal():
        counts.add(int(path.name))
    if len(counts) > 1:
        what = f"{MARKER} and the folder's name have different counts of consumed samples"
        raise _damaged(path, f"{what}: {', '.join(map(repr, counts))}")
    size = marker.loader.get("batches_per_step")
    if size is not None and not (type(size) is int and 1 <= size < 2**63):
        raise _damaged(path, f"{MARKER} says {size!r} where batches of a step are counted")
    for name in marker.files:
        if name in ("", ".", "..", MARKER) or "/" in name:
            raise _damaged(path, f"{MARKER} cannot be read (it names {name!r}, which cannot be a file of it)")
    return marker


def write_marker(checkpoint: Checkpoint) -> None:
    """Makes a folder that holds all other files of a checkpoint into one."""
    marker = _Marker(
        format=_FORMAT,
        consumed_samples=checkpoint.consumed_samples,
        progress=checkpoint.progress,
        identity=checkpoint.identity,
        loader=checkpoint.loader,
        scale=checkpoint.scale,
        files={file.name: _sum_of(file) for file in sorted(checkpoint.path.iterdir())},
    )
    _write(checkpoint.path, marker)


def mark_evaluated(path: Path) -> None:
    """Notes in a checkpoint that the evaluation it was waiting for is done. Raises StoreError."""
    marker = _read_marker(path)
    marker.progress.evaluated = True
    _write(path, marker)


def _write(path: Path, marker: _Marker) -> None:
    fields = msgspec.to_builtins(marker)
    if marker.scale is None:
        del fields["scale"]  # versions that know of none read the others' checkpoints, too
    fields["checksum"] = _checksum(fields)
    write_file(path / MARKER, json.dumps(fields, ensure_ascii=False).encode())


def _checksum(fields: dict[str, Any]) -> str:
    """sha256 (hex) of all fields but the checksum, in canonical form."""
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"is damaged: {what}", url=str(path), fix=_FIX)


def _sum_of(file: Path) -> _Sum:
    if not file.is_file():
        raise OSError(f"{file.name} is no file" if file.exists() else "no such file")
    size = crc = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return _Sum(size, crc)

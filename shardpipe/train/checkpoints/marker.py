"""checkpoint.json: what a checkpoint says of itself, and whether its files are as they were written."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shardpipe.errors import ResumeMismatch, StoreError
from shardpipe.store import write_file

__all__ = ["MARKER", "Checkpoint", "Identity", "Progress", "mark_evaluated", "read_checkpoint", "write_marker"]

MARKER = "checkpoint.json"
_FORMAT = 1


@dataclass(kw_only=True)
class Progress:
    """What a run has counted so far, all processes together; the loader counts the samples."""

    steps: int = 0
    """Optimizer steps, those that were skipped among them."""
    skipped_steps: int = 0
    """Steps that left the model as it was, for their gradient was not finite."""
    skipped_in_a_row: int = 0
    left_out: int = 0
    """Utterances too short for their text, which taught nothing."""
    unreadable: int = 0
    """Samples that could not be decoded."""
    excluded: int = 0
    """Samples left out for their length."""
    unknown_units: int = 0
    """Characters that the units do not have."""
    evaluated: bool = True
    """False if a sub-epoch has ended and its evaluation is still to come."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint and the run that loads it must have in common, the data apart."""

    model: str
    units: tuple[str, ...]
    sample_rate: int

    def check(self, saved: dict[str, Any], where: Path) -> None:
        """Raises ResumeMismatch for the first field of `saved` that differs."""
        for field, current in asdict(self).items():
            was = tuple(saved[field]) if field == "units" else saved[field]
            if was != current:
                raise ResumeMismatch(field, was, current, where=str(where), fix=_FIXES[field])


_FIXES = {
    "model": "Give the same --model, or a new --out.",
    "units": "Give the --units of that run (units.txt in its folder), or a new --out.",
    "sample_rate": "Pack the data at that rate (`shardpipe pack --sample-rate`), or give a new --out.",
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint, its files checked against their checksums."""

    path: Path
    consumed_samples: int
    progress: Progress
    identity: dict[str, Any]
    loader: dict[str, Any]
    files: frozenset[str] = frozenset()
    """Names of the other files in its folder."""


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises StoreError if it is not one, or not as it was written."""
    fix = "Choose another checkpoint, or let --resume auto choose."
    try:
        marker = json.loads((path / MARKER).read_bytes())
        if marker["format"] != _FORMAT:
            found = f"has format {marker['format']!r}, this version reads {_FORMAT}"
            raise StoreError(found, url=str(path), fix="Resume with the version of shardpipe that wrote it.")
        checkpoint = Checkpoint(
            path=path,
            consumed_samples=marker["consumed_samples"],
            progress=Progress(**marker["progress"]),
            identity=marker["identity"],
            loader=marker["loader"],
        )
        files = marker["files"].items()
        if strange := [name for name, _ in files if name in ("", ".", "..", MARKER) or "/" in name]:
            raise ValueError(f"it names {strange[0]!r}, which cannot be a file of it")
        checkpoint = replace(checkpoint, files=frozenset(marker["files"]))
    except FileNotFoundError as error:
        raise StoreError("is no complete checkpoint", url=str(path), fix=fix) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"is damaged: {MARKER} cannot be read ({error})", url=str(path), fix=fix) from error
    for name, written in files:
        try:
            found_now = _sum_of(path / name)
        except OSError as error:
            raise StoreError(f"is damaged: {name} cannot be read ({error})", url=str(path), fix=fix) from error
        if found_now != written:
            what = f"is damaged: {name} has {found_now['size']} bytes and checksum {found_now['crc32']:08x}"
            what += f", not the {written['size']} and {written['crc32']:08x} that were written"
            raise StoreError(what, url=str(path), fix=fix)
    return checkpoint


def write_marker(checkpoint: Checkpoint) -> None:
    """Makes a folder that holds all other files of a checkpoint into one."""
    marker = {
        "format": _FORMAT,
        "consumed_samples": checkpoint.consumed_samples,
        "progress": asdict(checkpoint.progress),
        "identity": checkpoint.identity,
        "loader": checkpoint.loader,
        "files": {file.name: _sum_of(file) for file in sorted(checkpoint.path.iterdir())},
    }
    write_file(checkpoint.path / MARKER, json.dumps(marker, ensure_ascii=False).encode())


def mark_evaluated(path: Path) -> None:
    """Notes in a checkpoint that the evaluation it was waiting for is done."""
    marker = json.loads((path / MARKER).read_bytes())
    marker["progress"]["evaluated"] = True
    write_file(path / MARKER, json.dumps(marker, ensure_ascii=False).encode())


def _sum_of(file: Path) -> dict[str, int]:
    size = crc = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return {"size": size, "crc32": crc}

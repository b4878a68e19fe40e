"""Checkpoints that are there whole or not at all, and hold nothing about the machine that wrote them.

A checkpoint is a folder named by its count of consumed samples. It holds the model and the optimizer as
torch.distributed.checkpoint writes them, and checkpoint.json, written last, with the loader's state, the run's
progress, and the size and checksum of every other file. The folder gets its name when all of it is on the disk.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from shardpipe.errors import ResumeMismatch, StoreError
from shardpipe.store import flush, write_file, writing
from shardpipe.train.parallel import World

__all__ = ["Checkpoint", "Checkpoints", "Identity", "Progress", "read_checkpoint", "restore"]

_MARKER = "checkpoint.json"
_FORMAT = 1
_DIGITS = 12


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


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises StoreError if it is not one, or not as it was written."""
    fix = "Choose another checkpoint, or let --resume auto choose."
    try:
        marker = json.loads((path / _MARKER).read_bytes())
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
    except FileNotFoundError as error:
        raise StoreError("is no complete checkpoint", url=str(path), fix=fix) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"is damaged: {_MARKER} cannot be read ({error})", url=str(path), fix=fix) from error
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


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, world: World) -> None:
    """Puts the checkpoint's model and optimizer in place; the optimizer's settings (rate, decay) stay as they are."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _alone_on_purpose():
        load(state, storage_reader=FileSystemReader(checkpoint.path), no_dist=world.size == 1)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for group, setting in zip(optimizer.param_groups, settings):
        group.update(setting)


class Checkpoints:
    """The checkpoints of one run, of which it keeps the newest `keep`."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def counts(self) -> list[int]:
        """The counts of consumed samples at which there is a complete checkpoint, ascending."""
        names = (marker.parent.name for marker in self.folder.glob(f"*/{_MARKER}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, consumed_samples: int) -> Path:
        return self.folder / f"{consumed_samples:0{_DIGITS}d}"

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest one that is as it was written; those passed over are reported to `say`."""
        for count in reversed(self.counts()):
            try:
                return read_checkpoint(self.path(count))
            except StoreError as error:
                say(f"passed over {error.where}: it {error.what}")
        return None

    def mark_evaluated(self, consumed_samples: int) -> None:
        """Notes in the checkpoint there that the evaluation it was waiting for is done."""
        file = self.path(consumed_samples) / _MARKER
        marker = json.loads(file.read_bytes())
        marker["progress"]["evaluated"] = True
        write_file(file, json.dumps(marker, ensure_ascii=False).encode())

    def set_aside(self, *, after: int) -> list[int]:
        """Moves the checkpoints beyond a count out of the way, to .aside; returns their counts."""
        beyond = [count for count in self.counts() if count > after]
        for count in beyond:
            aside = self.folder / ".aside" / self.path(count).name
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            self.path(count).replace(aside)
        return beyond

    def save(
        self,
        world: World,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        consumed_samples: int,
        progress: Progress,
        identity: Identity,
        loader: dict[str, Any],
    ) -> Path:
        """Writes one, by all processes together, and deletes the oldest beyond `keep`. Raises StoreError."""
        final = self.path(consumed_samples)
        staged = self.folder / f".tmp-{final.name}"
        if world.is_main:
            with writing(staged):
                self._clear()
                staged.mkdir(parents=True)
        world.wait()
        model_state, optimizer_state = get_state_dict(model, optimizer)
        try:
            state = {"model": model_state, "optimizer": optimizer_state}
            with _alone_on_purpose():
                save(state, storage_writer=_Writer(staged, overwrite=False), no_dist=world.size == 1)
        except CheckpointException as error:
            shutil.rmtree(staged, ignore_errors=True)
            causes = "; ".join(dict.fromkeys(_root_of(failure[0]) for failure in error.failures.values()))
            fix = "Check the disk, then run the same command again: it goes on from the last checkpoint."
            raise StoreError(f"cannot be written ({causes})", url=str(staged), fix=fix) from error
        if world.is_main:
            marker = {
                "format": _FORMAT,
                "consumed_samples": consumed_samples,
                "progress": asdict(progress),
                "identity": asdict(identity),
                "loader": loader,
                "files": {file.name: _sum_of(file) for file in sorted(staged.iterdir())},
            }
            with writing(final):
                (staged / _MARKER).write_text(json.dumps(marker, ensure_ascii=False), encoding="utf-8")
                flush(staged / _MARKER)
                flush(staged)
                if final.exists():
                    final.replace(self.folder / f".tmp-old-{final.name}")
                staged.replace(final)
                flush(self.folder)
                for count in self.counts()[: -self.keep]:
                    self.path(count).replace(self.folder / f".tmp-old-{self.path(count).name}")
                self._clear()
        world.wait()
        return final

    def _clear(self) -> None:
        """Removes what an interrupted save, or this one, left behind. A renamed folder cannot be taken for complete."""
        for leftover in self.folder.glob(".tmp-*"):
            shutil.rmtree(leftover)


class _Writer(FileSystemWriter):
    """Writes no path and no random name into the checkpoint."""

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta()


@contextmanager
def _alone_on_purpose() -> Iterator[None]:
    """Keeps torch from warning that one process saves or loads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _root_of(error: BaseException) -> str:
    """What the system said, where torch's own error hides that."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return str(inner or error).splitlines()[0]


def _sum_of(file: Path) -> dict[str, int]:
    size = crc = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return {"size": size, "crc32": crc}

"""The checkpoints of a run: which there are, which is the newest, which are kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from shardpipe.errors import StoreError
from shardpipe.store import flush, writing
from shardpipe.train.checkpoints.marker import (
    MARKER,
    Checkpoint,
    Identity,
    Progress,
    looks_whole,
    mark_evaluated,
    read_checkpoint,
    write_marker,
)
from shardpipe.train.checkpoints.tensors import save_tensors
from shardpipe.train.engines import Scale, World

__all__ = ["Checkpoints"]

_DIGITS = 12


class Checkpoints:
    """The checkpoints of one run, of which it keeps the newest `keep`."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._damaged: set[int] = set()

    def counts(self) -> list[int]:
        """The counts of consumed samples at which there is a complete checkpoint, ascending."""
        names = (marker.parent.name for marker in self.folder.glob(f"*/{MARKER}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, consumed_samples: int) -> Path:
        return self.folder / f"{consumed_samples:0{_DIGITS}d}"

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest one that is as it was written; those passed over are reported to `say`."""
        for count in reversed(self.counts()):
            try:
                return read_checkpoint(self.path(count))
            except StoreError as error:
                self._damaged.add(count)
                say(f"passed over {error.where}: it {error.what}")
        return None

    def mark_evaluated(self, consumed_samples: int) -> None:
        """Notes in the checkpoint there that the evaluation it was waiting for is done."""
        mark_evaluated(self.path(consumed_samples))

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
        scale: Scale | None = None,
    ) -> Path:
        """Writes one, by all processes together, and deletes the oldest beyond `keep`. Raises StoreError."""
        final = self.path(consumed_samples)
        staged = self.folder / f".tmp-{final.name}"
        if world.is_main:
            with writing(staged):
                self._clear()
                staged.mkdir(parents=True)
        world.wait()
        try:
            save_tensors(staged, model, optimizer, world)
        except StoreError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        if world.is_main:
            checkpoint = Checkpoint(
                path=staged,
                consumed_samples=consumed_samples,
                progress=progress,
                identity=identity,
                loader=loader,
                scale=scale,
            )
            with writing(final):
                write_marker(checkpoint)
                flush(staged)
                if final.exists():
                    final.replace(self.folder / f".tmp-old-{final.name}")
                staged.replace(final)
                flush(self.folder)
                self._damaged.discard(consumed_samples)
                for count in self._outdated(consumed_samples):
                    self.path(count).replace(self.folder / f".tmp-old-{self.path(count).name}")
                self._clear()
        world.wait()
        return final

    def _outdated(self, saved: int) -> list[int]:
        """The counts of checkpoints that need not be kept: whatever is older than the newest `keep` that are whole."""
        whole = [count for count in self.counts() if count not in self._damaged and looks_whole(self.path(count))]
        oldest = min(saved, *whole[-self.keep :])
        return [count for count in self.counts() if count < oldest]

    def _clear(self) -> None:
        """Removes what an interrupted save, or this one, left behind. A renamed folder cannot be taken for complete."""
        for leftover in self.folder.glob(".tmp-*"):
            shutil.rmtree(leftover)

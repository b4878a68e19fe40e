"""config.yaml: the settings of a run's latest start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from shardpipe.errors import ConfigError
from shardpipe.store import checked_url, converted, is_url, only_local, open_store, write_file
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, Keep, read_checkpoint
from shardpipe.train.config import Figure, TrainConfig, checkpoints_in
from shardpipe.train.schedule import Amount

__all__ = ["checkpoints_of", "found_at", "last_settings", "write_settings"]

_FILE = "config.yaml"
_LONGEST = 1 << 20  # bytes


def write_settings(config: TrainConfig) -> None:
    """Into the run's folder. Raises StoreError."""
    text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    write_file(Path(config.out) / _FILE, text.encode())


def last_settings(folder: str) -> dict[str, Any] | None:
    """Those of the latest start in a run's folder; None where there was none, or something else lies there."""
    try:
        found = open_store(folder)
        if found.stat(_FILE).size > _LONGEST:
            return None
        settings = yaml.safe_load(found.read(_FILE))
    except Exception:  # there is nothing that a YAML of a stranger may not raise
        return None
    return settings if isinstance(settings, dict) else None


class _Keeping(msgspec.Struct):
    """The settings that say where checkpoints lie and which are kept."""

    checkpoints: str | None = None
    keep: Annotated[int, msgspec.Meta(ge=1)] = 3
    keep_every: str | None = None
    keep_best: Annotated[int, msgspec.Meta(ge=0)] = 0
    best_by: Figure = "loss"


def checkpoints_of(run: str) -> Checkpoints:
    """Those of the run in a folder, wherever its latest start has put them; or of a place of checkpoints.

    They are kept as that start has said. Raises ConfigError for a URL that holds credentials.
    """
    if is_url(run):
        return Checkpoints(checked_url("run", run).rstrip("/"), keep=Keep())
    folder = only_local("run", run)
    inner = checkpoints_in(folder)
    try:
        settings = converted(last_settings(folder) or {}, _Keeping)
        every = settings.keep_every and Amount.parse("keep_every", settings.keep_every, clock=False)
    except (ValueError, ConfigError):  # of another version, or somebody else's
        settings, every = _Keeping(), None
    keep = Keep(newest=settings.keep, every=every or None, best=settings.keep_best, by=settings.best_by)
    if settings.checkpoints is None:
        return Checkpoints(inner if Path(inner).is_dir() else folder, keep=keep)
    place = settings.checkpoints
    return Checkpoints(checked_url("checkpoints", place) if is_url(place) else place, keep=keep)


def found_at(place: str, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint at a path or a URL, or the newest one of the run, or of the checkpoints, that lie there.

    Raises StoreError.
    """
    newest = checkpoints_of(place).newest(say)
    return read_checkpoint(place) if newest is None else newest

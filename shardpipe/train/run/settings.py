"""config.yaml: the settings of a run's latest start."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from shardpipe.errors import ConfigError
from shardpipe.store import checked_url, is_url, only_local, write_file
from shardpipe.train.checkpoints import Checkpoints, Keep
from shardpipe.train.config import TrainConfig

__all__ = ["checkpoints_of", "last_settings", "write_settings"]

_FILE = "config.yaml"


def write_settings(config: TrainConfig) -> None:
    """Into the run's folder. Raises StoreError."""
    text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    write_file(Path(config.out) / _FILE, text.encode())


def last_settings(folder: str) -> dict[str, Any] | None:
    """Those of the latest start in a run's folder; None where there was none, or somebody has written something else
    there.
    """
    try:
        found = yaml.safe_load((Path(folder) / _FILE).read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def checkpoints_of(run: str) -> Checkpoints:
    """Those of the run in a folder, wherever its latest start has put them; or of a place of checkpoints.

    They are kept as that start has said. Raises ConfigError for a URL that holds credentials.
    """
    if is_url(run):
        return Checkpoints(checked_url("run", run), keep=Keep())
    folder = only_local("run", run)
    try:
        config = TrainConfig(**(last_settings(folder) or {}))
    except (TypeError, ConfigError):  # another version's, or somebody else's
        inner = Path(folder) / "checkpoints"
        return Checkpoints(str(inner if inner.is_dir() else folder), keep=Keep())
    return Checkpoints(config.checkpoints or str(Path(folder) / "checkpoints"), keep=Keep.of(config))

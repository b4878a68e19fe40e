"""config.yaml: the settings of a run's latest start."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from shardpipe.store import write_file
from shardpipe.train.config import TrainConfig

__all__ = ["last_settings", "write_settings"]

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

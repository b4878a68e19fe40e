"""What a run writes down as it goes: metrics.jsonl, and TensorBoard's events.

Every line carries `consumed_samples`, so a resume cuts the file back to its checkpoint's count, and what is then
written continues it as if nothing had happened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from shardpipe.store import Count, parsed, write_file
from shardpipe.train.logs.board import Board
from shardpipe.train.logs.whole import WholeAppends, backwards

__all__ = ["JsonLines", "Recorder", "cut_back", "last_saved"]

_SERVICE = ("servers", "server_retries", "server_hedges")
_CURVES = {
    "step": ("loss", "lr", "grad_norm", "utt_per_s", "audio_s_per_s", "data_wait", "goodput", *_SERVICE),
    "valid": ("loss", "wer", "cer"),
}


class JsonLines:
    """A file of one JSON object a line. Raises StoreError."""

    def __init__(self, path: Path) -> None:
        self._file = WholeAppends(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record; numbers are written so that they read back exactly, those that are not finite as null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(finite, ensure_ascii=False).encode() + b"\n")

    def flush(self) -> None:
        """Brings all lines to the disk."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Line(msgspec.Struct):
    consumed_samples: Count
    event: str = ""


def cut_back(path: Path, consumed_samples: int, *, evaluated: bool = True) -> int:
    """Drops the lines beyond a count, in one step, and says how many; what is no line, cut short by a crash, goes too.

    If not `evaluated`, evaluations at the very count go as well: they will be done again.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    lines = data.splitlines()
    kept = [line + b"\n" for line in lines if _within(line, consumed_samples, evaluated)]
    if (rest := b"".join(kept)) != data:
        write_file(path, rest)
    return len(lines) - len(kept)


def last_saved(path: Path) -> int | None:
    """The count of the latest checkpoint that a metrics.jsonl tells of; None if it tells of none."""
    for _, line in backwards(path):
        with suppress(ValueError):
            record = parsed(line, _Line)
            if record.event in ("checkpoint", "resume"):
                return record.consumed_samples
    return None


def _within(line: bytes, consumed_samples: int, evaluated: bool) -> bool:
    try:
        record = parsed(line, _Line)
    except ValueError:
        return False
    if record.consumed_samples == consumed_samples:
        return evaluated or record.event not in ("valid", "valid_failed", "end")
    return record.consumed_samples < consumed_samples


class Recorder:
    """metrics.jsonl and tensorboard/ of one run, written by its main process. Raises StoreError."""

    def __init__(self, folder: Path, *, consumed_samples: int) -> None:
        self._lines = JsonLines(folder / "metrics.jsonl")
        self._board = Board(folder / "tensorboard", first_step=consumed_samples + 1)

    def write(self, event: str, consumed_samples: int, **fields: Any) -> None:
        """One line of metrics.jsonl; what TensorBoard can draw of it goes there too."""
        self._lines.write({"event": event, "consumed_samples": consumed_samples, **fields})
        group = "train" if event == "step" else fields.get("set", event)
        for name in _CURVES.get(event, ()):
            value = fields.get(name)
            if value is not None and math.isfinite(value):
                self._board.scalar(f"{group}/{name}", value, consumed_samples)

    def flush(self) -> None:
        """Brings the lines to the disk; the curves can be drawn from them again."""
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()
        self._board.close()

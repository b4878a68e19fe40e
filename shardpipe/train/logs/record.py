"""What a run writes down as it goes: metrics.jsonl, TensorBoard's events, and the keys it was given.

Every line carries `consumed_samples`, so a resume cuts the files back to its checkpoint's count, and what is then
written continues them as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from shardpipe.store import write_file, writing

__all__ = ["JsonLines", "Recorder", "cut_back"]

_CURVES = {
    "step": ("loss", "lr", "grad_norm", "utt_per_s", "audio_s_per_s", "data_wait"),
    "valid": ("loss", "wer", "cer"),
}


class JsonLines:
    """A file of one JSON object a line, each handed to the system at once, so that a killed process loses none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record; numbers are written so that they read back exactly, those that are not finite as null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with writing(self._path):
            self._file.write(json.dumps(finite, ensure_ascii=False).encode() + b"\n")

    def flush(self) -> None:
        """Brings all lines to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def cut_back(path: Path, consumed_samples: int, *, evaluated: bool = True) -> int:
    """Drops the lines beyond a count, in one step, and says how many; what is no line, cut short by a crash, goes too.

    If not `evaluated`, evaluations at the very count go as well: they will be done again.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _within(line, consumed_samples, evaluated)]
    if len(kept) < len(lines):
        write_file(path, b"".join(kept))
    return len(lines) - len(kept)


def _within(line: bytes, consumed_samples: int, evaluated: bool) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    count = int(record["consumed_samples"])
    return count < consumed_samples or (
        count == consumed_samples and (evaluated or record.get("event") not in ("valid", "end"))
    )


class Recorder:
    """metrics.jsonl and tensorboard/ of one run, written by its main process."""

    def __init__(self, folder: Path, *, consumed_samples: int) -> None:
        self._lines = JsonLines(folder / "metrics.jsonl")
        with writing(folder / "tensorboard"):
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=consumed_samples + 1)

    def write(self, event: str, consumed_samples: int, **fields: Any) -> None:
        """One line of metrics.jsonl; what TensorBoard can draw of it goes there too."""
        self._lines.write({"event": event, "consumed_samples": consumed_samples, **fields})
        group = "train" if event == "step" else event
        for name in _CURVES.get(event, ()):
            value = fields.get(name)
            if value is not None and math.isfinite(value):
                self._board.add_scalar(f"{group}/{name}", value, consumed_samples)

    def flush(self) -> None:
        self._lines.flush()
        self._board.flush()

    def close(self) -> None:
        self._lines.close()
        self._board.close()

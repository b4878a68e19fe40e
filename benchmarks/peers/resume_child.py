"""One start of a peer from a state, and how soon its first batch was there. Started by bench_resume.py."""

from __future__ import annotations

import argparse
import pickle
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from common import Batches, Job, job_arguments
from processes import answer_lines


def read_bytes() -> int:
    """Bytes that this process has read by system calls, from files and all else."""
    with open("/proc/self/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("rchar"))


class Counted:
    """Batches, and the sums of what they held."""

    def __init__(self, batches: Batches) -> None:
        self._batches = iter(batches)
        self.samples = self.frames = self.squares = self.largest = 0

    def take(self) -> bool:
        """Takes a batch, if there is one."""
        batch = next(self._batches, None)
        if batch is not None:
            lengths = np.asarray(batch[1], np.int64)
            self.samples += len(lengths)
            self.largest = max(self.largest, len(lengths))
            self.frames += int(lengths.sum())
            self.squares += int((lengths**2).sum())
        return batch is not None

    def sums(self) -> dict[str, int]:
        return {"samples": self.samples, "frames": self.frames, "frames_squared": self.squares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    job_arguments(parser)
    parser.add_argument("--state", type=Path, help="what a run saved; none starts an epoch")
    options = vars(parser.parse_args())
    peer, saved = import_module(f"peer_{options.pop('peer')}"), options.pop("state")
    imported, before = monotonic(), read_bytes()
    state: Any = pickle.loads(saved.read_bytes()) if saved else None
    batches, take_state = peer.resume(Job(**options), state)
    counted = Counted(batches)
    counted.take()
    figures = {"imported": imported, "first": monotonic(), "read": read_bytes() - before}
    for question, answer in answer_lines():
        if question["do"] == "figures":
            answer(figures)
        elif question["do"] == "save":
            # The last batch before the place: at 99 % the one that reaches it may be the epoch's last.
            while counted.samples + counted.largest <= question["samples"]:
                counted.take()
            Path(question["to"]).write_bytes(pickle.dumps(take_state()))
            answer(counted.sums())
        else:
            while counted.take():
                pass
            answer(counted.sums())


if __name__ == "__main__":
    main()

"""One peer in one process: makes its form of the data, or reads epochs of it and tells how fast."""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.metadata import version
from time import monotonic
from typing import Any

import numpy as np
from common import Job, job_arguments
from processes import answer_lines

_SKIPPED_BATCHES = 20


def run_epoch(batches: Any, seconds: float | None) -> dict[str, Any]:
    """Reads an epoch, or about `seconds` of one behind its 20th batch; what was delivered, and how fast."""
    begun = monotonic()
    samples = frames = squares = skipped = 0
    for number, (audio, lengths) in enumerate(batches, 1):
        taken = np.asarray(lengths, np.int64)
        assert tuple(audio.shape) == (len(taken), taken.max()), f"{audio.shape} for lengths {lengths}"
        assert str(audio.dtype).endswith("float32"), audio.dtype
        samples += len(taken)
        frames += int(taken.sum())
        squares += int((taken**2).sum())
        if seconds is not None:
            if number == _SKIPPED_BATCHES:
                begun, skipped = monotonic(), samples
            if monotonic() - begun > seconds and number > _SKIPPED_BATCHES:
                break
    rate = (samples - skipped) / (monotonic() - begun)
    return {"rate": rate, "samples": samples, "frames": frames, "frames_squared": squares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    job_arguments(parser)
    options = vars(parser.parse_args())
    peer = import_module(f"peer_{options.pop('peer')}")
    job = Job(**options)
    epochs = None
    for question, answer in answer_lines():
        if question["do"] == "version":
            answer({"version": version(peer.PACKAGE)})
        elif question["do"] == "prepare":
            peer.prepare(job)
            answer({})
        else:
            epochs = epochs or peer.open_epochs(job)
            answer(run_epoch(epochs(), question["seconds"]))


if __name__ == "__main__":
    main()

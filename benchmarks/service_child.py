"""A trainer of one batch after another, with a GPU that is a sleep, or a client that asks for single batches. Started
by bench_service.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from math import inf
from os import getpid
from typing import Any

from processes import answer_lines
from replicas import processor_seconds

from shardpipe import Batch, ShardLoader
from shardpipe.loading.making import Arena
from shardpipe.loading.work import works


def endless(loader: ShardLoader) -> Iterator[Batch]:
    while True:
        yield from loader


class Trainer:
    """Takes batches, a step of so many seconds after each."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    def run(
        self, *, settle: float = 0.0, seconds: float = inf, batches: float = inf, step: float = 0.0, pids: list[int]
    ) -> dict[str, float]:
        """Trains for a while, and then, measured, for so many seconds or batches.

        Processor time, a batch, is of this process (`own`), and of it and `pids`.
        """
        self._train(settle, inf, step)
        used = processor_seconds([getpid()]), processor_seconds(pids)
        begun = time.monotonic()
        taken, samples, frames, waited = self._train(seconds, batches, step)
        passed = time.monotonic() - begun
        return {
            "batches": taken,
            "rate": taken / passed,
            "utterances": samples / passed,
            "frames": frames / taken,
            "waited": waited / passed,
            "own": (own := (processor_seconds([getpid()]) - used[0]) / taken),
            "processor": own + (processor_seconds(pids) - used[1]) / taken,
        }

    def _train(self, seconds: float, batches: float, step: float) -> tuple[int, int, int, float]:
        """(batches, samples, frames, seconds that went by in waiting for them)."""
        until = time.monotonic() + seconds
        taken = samples = frames = 0
        waited = 0.0
        while taken < batches and (asked := time.monotonic()) < until:
            batch = next(self._batches)
            came = time.monotonic()
            waited += came - asked
            taken, samples, frames = taken + 1, samples + len(batch.keys), frames + int(batch.lengths.sum())
            if step:
                time.sleep(max(0.0, came + step - time.monotonic()))
        return taken, samples, frames, waited


def latencies(loader: ShardLoader, count: int) -> dict[str, list[float]]:
    """Seconds until batches were there that a service had to make, until the same came again, and their bytes: one
    after another, without anything made ahead.
    """
    feed = loader._feed
    assert feed.served is not None
    empty = Arena(feed.prefetch_bytes).empty
    told: dict[str, list[float]] = {"made": [], "kept": [], "bytes": []}
    with feed.served.client.using():
        steps = loader._sequence.steps(loader.consumed_samples)
        for work in islice(works(loader._sequence, steps, 0, 1), count):
            for kind in ("made", "kept"):
                begun = time.monotonic()
                batch, _ = feed.served(work, empty)
                told[kind].append(time.monotonic() - begun)
            told["bytes"].append(batch.audio.nbytes)
    return told


def main() -> None:
    data, options = sys.argv[1], json.loads(sys.argv[2])
    if options.pop("slow", False):
        from service_functions import slow

        options["transform"] = slow
    imported = time.monotonic()
    loader = ShardLoader(data, **options)
    batches = endless(loader)
    trainer = Trainer(batches)
    for question, answer in answer_lines():
        told: dict[str, Any]
        if question["do"] == "first":
            next(batches)
            told = {"imported": imported, "first": time.monotonic()}
        elif question["do"] == "latencies":
            told = latencies(loader, question["count"])
        else:
            told = trainer.run(**question["how"])
        answer(told)


if __name__ == "__main__":
    main()
